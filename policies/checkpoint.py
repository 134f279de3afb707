"""A checkpoint is a folder that alone rebuilds its policy.

    config.yaml         the whole configuration
    model.safetensors   the weights that act (EMA where there is one)
    spec.json           spaces with scales, versions, schema
    train_state.pt      optimizer, schedules, generators, position: what resuming needs

It is written beside its place, flushed, then renamed: a folder with the final name is whole.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polyarm.config import build, read_yaml, write_yaml
from polyarm.policies.policy import Policy, require_limit, require_policy
from polyarm.spec import Spec, UserError

FILES = ("config.yaml", "model.safetensors", "spec.json")


def save(
    folder: Path, config: Any, spec: Spec, weights: Mapping[str, Tensor], train_state: Mapping[str, Any] | None = None
) -> None:
    """Write a checkpoint folder at once or not at all. `config`: the composed configuration."""
    from safetensors.torch import save_file

    folder.parent.mkdir(parents=True, exist_ok=True)
    work = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    write_yaml(work / "config.yaml", config)
    (work / "spec.json").write_text(json.dumps(spec.to_json(), indent=1))
    save_file({name: x.detach().cpu().contiguous() for name, x in weights.items()}, work / "model.safetensors")
    if train_state is not None:
        torch.save(dict(train_state), work / "train_state.pt")
    for file in work.iterdir():
        with file.open("rb") as f:
            os.fsync(f.fileno())
    if folder.exists():  # the same step again after a resume: same content, so the older may go
        shutil.rmtree(folder)
    work.rename(folder)


def load(folder: Path, config: Any | None = None, device: str | torch.device = "cpu") -> Policy:
    """The policy of a checkpoint, in eval mode. `config`: its configuration with changes that keep the weights'
    shapes, such as another sampler."""
    from safetensors.torch import load_file

    from polyarm.encoders.backbone import without_pretrained

    folder = find(folder)
    spec = read_spec(folder)
    with without_pretrained():
        policy = require_policy(
            build((config if config is not None else read_yaml(folder / "config.yaml")).policy, spec)
        )
    weights = load_file(folder / "model.safetensors")
    _require_weights(policy.state_dict(), weights, folder)
    policy.load_state_dict(weights)
    require_limit(policy)
    return policy.to(device).eval()


def find(path: Path) -> Path:
    """The checkpoint folder that `path` means: itself, or the last one of a training run."""
    path = Path(path)
    for folder in (path, path / "checkpoints" / "last"):
        if all((folder / name).is_file() for name in FILES):
            return folder.resolve()
    if not path.exists():
        raise UserError(f"{path} does not exist: give the output_dir of a training run, or one of its checkpoints")
    raise UserError(
        f"{path} is no checkpoint (it needs {', '.join(FILES)}) and has no checkpoints/last: "
        "give the output_dir of a training run that has saved"
    )


def read_spec(folder: Path) -> Spec:
    where = str(folder / "spec.json")
    try:
        return Spec.from_json(json.loads((folder / "spec.json").read_text()), where)
    except (json.JSONDecodeError, KeyError, TypeError) as e:
        raise UserError(f"{where} cannot be read ({e!r}): restore it, or train again") from e


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
