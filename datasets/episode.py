"""An episode on its way into a store: what its rows must be, whether they come at once or in pieces."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from polyarm.camera import metres, require_rows
from polyarm.datasets.demos import ACTION, TIME_S, checked, one_length
from polyarm.spec import Spec, UserError, unknown

PIXELS = 1 << 17
"""Of a piece's depth that are looked at."""


class Episode:
    """An episode that is being written; `success` may be set until it is whole. Made by `Store.episode`."""

    def __init__(self, spec: Spec, success: bool, put: Callable[[Mapping[str, np.ndarray]], None]) -> None:
        self.success, self.rows = success, 0
        self._spec, self._put, self._last_s = spec, put, -np.inf
        self._dark = {s.name for s in spec.obs.streams if s.kind == "depth"}  # that measured nothing so far

    def add(self, arrays: Mapping[str, Any]) -> None:
        """The next rows: every stream of the spec, "action" and "time_s", `[t, ...]` each."""
        rows = _checked(arrays, self._spec, self.rows)
        _require_rising(rows[TIME_S], self._last_s, self.rows)
        self._dark -= {name for name in self._dark if rows[name].any()}
        self.rows, self._last_s = self.rows + len(rows[ACTION]), rows[TIME_S][-1]
        self._put(rows)

    def require_whole(self) -> None:
        if not self.rows:
            raise UserError("the episode has 0 rows: an episode needs at least one")
        for name in self._dark:
            raise UserError(
                f"{name!r} is 0 in all {self.rows} rows, nothing was measured: check the camera, or leave it out"
            )


def checked_episode(arrays: Mapping[str, Any], spec: Spec) -> dict[str, np.ndarray]:
    """A whole episode as the store keeps it. Raises `UserError` for what the store would refuse."""
    taken: dict[str, np.ndarray] = {}
    episode = Episode(spec, True, taken.update)
    episode.add(arrays)
    episode.require_whole()
    return taken


def layout(spec: Spec) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """{array: (shape of one row, dtype)}"""
    arrays = {s.name: (s.shape, np.dtype(s.dtype)) for s in spec.obs.streams}
    for taken in (ACTION, TIME_S):
        if taken in arrays:
            raise UserError(f"an observation stream is called {taken!r}: that name is taken, choose another")
    return arrays | {ACTION: ((spec.action.width,), np.dtype("f4")), TIME_S: ((), np.dtype("f8"))}


def _checked(arrays: Mapping[str, Any], spec: Spec, before: int) -> dict[str, np.ndarray]:
    """The rows behind `before` others."""
    want = layout(spec)
    for name in arrays:
        if name not in want:
            raise unknown("stream of an episode", name, want)
    for name in want:
        if name not in arrays:
            raise UserError(f"the episode has no {name!r}: give {', '.join(want)}")
    rows = {name: checked(f"{name!r}", arrays[name], *of, before=before) for name, of in want.items()}
    one_length((name, len(x)) for name, x in rows.items())
    for stream in spec.obs.streams:
        if stream.kind == "camera":
            require_rows(rows[stream.name], repr(stream.name))
        if stream.kind == "depth":
            _require_depth(stream.name, rows[stream.name])
    return rows


def _require_rising(time_s: np.ndarray, last_s: float, before: int) -> None:
    t = np.insert(time_s, 0, last_s)
    late = np.flatnonzero(np.diff(t) <= 0)
    if late.size:
        i = late[0]
        raise UserError(
            f"'time_s' goes from {t[i]:g} to {t[i + 1]:g} s at row {before + i}: give the measured time, which rises"
        )


def _require_depth(name: str, x: np.ndarray) -> None:
    """Refuse whole numbers that are no millimetres."""
    try:
        metres(x.reshape(1, -1)[:, :: max(1, x.size // PIXELS)], "mm")
    except UserError as e:
        raise UserError(f"{name!r}: {e}") from None
