"""Several sets of demonstrations read as one, episodes end to end: one policy for several tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import numpy as np

from polyarm.datasets.demos import Demos, Rows
from polyarm.spec import Spec, UserError, require_actions


class Joined:
    """A `Demos` of `parts`, with the streams that all of them hold alike and the versions that they share. Raises UserError where
    actions mean something else, and where no stream is common."""

    def __init__(self, parts: Sequence[Demos]) -> None:
        self._parts, self.path = list(parts), getattr(parts[0], "path", None)
        self.spec: Spec = reduce(_common, self._parts[1:], self._parts[0].spec)
        frames = [int(part.episode_ends[-1]) if len(part.episode_ends) else 0 for part in parts]
        first = np.cumsum([0, *frames[:-1]])
        ends = [part.episode_ends + at for part, at in zip(parts, first, strict=True)]
        self.episode_ends: np.ndarray = np.concatenate(ends)

    def stream(self, name: str) -> Rows:
        return JoinedRows([part.stream(name) for part in self._parts])


class JoinedRows:
    """Rows of several, end to end."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        self._parts, self._ends = list(parts), np.cumsum([len(part) for part in parts])
        self.shape, self.dtype = (int(self._ends[-1]), *parts[0].shape[1:]), parts[0].dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        at = np.arange(len(self))[rows]
        flat = at.reshape(-1)
        owner = np.searchsorted(self._ends, flat, "right")
        out = np.empty((len(flat), *self.shape[1:]), self.dtype)
        for i, part in enumerate(self._parts):
            mine = np.flatnonzero(owner == i)
            if len(mine):
                out[mine] = part[flat[mine] - (self._ends[i] - len(part))]
        return out.reshape((*at.shape, *self.shape[1:]))


def _common(spec: Spec, part: Demos) -> Spec:
    where, other = str(getattr(part, "path", "other demonstrations")), part.spec
    require_actions(spec.action, other.action, "the first of the demonstrations", where)
    alike = [s for s in spec.obs.streams if s in other.obs.streams]
    if not alike:
        raise UserError(
            f"{where} holds {', '.join(other.obs.names)}, none of them as the others hold it: join demonstrations of like worlds"
        )
    versions = {name: v for name, v in spec.versions.items() if other.versions.get(name) == v}
    return replace(spec, obs=replace(spec.obs, streams=tuple(alike)), versions=versions)
