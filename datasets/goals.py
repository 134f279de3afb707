"""Goals from the future of the same episode (hindsight relabelling, as BESO does it: Reuss et al., 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from polyarm.datasets.demos import Demos, Rows
from polyarm.datasets.windows import Windows
from polyarm.spec import Clip, Spec, UserError


def future(
    end: Int[np.ndarray, "*n"],
    stop: Int[np.ndarray, "*n"],
    length: int,
    share: Float[np.ndarray, "*n"],
    begin: Int[np.ndarray, "*n"] | int = 0,
) -> tuple[Int[np.ndarray, "*n g"], Bool[np.ndarray, "*n"]]:
    """(rows, given) of goals after windows that end before row `end`, in episodes of the rows begin .. stop - 1.

    A goal starts at one of the rows end .. stop - length - 1, all as likely as `share`, uniform in [0, 1), makes them. Where
    there is none, `given` is false and the rows are the episode's last; of a shorter episode the first repeats.
    """
    choices = stop - length - end
    given = choices > 0
    first = np.where(given, end + (share * choices).astype(np.int64), stop - length)
    return np.maximum(first[..., None] + np.arange(length), np.expand_dims(begin, -1)), given


def uniform(seed: int, epoch: Int[np.ndarray, "*n"], index: Int[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    """A number in [0, 1) for each (seed, epoch, index), the same on every machine and in any order (splitmix64)."""
    with np.errstate(over="ignore"):  # the arithmetic is modulo 2^64
        x = _mix(np.asarray(seed).astype(np.uint64))
        for part in (epoch, index):
            x = _mix(x ^ np.asarray(part).astype(np.uint64))
    return (x >> np.uint64(11)) * 2.0**-53


class Goals(torch.utils.data.Dataset):
    """Windows whose clips also hold goals: obs "goal.<stream>" [b k g ...] for every stream of `spec`, and "goal.given" [b k],
    false where what is left of the episode is too short for a goal.

    A goal lies after a window's first `after` rows: as published after all of it. With `last`, where nothing is left the goal
    is the episode's last rows: without, a policy of chunks would never learn with a goal how an episode ends.

    Item `epoch * len(windows) + i` is window i with the goal of that epoch: a pure function of (seed, epoch, i).
    """

    by_epoch = True

    def __init__(
        self, windows: Windows, demos: Demos, spec: Spec, *, length: int, seed: int,
        after: int | None = None, last: bool = False,
    ) -> None:  # fmt: skip
        if length < 1:
            raise UserError(f"goals of {length} rows: give 1 or more")
        self.windows, self.length, self.seed = windows, length, seed
        self.after, self.last = after, last
        self._begin, self._stop = (np.insert(demos.episode_ends, 0, 0)[windows.episode + i] for i in (0, 1))
        self._start = self._begin + windows.start
        self._streams: dict[str, Rows] = {}
        for stream in spec.obs.streams:
            rows = windows.rows(stream.name)  # in memory once, where the windows hold them
            if rows is None:
                rows = demos.stream(stream.name)
                rows = rows[:].astype(stream.dtype) if stream.low_dim else rows
            self._streams[stream.name] = rows

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, i: int) -> Clip:
        return self.__getitems__([i])

    def __getitems__(self, items: Sequence[int] | np.ndarray) -> Clip:
        """The batch of these items."""
        epoch, index = np.divmod(np.asarray(items), len(self))
        clip = self.windows.__getitems__(index)
        k, horizon = clip.action.shape[1:3]
        end = (
            self._start[index, None]
            + self.windows.stride * np.arange(k)
            + (horizon if self.after is None else self.after)
        )
        share = uniform(self.seed, np.repeat(epoch[:, None], k, 1), index[:, None] * k + np.arange(k))
        begin, stop = (np.repeat(x[index, None], k, 1) for x in (self._begin, self._stop))
        rows, given = future(end, stop, self.length, share, begin)
        given = given | self.last
        goals = {f"goal.{name}": torch.from_numpy(x[rows]) for name, x in self._streams.items()}
        return Clip(clip.obs | goals | {"goal.given": torch.from_numpy(given)}, clip.action, clip.reset)


def _mix(x: Any) -> Any:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
