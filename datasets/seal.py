"""The attributes of a store under a checksum: what its numbers mean is damaged no less silently than they are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polyarm.datasets.chunks import read_json
from polyarm.datasets.demos import damaged
from polyarm.spec import Spec, UserError

VERSION = 2
"""Of the store's layout; what has no seal is version 1."""


def seal(attributes: Mapping[str, Any]) -> dict[str, Any]:
    text = json.dumps([VERSION, attributes], sort_keys=True)
    return {"version": VERSION, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def unseal(file: Path) -> tuple[dict[str, Any], bool]:
    """(attributes without the seal, whether there is one) of the group that `file`, its zarr.json, describes."""
    found = read_json(file)
    said = found.get("attributes")
    if (found.get("zarr_format"), found.get("node_type")) != (3, "group") or not isinstance(said, dict):
        raise damaged(file, "does not describe a group of zarr 3 with attributes")
    held = said.pop("seal", None)
    if held is None:
        if "spec" not in said:
            raise UserError(
                f"{file} has no spec, which says what the numbers mean: for the layout of diffusion_policy's replay buffer set "
                "task.demos._target_=polyarm.datasets.replay_buffer.open_replay_buffer; a store of polyarm's own is damaged, "
                "restore this file from a copy"
            )
        return said, False
    version = held.get("version") if isinstance(held, dict) else None
    if isinstance(version, int) and version > VERSION:
        raise UserError(f"{file} has version {version}, this polyarm reads {VERSION}: use the polyarm that wrote it")
    if held != seal(said):
        raise damaged(file, "does not match the checksum of its attributes")
    return said, True


def read_spec(data: Any, file: Path) -> Spec:
    try:
        return Spec.from_json(data, str(file.parent))
    except (KeyError, TypeError, AttributeError, IndexError) as e:
        raise damaged(file, f"holds a spec that cannot be read ({type(e).__name__}: {e})") from e
