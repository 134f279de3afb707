"""Which seeds of an evaluation are in the demonstrations: only the others are fresh."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from polyarm.datasets.store import Store
from polyarm.spec import UserError


def demonstrated(tasks: Sequence[DictConfig], seeds: Sequence[int]) -> list[int] | None:
    """Those of `seeds` that are in the demonstrations of one of these tasks; None where one's are not there to be asked. People
    demonstrate in no seed: the field's files hold none."""
    held: set[int] = set()
    paths = [Path(str(p)).expanduser() for t in tasks for p in (t.demos.get("path"), *(t.demos.get("also") or ()))]
    for path in paths:
        if (path / "zarr.json").is_file():
            try:
                held |= set(Store.open(path).seeds.tolist())
            except UserError:
                return None
        elif not path.exists():
            return None
    return [seed for seed in seeds if seed in held]
