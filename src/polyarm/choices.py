"""Which yaml files there are to choose from: polyarm's own and those of `--configs`. Loads nothing heavy, for help is instant."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from polyarm.spec import UserError, unknown

CONFIGS = Path(__file__).parent / "configs"
_MORE = "POLYARM_CONFIGS"
"""Environment variable with the folders of `--configs`, one a line, so that processes which are started know them too."""


def sources() -> list[Path]:
    """Folders of yaml. Of two files of one name hydra takes the first folder's."""
    return [CONFIGS, *(Path(line) for line in os.environ.get(_MORE, "").splitlines())]


@contextmanager
def adding(folders: Sequence[Path]) -> Iterator[None]:
    """`with adding([folder]):` its yaml files are choices too, and its modules can be imported, by names that nothing else has; in
    this process and those it starts."""
    before, path = os.environ.get(_MORE), sys.path
    os.environ[_MORE] = "\n".join(str(folder) for folder in [*sources()[1:], *folders])
    sys.path = [*path, *map(str, folders)]
    try:
        yield
    finally:
        sys.path = path
        os.environ.pop(_MORE)
        if before is not None:
            os.environ[_MORE] = before


def groups() -> list[str]:
    """Names of the config groups: task, policy, ..."""
    return sorted({p.name for s in sources() for p in s.iterdir() if p.is_dir() and any(p.glob("*.yaml"))})


def options(group: str) -> list[str]:
    """Names of a group's files."""
    return sorted({p.stem for s in sources() for p in (s / group).glob("*.yaml")})


def find(group: str, name: str) -> Path:
    """The file `name` of a group."""
    if name not in options(group):
        error = unknown(group, name, options(group))
        raise (
            UserError(f"{error}; one of your own is found with --configs and its folder")
            if len(sources()) == 1
            else error
        )
    return next(file for s in sources() if (file := s / group / f"{name}.yaml").is_file())
