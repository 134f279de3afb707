"""Where the result of an evaluation lies. One of another checkpoint or other settings is never written over."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from polyarm.config import PACKAGES
from polyarm.lock import lock
from polyarm.policies import checkpoint
from polyarm.spec import UserError

RESULT = "result.json"
IDLE = (
    *("output_dir", "hydra", "data", "train", "collect", "deploy", "record", "replay"),
    *("task.demos", "task.expert", "task.name"),
    *("eval.videos", "eval.workers", "eval.n_envs", "eval.threads", "eval.allow_other_versions"),
)
"""Settings that do not change what is judged: where it is written, how fast it is played, how training was done."""
AMOUNT = ("eval.episodes", "eval.seed", "eval.device")
"""Settings that say how much of the same is judged."""


def acting(own: DictConfig, config: DictConfig) -> dict[str, Any]:
    """Where `config` judges otherwise than the checkpoint's own configuration says: {dotted key: value}."""
    before, now = flat(own), flat(config)
    changed = (key for key in sorted(before | now) if before.get(key) != now.get(key))
    return {key: now.get(key) for key in changed if not within(key, IDLE)}


def flat(config: DictConfig) -> dict[str, Any]:
    """{dotted key: value}, as written: nothing is resolved."""

    def walk(node: Any, prefix: str) -> Iterator[tuple[str, Any]]:
        for key, value in node.items():
            if isinstance(value, dict) and value:
                yield from walk(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", value

    return dict(walk(OmegaConf.to_container(config), ""))


def identity(folders: Sequence[Path], weights: Sequence[float], settings: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a result this one: the very weights of each checkpoint, how they are mixed, and what was set otherwise."""
    return {
        "models": [digest(folder / "model.safetensors") for folder in folders],
        "weights": list(weights),
        "settings": dict(settings),
    }


def digest(file: Path) -> str:
    with file.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()[:16]


def places(
    folders: Sequence[Path], weights: Sequence[float], words: Sequence[str], wanted: Mapping[str, Any]
) -> list[Path]:
    """Folders for a result, in the order in which they are tried: eval/ of the run for its last checkpoint as it was trained;
    with the step in its name for another, with the `words` that act for other settings; and whatever tells it apart where a
    result of something else lies already."""
    run = home(folders[0])
    base = "eval" if len(folders) == 1 else "eval_mixture"
    words = [w for w in words if any(within(key, (path_of(w),)) for key in wanted["settings"])]
    mine = [w for w in words if not within(path_of(w), AMOUNT)]
    step = [] if _is_last(folders[0], run) else [label(folders[0])]
    short = [base, *step, *map(_said, mine)]
    full = [base, label(folders[0]), *map(_said, words)]
    if len(folders) > 1:
        full += [f"{home(f).name}_{w:g}" for f, w in zip(folders, weights, strict=True)]
    names = [_safe(short), _safe(full), f"{_safe(full)}_{hashlib.sha256(json.dumps(wanted).encode()).hexdigest()[:8]}"]
    return [run / name for name in dict.fromkeys(names)]


@contextmanager
def claim(places: Sequence[Path], wanted: Mapping[str, Any]) -> Iterator[Path]:
    """Hold the first of these folders that has no result, or one of the same checkpoint and settings."""
    for out in places:
        with lock(out, "this evaluation"):
            there = _there(out)
            if there is None or there.get("identity") == json.loads(json.dumps(wanted)):
                yield out
                return
    raise UserError(
        f"{places[-1]} holds the result of {_about(there or {})}: give another output_dir, or remove its {RESULT}"
    )


def write_result(out: Path, result: Mapping[str, Any]) -> None:
    with written(out / RESULT) as work:
        work.write_text(json.dumps(result, indent=1))


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """A file to write beside `path`; it takes its place once it is whole and on the disk."""
    work = path.with_name(f".{path.name}.partial")
    try:
        yield work
        with work.open("rb") as file:
            os.fsync(file.fileno())
        work.replace(path)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}): make room, or give another output_dir"
        ) from error
    finally:
        work.unlink(missing_ok=True)


def home(folder: Path) -> Path:
    """The run that a checkpoint belongs to; itself for one that was copied elsewhere."""
    return folder.parent.parent if folder.parent.name == "checkpoints" else folder


def label(folder: Path) -> str:
    """step_00000020 -> step_20"""
    return re.sub(r"^step_0*(\d+)$", r"step_\1", folder.name)


def _is_last(folder: Path, run: Path) -> bool:
    try:
        return checkpoint.find(run) == folder
    except UserError:
        return False


def key_of(word: str) -> str:
    """The key of `key=value` in hydra's grammar, where + adds, ~ removes and group@package says where."""
    return word.lstrip("+~").partition("=")[0].partition("@")[0]


def path_of(word: str) -> str:
    """Where the setting of a word lies: sampler=ddpm under policy.sampler."""
    return PACKAGES.get(key_of(word), key_of(word))


def _said(word: str) -> str:
    """policy.sampler.angles.steps=4 -> steps_4"""
    return f"{key_of(word).rpartition('.')[2]}_{word.partition('=')[2]}"


def within(key: str, places: Sequence[str]) -> bool:
    return any(key == place or key.startswith(f"{place}.") for place in places)


def _safe(parts: Sequence[str]) -> str:
    """A folder name that every file system takes."""
    return re.sub(r"[^A-Za-z0-9.+-]+", "_", "_".join(parts)).strip("_.")[:100]


def _there(out: Path) -> dict[str, Any] | None:
    """The result that lies there; None for none, and for one that a kill cut off."""
    try:
        found = json.loads((out / RESULT).read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _about(result: Mapping[str, Any]) -> str:
    words = [f"{key}={value}" for key, value in result.get("identity", {}).get("settings", {}).items()]
    return f"{result.get('checkpoint', 'another checkpoint')}" + (f" with {', '.join(words[:3])}" if words else "")
