"""Demonstrations with streams that are made of theirs, such as clouds of depth."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from math import prod
from typing import Any

import numpy as np

from polyarm.camera import require_rows
from polyarm.datasets.demos import Demos, Rows
from polyarm.derive import Derivation, derive, extended
from polyarm.progress import Bar
from polyarm.spec import Spec, Stream

MANY = 200
"""Rows of which a bar says how far they are."""


class Derived:
    """`demos` and the streams of `made`; a `Demos`. Raises UserError for a calibration among them that is none."""

    def __init__(self, demos: Demos, made: Mapping[str, Derivation]) -> None:
        self._demos, self.path = demos, getattr(demos, "path", None)
        where = str(self.path or "the demonstrations")
        self.spec: Spec = extended(demos.spec, made, where)
        for name in dict.fromkeys(name for how in made.values() for name in how.needs()):
            if demos.spec.obs[name].kind == "camera":
                require_rows(np.asarray(demos.stream(name)[:]), f"{where}: stream {name!r}")
        self._made = {name: MadeRows(self.spec.obs[name], how, demos) for name, how in made.items()}

    @property
    def episode_ends(self) -> np.ndarray:
        return self._demos.episode_ends

    def stream(self, name: str) -> Rows:
        return self._made[name] if name in self._made else self._demos.stream(name)

    def hold(self) -> None:
        """Make now what is kept in memory."""
        for rows in self._made.values():
            if rows.held:
                rows[:]


class MadeRows:
    """Rows that are made as they are read. Those `held` are made once."""

    def __init__(self, stream: Stream, how: Derivation, demos: Demos) -> None:
        self._name, self._how, self._ends = stream.name, how, demos.episode_ends
        self._sources: dict[str, Rows] = {name: demos.stream(name) for name in how.needs()}
        n = int(self._ends[-1]) if len(self._ends) else 0
        self.shape, self.dtype, self.held = (n, *stream.shape), np.dtype(stream.dtype), how.held
        if self.held:
            self._rows, self._there = np.empty(self.shape, self.dtype), np.zeros(n, bool)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        at = np.arange(len(self))[rows]
        if self.held:
            missing = np.unique(at)
            missing = missing[~self._there[missing]]
            self._make(missing, self._rows, missing)
            self._there[missing] = True  # after they are: another thread makes them too, alike
            return self._rows[at]
        each, which = np.unique(at, return_inverse=True)
        out = np.empty((len(each), *self.shape[1:]), self.dtype)
        self._make(each, out, np.arange(len(each)))
        return out[which.reshape(at.shape)]

    @property
    def nbytes(self) -> int:
        """What it takes to have these rows at hand: themselves where they are held, otherwise what they are made of."""
        parts = [self] if self.held else list(self._sources.values())
        return sum(prod(x.shape) * x.dtype.itemsize for x in parts)

    def in_memory(self) -> MadeRows:
        """These rows, with what they are made of in memory; those that are held are so anyway."""
        if self.held:
            return self
        other = copy(self)
        other._sources = {name: np.asarray(x[:]) for name, x in self._sources.items()}
        return other

    def _make(self, rows: np.ndarray, out: np.ndarray, at: np.ndarray, block: int = 64) -> None:
        with Bar(f"make {self._name}", len(rows), show=len(rows) > MANY) as bar:
            for i in range(0, len(rows), block):
                some = rows[i : i + block]
                read = {name: x[some] for name, x in self._sources.items()}
                for j, row in enumerate(some.tolist()):
                    seen = {name: x[j] for name, x in read.items()}
                    out[at[i + j]] = derive(self._name, self._how, seen, self._where(row))
                bar.at(i + len(some))

    def _where(self, row: int) -> str:
        episode = int(np.searchsorted(self._ends, row, "right"))
        return f" in row {row - int(np.insert(self._ends, 0, 0)[episode])} of episode {episode}"
