"""Demonstrations whose rows are keyposes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from polyarm.datasets.demos import ACTION, Demos, Rows
from polyarm.keypose import Hand, Keyposes, found, hand, lined
from polyarm.spec import Spec, UserError


class Keyposed:
    """`demos` at their keyposes; a `Demos`. The rows of an episode are its first frame and its keyposes. The action of a row is
    the next one: the pose that the hand reached there, and the opening that it was then told and kept; of the last row, the
    last one itself. Raises UserError for demonstrations whose actions are no poses."""

    def __init__(self, demos: Demos, how: Keyposes) -> None:
        self._demos, self.path = demos, getattr(demos, "path", None)
        where = str(self.path or "the demonstrations")
        of, ends = hand(demos.spec, how.tip, where), demos.episode_ends
        self.spec: Spec = replace(demos.spec, action=replace(demos.spec.action, kind="keypose"))
        action = demos.stream(ACTION)[:].astype(np.float64)
        opening = action[:, of.opening[0]] if of.opening else np.zeros(len(action))
        # half open is the middle of what is told, so that fingers which are told to move slowly change once
        is_open = opening > (opening.min() + opening.max()) / 2 if len(opening) else opening > 0
        each = [begin + frames for begin, frames in _frames(demos, how, of, is_open, where)]
        self._at = np.concatenate([*each, np.empty(0, np.int64)])
        self._ends = np.cumsum([len(rows) for rows in each], dtype=np.int64)
        self._action = np.zeros((len(self._at), action.shape[1]), np.float32)
        to = np.minimum(np.arange(len(self._at)) + 1, np.repeat(self._ends, np.diff(self._ends, prepend=0)) - 1)
        tip, settled = demos.stream(how.tip)[:], _settled(is_open, self._at, ends)
        for row, frame, rest in zip(self._action, self._at[to], settled[to], strict=True):
            of.told.write(of.shown.pose(tip[frame]), row)
            row[list(of.opening)] = action[rest, list(of.opening)]

    @property
    def episode_ends(self) -> np.ndarray:
        return self._ends

    def stream(self, name: str) -> Rows:
        return self._action if name == ACTION else Picked(self._demos.stream(name), self._at)


class Picked:
    """Some of the rows, read as they are asked for."""

    def __init__(self, rows: Rows, at: Int[np.ndarray, "n"]) -> None:
        self._rows, self._at = rows, at
        self.shape, self.dtype = (len(at), *rows.shape[1:]), rows.dtype

    def __len__(self) -> int:
        return len(self._at)

    def __getitem__(self, rows: Any) -> np.ndarray:
        at = self._at[rows]
        return self._rows[at] if at.ndim else self._rows[at[None]][0]


def _frames(demos: Demos, how: Keyposes, of: Hand, is_open: Bool[np.ndarray, "n"], where: str) -> Any:
    """(first row, keyposes counted from it and the first frame) of each episode."""
    marks = None if how.marks is None else demos.stream(how.marks)[:]
    tip = demos.stream(how.tip)[:]
    joints = np.empty((len(is_open), 0)) if how.joints is None else _turning(demos, how.joints, where)
    for begin, end in zip(np.insert(demos.episode_ends, 0, 0)[:-1], demos.episode_ends, strict=True):
        rows = slice(int(begin), int(end))
        if marks is not None:
            frames = [*np.flatnonzero(marks[rows].reshape(end - begin, -1)[:, 0] > 0.5), end - begin - 1]
        else:
            q = joints[rows].astype(np.float64)
            speed = np.gradient(q, 1 / demos.spec.obs.rate_hz, axis=0) if len(q) > 1 else np.zeros_like(q)
            frames = found(speed, is_open[rows], how.slow_rad_s)
        frames = np.unique([0, *frames]).tolist()
        if how.line_m is not None:
            frames = lined(tip[rows][:, of.shown.xyz].astype(np.float64), frames, how.line_m)
        yield begin, np.array(frames, np.int64)


def _turning(demos: Demos, name: str, where: str) -> np.ndarray:
    """Of a stream, the channels that are angles."""
    stream = demos.spec.obs[name]
    angles = [i for i, unit in enumerate(stream.units) if unit == "rad"]
    if not angles:
        raise UserError(
            f"stream {name!r} of {where} has no channel in rad: name the one with the joints as task.keyposes.joints, or null"
        )
    return demos.stream(name)[:][:, angles]


def _settled(
    is_open: Bool[np.ndarray, "n"], at: Int[np.ndarray, "m"], ends: Int[np.ndarray, "e"]
) -> Int[np.ndarray, "m"]:
    """The last frame before the next of `at`, or before the fingers change again, or the episode's end."""
    changes = np.flatnonzero(np.diff(is_open)) + 1
    stops = np.unique([*at, *changes, *ends])
    return stops[np.searchsorted(stops, at, "right")] - 1
