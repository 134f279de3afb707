"""A checkpoint is a folder that alone rebuilds its policy.

    config.yaml         the whole configuration
    model.safetensors   the weights that act (EMA where there is one), with hashes of themselves and of the texts
    spec.json           spaces with scales, versions, schema
    split.json          which episodes trained it and which were held out, and the fingerprint of those demonstrations
    train_state.pt      optimizer, schedules, generators, position: what resuming needs

It is written beside its place, flushed, then renamed: a folder with the final name is whole. A run keeps checkpoints/step_N;
the newest whole one is the run's, and the link checkpoints/last beside them is there for people.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError
from torch import Tensor
from yaml import YAMLError  # type: ignore[import-untyped]

from polyarm.config import SECTIONS, build, read_yaml, write_yaml
from polyarm.policies.policy import Policy, require_limit, require_policy
from polyarm.spec import Spec, UserError
from polyarm.trust import require_trusted

FILES = ("config.yaml", "model.safetensors", "spec.json")
SPLIT = "split.json"
"""Older checkpoints have it in their training state alone, and act without."""
STATE = "train_state.pt"
HASH = "sha256"
LITTER = re.compile(r"\.(.+)\.\d+\.(partial|old)")
"""What a killed save leaves: a folder half written, or the one it was about to replace."""


def save(
    folder: Path, config: Any, spec: Spec, weights: Mapping[str, Tensor], train_state: Mapping[str, Any] | None = None
) -> None:
    """Write a checkpoint folder at once or not at all. `config`: the composed configuration; `train_state["data"]`, where it is
    given: the split."""
    work, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{end}") for end in ("partial", "old"))
    try:
        _make(folder.parent)
        sweep(folder.parent)
        work.mkdir()
        _write(work, config, spec, weights, train_state)
        for file in work.iterdir():
            flush(file)
        flush(work)
        if folder.exists():  # the same step again after a resume
            folder.rename(old)
        work.rename(folder)
        flush(folder.parent)
    except (OSError, SafetensorError) as e:
        raise UserError(
            f"{folder} cannot be saved ({_reason(e)}): make room, or give another output_dir on a disk that can be written to; "
            "what was saved before stays"
        ) from e
    finally:
        sweep(folder.parent)


def load(folder: Path, config: Any | None = None, device: str | torch.device = "cpu") -> Policy:
    """The policy of a checkpoint, in eval mode. `config`: its configuration with changes that keep the weights'
    shapes, such as another sampler."""
    from polyarm.encoders.backbone import without_pretrained

    folder = find(folder)
    spec, weights, own = read_spec(folder), read_weights(folder), read_config(folder)
    try:
        with without_pretrained():
            policy = require_policy(build((config if config is not None else own).policy, spec))
        _require_weights(policy.state_dict(), weights, folder)
    except UserError as e:
        if _as_saved(folder, "config.yaml"):
            raise
        raise UserError(f"{folder / 'config.yaml'} is not as it was saved, and no longer gives its policy: {e}") from e
    policy.load_state_dict(weights)
    require_limit(policy)
    return policy.to(device).eval()


def find(path: Path) -> Path:
    """The checkpoint folder that `path` means: itself, or the newest whole one of a training run.

    A run's `checkpoints/last` means the same as the run. The link is only believed where it says that the newest checkpoint
    has lost a file.
    """
    path = Path(path)
    run = path.parent.parent if path.parent.name == "checkpoints" and path.name == "last" else path
    if run == path and not _missing(path):
        return path.resolve()
    last = run / "checkpoints" / "last"
    whole = steps(run)
    if last.is_symlink() and last.is_dir() and _missing(last) and not (whole and _number(whole[-1]) > _number(last)):
        path = last.resolve()
    elif whole:
        return whole[-1].resolve()
    elif not _missing(last):
        return last.resolve()
    if not os.path.exists(path):
        raise UserError(f"{path} does not exist: give the output_dir of a training run, or one of its checkpoints")
    if os.path.isdir(path) and not os.access(path, os.R_OK | os.X_OK):
        raise UserError(f"{path} may not be read by this user: change its permissions, or copy it")
    if any((path / name).exists() for name in FILES[1:]) or path.name.startswith("step_"):
        others = f", or use {whole[-1]}" if whole else ""
        raise UserError(f"the checkpoint {path} misses {', '.join(_missing(path))}: restore it{others}, or train again")
    raise UserError(
        f"{path} is no checkpoint (it needs {', '.join(FILES)}) and has none in checkpoints/: "
        "give the output_dir of a training run that has saved"
    )


def steps(run: Path) -> list[Path]:
    """The whole checkpoints of a training run, oldest first."""
    found = [p for p in (Path(run) / "checkpoints").glob("step_*") if _number(p) >= 0 and not _missing(p)]
    return sorted(found, key=_number)


def point_last(run: Path, folder: Path) -> None:
    """Make `checkpoints/last` a link to `folder`, where the drive has links; `find` does without."""
    link = run / "checkpoints" / ".last"
    try:
        link.unlink(missing_ok=True)
        link.symlink_to(folder.name)
        link.replace(run / "checkpoints" / "last")
    except (OSError, NotImplementedError):
        with suppress(OSError):
            link.unlink(missing_ok=True)


def prune(run: Path, keep: int = 2) -> None:
    """Remove what only resuming needs from all but the newest `keep` checkpoints that have it, and the litter of killed
    saves. All weights stay."""
    sweep(run / "checkpoints")
    for folder in [p for p in steps(run) if (p / STATE).exists()][:-keep]:
        with suppress(OSError):
            (folder / STATE).unlink()


def sweep(folder: Path) -> None:
    """Remove what killed saves left in `folder`; a checkpoint that one of them had moved aside goes back to its place."""
    for path in folder.glob(".*"):
        found = LITTER.fullmatch(path.name)
        if not found or not path.is_dir():
            continue
        if found[2] == "old" and not (place := folder / found[1]).exists():
            with suppress(OSError):
                path.rename(place)
        shutil.rmtree(path, ignore_errors=True)


def read_config(folder: Path, own: DictConfig | None = None) -> DictConfig:
    """The configuration that a checkpoint was trained with; refused if it names code that it may not (see `polyarm.trust`).
    `own`: the user's, who may name anything."""
    file = folder / "config.yaml"
    with _reading(file):
        config = read_yaml(file)
        require_trusted(config, f"the checkpoint {folder}", own)
        _notice(folder, "config.yaml")
        for section in ("task", "policy", *SECTIONS):
            if not isinstance(config.get(section), DictConfig):
                raise KeyError(f"settings under {section}")
    return config


def read_spec(folder: Path) -> Spec:
    file = folder / "spec.json"
    with _reading(file):
        data = json.loads(file.read_text())
        spec = Spec.from_json(data, str(file))
        _notice(folder, "spec.json")
    return spec


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The weights, held against the hash in their file; those without one are older than it."""
    from safetensors import safe_open

    file = folder / "model.safetensors"
    with _reading(file):
        file.open("rb").close()  # says in words what safetensors does not
        with safe_open(file, "pt") as f:
            about = f.metadata() or {}
            weights = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
        if about.keys() - {"format"} and about.pop(HASH, None) != digest(weights, about):
            raise ValueError("its bytes do not match its hash")
    return weights


def read_split(folder: Path) -> dict[str, Any] | None:
    """Which demonstrations a checkpoint stands on (`resume.data_card`); None where it does not say."""
    file = folder / SPLIT
    if not os.path.lexists(file):
        return read_train_state(folder).get("data") if (folder / STATE).is_file() else None
    with _reading(file):
        card = json.loads(file.read_text())
        if not isinstance(card, dict) or not isinstance(card["fingerprint"], str):
            raise TypeError("it is no split of demonstrations")
        both = [*card["train"], *card["val"]]
        if not all(isinstance(i, int) and 0 <= i < card["episodes"] for i in both) or len({*both}) < len(both):
            raise ValueError("its episodes are not a split of those that it counts")
        _notice(folder, SPLIT)
    return card


def read_train_state(folder: Path) -> dict[str, Any]:
    """What resuming needs, on the processor."""
    file = folder / STATE
    with _reading(file):
        with ZipFile(file) as archive:  # torch writes checksums and does not look at them
            if broken := archive.testzip():
                raise ValueError(f"its part {broken} does not match its checksum")
        state = torch.load(file, map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise TypeError("it is no training state")
    return state


def digest(weights: Mapping[str, Tensor], about: Mapping[str, str]) -> str:
    """sha256 over names, types, shapes and bytes of the weights, and over what is said beside them."""
    out = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(weights):
        x = weights[name].detach().cpu().contiguous()
        out.update(f"{name} {x.dtype} {list(x.shape)}\n".encode())
        out.update(x.reshape(-1).view(torch.uint8).numpy().data)
    return out.hexdigest()


def flush(path: Path) -> None:
    """Have the disk hold a file or a folder's entries before going on."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as e:
        if path.is_file() or e.errno not in (errno.EINVAL, errno.ENOTSUP):  # drives that flush no folders exist
            raise
    finally:
        os.close(handle)


def _write(
    work: Path, config: Any, spec: Spec, weights: Mapping[str, Tensor], train_state: Mapping[str, Any] | None
) -> None:
    from safetensors.torch import save_file

    write_yaml(work / "config.yaml", config)
    (work / "spec.json").write_text(json.dumps(spec.to_json(), indent=1))
    if train_state is not None and "data" in train_state:
        (work / SPLIT).write_text(json.dumps(train_state["data"]))
    plain = {name: x.detach().cpu().contiguous() for name, x in weights.items()}
    texts = {file.name: _hash(file) for file in sorted(work.iterdir())}
    save_file(plain, work / "model.safetensors", {**texts, HASH: digest(plain, texts)})
    if train_state is not None:
        try:
            torch.save(dict(train_state), work / STATE)
        except RuntimeError as e:  # how torch says that a disk is full
            raise OSError(errno.EIO, str(e).splitlines()[0]) from e


def _make(folder: Path) -> None:
    """The folder and those above it, their names flushed."""
    new = [p for p in (folder, *folder.parents) if not p.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in new:
        flush(path.parent)


def _hash(file: Path) -> str:
    with file.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _as_saved(folder: Path, text: str) -> bool:
    """Whether a text is the one that was saved beside the weights; older weights do not say."""
    from safetensors import safe_open

    try:
        with safe_open(folder / "model.safetensors", "pt") as f:
            wanted = (f.metadata() or {}).get(text)
    except (OSError, SafetensorError):  # said where the weights are read
        return True
    return wanted is None or wanted == _hash(folder / text)


def _notice(folder: Path, text: str) -> None:
    """People may edit a text; what acts then is said."""
    if not _as_saved(folder, text):
        _say(f"polyarm: {folder / text} is not as it was saved; it acts as it now stands")


@cache
def _say(text: str) -> None:
    """Once, however often a file is read."""
    print(text, file=sys.stderr)


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """What can be wrong with a checkpoint's file, in one sentence."""
    wrong = (
        *(OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, RuntimeError),
        *(pickle.UnpicklingError, BadZipFile, SafetensorError, YAMLError, OmegaConfBaseException),
    )
    try:
        yield
    except UserError:
        raise
    except wrong as e:
        raise UserError(
            f"{file} cannot be read ({_reason(e)}): restore it, use another checkpoint, or train again"
        ) from e


def _reason(e: Exception) -> str:
    """The first line of an error's text, without a path that the sentence has already."""
    text = (isinstance(e, OSError) and e.strerror) or str(e) or type(e).__name__
    text = f"it misses {text}" if isinstance(e, KeyError) else text
    return text.strip().splitlines()[0].rstrip(".:")


def _missing(folder: Path) -> list[str]:
    """Files that a checkpoint needs and `folder` does not have."""
    return [name for name in FILES if not os.path.isfile(folder / name)]


def _number(folder: Path) -> int:
    """The step of a folder step_N, or of a link to one; -1 of any other."""
    found = re.fullmatch(r"step_(\d+)", folder.resolve().name)
    return int(found[1]) if found else -1


def _require_weights(want: Mapping[str, Tensor], got: Mapping[str, Tensor], folder: Path) -> None:
    for name in want.keys() | got.keys():
        if name not in got:
            problem = f"misses the tensor {name!r} of its configuration"
        elif name not in want:
            problem = f"has the tensor {name!r}, which its configuration does not"
        elif want[name].shape != got[name].shape:
            problem = f"has {name!r} as {tuple(got[name].shape)}, its configuration asks {tuple(want[name].shape)}"
        else:
            continue
        raise UserError(f"{folder / 'model.safetensors'} {problem}: undo the change to policy.*, or train again")
