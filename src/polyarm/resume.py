"""A training run's folder: which checkpoint the same command goes on from, and what it may not change."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from polyarm.config import CONFIGS, PACKAGES, SECTIONS, compose
from polyarm.datasets.demos import ACTION, Demos
from polyarm.policies import checkpoint
from polyarm.spec import UserError

MAY_CHANGE = (
    *("output_dir", "eval", "collect", "deploy", "record", "replay", "hydra"),
    *("data.num_workers", "data.ram_gib", "train.resume", "train.steps"),
    *("train.log_every", "train.val_every", "train.val_batches", "train.checkpoint_every", "train.keep_states"),
    *("train.rollout_every", "train.rollout_episodes", "train.threads", "train.device"),
)
"""Settings that a resumed run may give anew; any other makes it another run."""


def look(run: Path, config: DictConfig) -> Path | None:
    """The checkpoint that training of `config` in `run` goes on from: the newest whole one that holds its state; None for a
    new run. Writes nothing.

    Raises `UserError` for a run of other settings, where `train.resume` is false, and where checkpoints are but none to go
    on from: a run never starts over by mistake.
    """
    whole = checkpoint.steps(run)
    began = next((f for f in (run / "config.yaml", *(s / "config.yaml" for s in reversed(whole))) if f.is_file()), None)
    if began is None:
        _require_nothing(run)
        return None
    if not config.train.resume:
        raise UserError(f"{run} holds a run already: give another output_dir, or train.resume=true to go on with it")
    _require_same(run, checkpoint.read_config(began.parent, config), config)
    ready = [folder for folder in whole if (folder / "train_state.pt").is_file()]
    if not ready:
        _require_nothing(run)
        return None
    if ready[-1] != whole[-1]:
        print(f"{whole[-1]} has no train_state.pt: going on from {ready[-1].name}", file=sys.stderr)
    return ready[-1]


def agree[Found](accelerator: Any, ask: Callable[[], Found]) -> Found:
    """What `ask` answers in the main process, in every process; its `UserError` too. So no process looks at a folder that
    another is just making."""
    if accelerator.num_processes == 1:
        return ask()
    from accelerate.utils import broadcast_object_list

    answer: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            answer = [ask(), None]
        except UserError as e:
            answer = [None, str(e)]
    broadcast_object_list(answer)
    if answer[1] is not None:
        raise UserError(answer[1])
    return answer[0]


def data_card(demos: Demos, train: np.ndarray, val: np.ndarray) -> dict[str, Any]:
    """Which demonstrations a run stands on: kept in every checkpoint, read by `same_split`."""
    n = len(demos.episode_ends)
    split = {"train": train.tolist(), "val": val.tolist()}
    return {"episodes": n, "fingerprint": _fingerprint(demos, n), "each": _each(demos), **split}


def same(card: dict[str, Any], demos: Demos) -> bool:
    """Whether demonstrations are those of a run, perhaps with more after them."""
    n, ends = card["episodes"], demos.episode_ends
    if "fingerprint" not in card:  # an older one knows by where episodes end
        return len(ends) >= n and hashlib.sha256(np.ascontiguousarray(ends[:n], "<i8")).hexdigest()[:16] == card["ends"]
    return len(ends) >= n and _fingerprint(demos, n) == card["fingerprint"]


def same_split(card: dict[str, Any], demos: Demos, where: str) -> tuple[np.ndarray, np.ndarray]:
    """The (training, held-out) episodes of a run, whatever was added to its demonstrations since."""
    n, ends = card["episodes"], demos.episode_ends
    if not same(card, demos):
        raise UserError(
            f"{where} holds {len(ends)} episodes that are not those this run began with ({n} others): "
            "restore them, or train in another output_dir"
        )
    if len(ends) > n:
        print(
            f"{where} has grown from {n} to {len(ends)} episodes: this run goes on with its own {n}; "
            "train in another output_dir to use all",
            file=sys.stderr,
        )
    return np.asarray(card["train"], np.int64), np.asarray(card["val"], np.int64)


def _require_nothing(run: Path) -> None:
    """A run that has saved nothing begins anew; one whose checkpoints cannot be gone on from does not."""
    there = sorted(p.name for p in (run / "checkpoints").glob("*") if not p.name.startswith("."))
    if there:
        raise UserError(
            f"{run / 'checkpoints'} holds {', '.join(there[-3:])}, but no whole checkpoint with its train_state.pt to go on from: "
            "restore one, or give another output_dir"
        )


def _require_same(run: Path, old: DictConfig, new: DictConfig) -> None:
    then, now = _flat(old), _flat(new)
    for key in sorted(then.keys() | now.keys()):
        kept = any(key == may or key.startswith(may + ".") for may in MAY_CHANGE)
        if kept or (key in then and key in now and then[key] == now[key]):
            continue
        if key not in then and _is_default(key, now[key]):  # the setting is younger than the run
            continue
        raise UserError(
            f"{run} holds a run with {key}={then.get(key)}, now it is {now.get(key)}: give another output_dir, or "
            + (f"{key}={then[key]}" if key in then else f"leave {key} out")
        )


def _is_default(key: str, value: Any) -> bool:
    """Whether some file of the project gives `key` this value."""
    if key.partition(".")[0] in SECTIONS:
        return OmegaConf.select(compose([]), key) == value
    for group in ("policy", "task", *PACKAGES):
        package = PACKAGES.get(group, group) + "."
        if key.startswith(package):
            files = (CONFIGS / group).glob("*.yaml")
            if any(_flat(OmegaConf.load(f), resolve=False).get(key.removeprefix(package)) == value for f in files):
                return True
    return False


def trained_on(card: dict[str, Any], demos: Demos) -> np.ndarray:
    """Those episodes of other demonstrations that a run was trained on, by their actions; none where it is too old to say."""
    known = {card["each"][i] for i in card["train"]} if "each" in card else set()
    return np.flatnonzero([name in known for name in _each(demos)])


def _each(demos: Demos) -> list[str]:
    """A name for each episode: its length and the actions that it begins, is half through and ends with."""
    ends = np.asarray(demos.episode_ends, "<i8")
    begin = np.insert(ends, 0, 0)[:-1]
    rows = np.stack([begin, (begin + ends) // 2, ends - 1], 1)
    every, where = np.unique(rows, return_inverse=True)
    actions = np.ascontiguousarray(demos.stream(ACTION)[every], "<f4")[where.reshape(rows.shape)]
    lengths = ends - begin
    return [hashlib.sha256(n.tobytes() + a.tobytes()).hexdigest()[:16] for n, a in zip(lengths, actions, strict=True)]


def _fingerprint(demos: Demos, n: int) -> str:
    """Of where the first n episodes end, and of the actions that each begins and ends with: all would take too long to read."""
    ends = np.ascontiguousarray(demos.episode_ends[:n], "<i8")
    rows = np.unique(np.concatenate([np.insert(ends, 0, 0)[:-1], ends - 1]))
    actions = np.ascontiguousarray(demos.stream(ACTION)[rows], "<f4")
    return hashlib.sha256(ends.tobytes() + actions.tobytes()).hexdigest()[:16]


def _flat(config: Any, prefix: str = "", resolve: bool = True) -> dict[str, Any]:
    out: dict[str, Any] = {}
    plain = OmegaConf.to_container(config, resolve=resolve) if isinstance(config, DictConfig) else config
    for key, value in plain.items():
        if isinstance(value, dict):
            out |= _flat(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value
    return out
