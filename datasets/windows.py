"""Training windows of demonstrations, a batch at a time, in an order that is a pure function of (seed, epoch, rank, world).

A window of horizon Tp starts at time t - To + 1 of the newest observation t: obs = window[:To], action = window[:Tp]
(Diffusion Policy, section 1 of the published reference). Where it sticks out of its episode, the first or last frame repeats.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from itertools import count
from math import prod
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.data import DataLoader

from polyarm.datasets.demos import ACTION, Demos, Rows
from polyarm.datasets.derived import MadeRows
from polyarm.spec import CACHED, FRAMES, Clip, Spec, Stream, UserError


def split_episodes(
    n: int, val_ratio: float, seed: int, max_train_episodes: int | None = None
) -> tuple[Int[np.ndarray, " train"], Int[np.ndarray, " val"]]:
    """(training, held-out) episodes of `n`, both rising; the published split, so that figures compare."""
    n_val = min(max(1, round(n * val_ratio)), n - 1) if val_ratio > 0 else 0
    val = np.sort(np.random.default_rng(seed).choice(n, n_val, replace=False)) if n_val > 0 else np.arange(0)
    train = np.setdiff1d(np.arange(n), val)
    if max_train_episodes is not None and max_train_episodes < len(train):
        if max_train_episodes < 1:
            raise UserError(f"max_train_episodes={max_train_episodes}: give at least 1, or null for all")
        train = np.sort(np.random.default_rng(seed).choice(train, max_train_episodes, replace=False))
    return train, val


def window_starts(
    episode_ends: np.ndarray,
    span: int,
    pad_before: int,
    pad_after: int,
    episodes: Sequence[int] | np.ndarray | None = None,
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """(episode, first row counted from the episode's start) of every window of `span` rows, episode after episode.

    Starts go from -pad_before to length - span + pad_after, so the first and the last windows stick out.
    """
    lengths = np.diff(episode_ends, prepend=0)
    chosen = np.arange(len(lengths)) if episodes is None else np.unique(np.asarray(episodes, np.int64))
    if len(chosen) and not 0 <= chosen[0] <= chosen[-1] < len(lengths):
        raise UserError(f"episodes {chosen[0]} to {chosen[-1]}: there are {len(lengths)}, counted from 0")
    counts = np.maximum(lengths[chosen] - span + pad_after + pad_before + 1, 0)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(chosen, counts), within - pad_before


def window_table(
    episode_ends: np.ndarray,
    horizon: int,
    pad_before: int,
    pad_after: int,
    episodes: Sequence[int] | np.ndarray | None = None,
) -> Int[np.ndarray, "n 4"]:
    """(buf_start, buf_end, samp_start, samp_end) of every window, as published: rows buf_start to buf_end of the data are the
    window's rows samp_start to samp_end; the rest repeats the nearest. Both pads are cut to 0 .. horizon - 1."""
    before, after = np.clip([pad_before, pad_after], 0, horizon - 1)
    episode, start = window_starts(episode_ends, horizon, int(before), int(after), episodes)
    lengths = np.diff(episode_ends, prepend=0)
    low, high = np.maximum(start, 0), np.minimum(start + horizon, lengths[episode])
    begin = (episode_ends - lengths)[episode]
    return np.stack([low + begin, high + begin, low - start, high - start], 1)


class Windows(torch.utils.data.Dataset):
    """Every window of some episodes; an item is a chain of k windows, `stride` rows apart in one episode.

    pad_before = To - 1 and, as published, pad_after = Ta - 1 unless told otherwise. The last Tp - Ta observations of an
    episode are then never the newest one of a window: a policy that replans there meets what it was not trained on (an arm
    that has just let go and still has to retreat stands still). pad_after = Tp - To gives every observation its window. A chain
    whose last window would start later than an episode's last window is left out; `short` lists episodes that have none.
    `reset` is true for a window with no other one `stride` rows before it: the first that acting meets, whatever its phase.

    Low-dim streams and the action are held as float32. Images stay uint8, in memory while all of them fit `ram_gib`,
    otherwise they are read for each batch. `cached`: {stream: features [N c]} that take the place of a stream's rows, under
    `CACHED` and its name.
    """

    by_epoch = False

    def __init__(
        self,
        demos: Demos,
        spec: Spec,
        episodes: Sequence[int] | np.ndarray | None = None,
        *,
        horizon: int,
        n_obs_steps: int,
        n_action_steps: int,
        k: int = 1,
        stride: int | None = None,
        pad_after: int | None = None,
        ram_gib: float = 4.0,
        cached: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self.stride = n_action_steps if stride is None else stride
        if not 1 <= n_obs_steps <= horizon or not 1 <= n_action_steps <= horizon or k < 1 or self.stride < 1:
            raise UserError(
                f"horizon={horizon}, n_obs_steps={n_obs_steps}, n_action_steps={n_action_steps}, k={k}, stride={self.stride}: "
                "each must be at least 1, and horizon the largest of the first three"
            )
        self.pad = n_obs_steps - 1
        self._pad_after = n_action_steps - 1 if pad_after is None else min(pad_after, horizon - 1)
        chain = self.stride * np.arange(k)[:, None]
        self._obs_steps, self._action_steps = chain + np.arange(n_obs_steps), chain + np.arange(horizon)
        self._k_steps = chain[:, 0]
        self._ends = demos.episode_ends
        self._choose(episodes)
        self._action = _in_memory(demos.stream(ACTION), np.dtype("f4"))
        cached = cached or {}
        seen = [s for s in spec.obs.streams if s.name not in cached]
        self._obs = _load(demos, seen, ram_gib) | {CACHED + name: x for name, x in cached.items()}
        self._dear = any(s.dear for s in seen)

    def over(self, episodes: Sequence[int] | np.ndarray | None) -> Windows:
        """The windows of other episodes, cut alike. What is in memory is shared."""
        other = copy(self)
        other._choose(episodes)
        return other

    def rows(self, stream: str) -> Rows | None:
        """All rows of a stream, in memory where they fit; None for one that is not seen."""
        return self._obs.get(stream)

    def left_out(self) -> str:
        """A sentence that names the episodes without a window, or "" where every one has some."""
        if not len(self.short):
            return ""
        names = ", ".join(map(str, self.short[:10])) + (", ..." if len(self.short) > 10 else "")
        longest = np.diff(self._ends, prepend=0)[self.short].max()
        horizon = self._action_steps.shape[1]
        padded = self._pad_after >= horizon - self.pad - 1
        remedy = (
            "lower k or horizon, or give longer episodes"
            if padded
            else "lower policy.horizon or give data.pad_after=all"
        )
        return (
            f"{len(self.short)} of {self._asked} episodes are left out, shorter than a window (episodes {names}; at most {longest} "
            f"rows, {self._span() - self.pad - self._pad_after} are needed): {remedy}"
        )

    def _span(self) -> int:
        k, horizon = self._action_steps.shape
        return horizon + (k - 1) * self.stride

    def _choose(self, episodes: Sequence[int] | np.ndarray | None) -> None:
        ends, (k, horizon) = self._ends, self._action_steps.shape
        self.episode, self.start = window_starts(ends, self._span(), self.pad, self._pad_after, episodes)
        asked = np.arange(len(ends)) if episodes is None else np.unique(episodes)
        self.short, self._asked = np.setdiff1d(asked, self.episode), len(asked)
        if not len(self.start):
            longest = np.diff(ends, prepend=0)[asked].max(initial=0)
            raise UserError(
                f"no episode holds {k} windows of {horizon} rows {self.stride} apart: the longest of {len(asked)} has {longest} "
                "rows; lower k or horizon, or give longer episodes"
            )
        self._begin, self._last = np.insert(ends, 0, 0)[self.episode], ends[self.episode] - 1

    def __len__(self) -> int:
        return len(self.start)

    def __getitem__(self, i: int) -> Clip:
        return self.__getitems__([i])

    def __getitems__(self, items: Sequence[int] | np.ndarray) -> Clip:
        """The batch of these items: obs {stream: [b k o ...]}, action [b k h d], reset [b k]. With pictures or clouds obs has the row
        of every frame too, as `FRAMES` [b k o], by which those that come twice are known."""
        items = np.asarray(items)
        start, begin, last = (
            self.start[items, None, None],
            self._begin[items, None, None],
            self._last[items, None, None],
        )
        first = begin + start
        at_obs = np.clip(first + self._obs_steps, begin, last)
        at_action = np.clip(first + self._action_steps, begin, last)
        obs = {name: torch.from_numpy(_take(x, at_obs)) for name, x in self._obs.items()}
        if self._dear:
            obs[FRAMES] = torch.from_numpy(at_obs)
        reset = self.start[items, None] + self._k_steps - self.stride < -self.pad
        return Clip(obs, torch.from_numpy(_take(self._action, at_action)), torch.from_numpy(reset))


def order(
    n: int, seed: int, epoch: int, rank: int = 0, world: int = 1, neighbours: int = 1
) -> Int[np.ndarray, " share"]:
    """The items that `rank` sees in `epoch`, in order: the ranks share out one permutation of range(n), in which runs of
    `neighbours` items, cut anew in every epoch, stay together."""
    rng = np.random.default_rng([seed, epoch])
    if neighbours == 1:
        return rng.permutation(n)[rank::world]
    shift = rng.integers(neighbours)
    runs = rng.permutation(-(-(n + shift) // neighbours)) * neighbours - shift
    items = (runs[:, None] + np.arange(neighbours)).ravel()
    return items[(items >= 0) & (items < n)][rank::world]


@runtime_checkable
class Items(Protocol):
    """What a loader reads: whole batches by item numbers. `Windows` is one; where `by_epoch`, item `epoch * len + i` is item i
    as that epoch has it (`datasets.goals`)."""

    by_epoch: bool

    def __len__(self) -> int: ...

    def __getitems__(self, items: Sequence[int] | np.ndarray) -> Clip: ...


class Loader:
    """Batches without end: the one at step s is a pure function of (windows, batch_size, seed, rank, world, s).

    `Loader(..., start_step=s)` therefore goes on exactly where another stopped, without reading what came before. An epoch
    has `steps_per_epoch` whole batches on every rank; what is left over differs from epoch to epoch. Raises `UserError` for
    a batch larger than a rank's share, unless `partial`: then `one_epoch` gives what there is.
    """

    def __init__(
        self,
        windows: Items,
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world: int = 1,
        start_step: int = 0,
        num_workers: int = 0,
        pin_memory: bool = False,
        partial: bool = False,
        neighbours: int = 1,
    ) -> None:
        share = len(windows) // world
        if batch_size < 1 or not (0 <= rank < world) or (share < batch_size and not partial):
            raise UserError(
                f"batch_size={batch_size} for rank {rank} of {world} with {len(windows)} windows, {share} a rank: "
                f"give a batch_size from 1 to {share}, or more episodes"
            )
        self.windows, self.batch_size, self.seed, self.rank, self.world = windows, batch_size, seed, rank, world
        self.start_step, self.steps_per_epoch, self.neighbours = start_step, share // batch_size, neighbours
        self._options: dict[str, Any] = {
            "num_workers": num_workers, "pin_memory": pin_memory, "persistent_workers": num_workers > 0,
            "generator": torch.Generator(),  # its own: one that is not given draws from the global one, as dropout does
        }  # fmt: skip

    def items(self, step: int) -> Int[np.ndarray, " b"]:
        """The windows of the batch at `step`."""
        return next(self._batches(step))

    def __iter__(self) -> Iterator[Clip]:
        if not self.steps_per_epoch:
            raise UserError(
                f"batch_size={self.batch_size} with {len(self.windows)} windows: lower it, or use one_epoch"
            )
        return self._read(_Replay(self._batches, self.start_step))

    def one_epoch(self) -> Iterator[Clip]:
        """This rank's share of the windows once, the same every time; the last batch may be smaller."""
        mine = order(len(self.windows), self.seed, 0, self.rank, self.world)
        return self._read([mine[i : i + self.batch_size] for i in range(0, len(mine), self.batch_size)])

    def _read(self, batches: Any) -> Iterator[Clip]:
        loader: Any = DataLoader(cast(Any, self.windows), batch_sampler=batches, collate_fn=_parts, **self._options)
        return (Clip(*parts) for parts in loader)

    def _batches(self, start_step: int) -> Iterator[np.ndarray]:
        first, skip = divmod(start_step, self.steps_per_epoch)
        for epoch in count(first):
            mine = order(len(self.windows), self.seed, epoch, self.rank, self.world, self.neighbours)
            mine = mine + epoch * len(self.windows) if self.windows.by_epoch else mine
            for i in range(skip if epoch == first else 0, self.steps_per_epoch):
                yield mine[i * self.batch_size : (i + 1) * self.batch_size]


class _Replay:
    """An iterable that calls its generator function anew each time, as a batch sampler must."""

    def __init__(self, generate: Any, *arguments: Any) -> None:
        self.generate, self.arguments = generate, arguments

    def __iter__(self) -> Iterator[np.ndarray]:
        return self.generate(*self.arguments)


def _parts(clip: Any) -> tuple[dict[str, Tensor], Float[Tensor, "b k h d"], Bool[Tensor, "b k"]]:
    """A clip as what torch knows how to pin."""
    return clip.obs, clip.action, clip.reset


def _take(x: Rows, rows: np.ndarray) -> np.ndarray:
    return np.take(x, rows, axis=0) if isinstance(x, np.ndarray) else x[rows]


def _load(demos: Demos, streams: Sequence[Stream], ram_gib: float) -> dict[str, Rows]:
    """Low-dim streams in memory; the others too if together they fit."""
    big = {s.name: demos.stream(s.name) for s in streams if not s.low_dim}
    fits = sum(_nbytes(x) for x in big.values()) <= ram_gib * 2**30
    return {
        s.name: _in_memory(demos.stream(s.name), np.dtype(s.dtype)) if s.low_dim or fits else big[s.name]
        for s in streams
    }


def _nbytes(rows: Rows) -> int:
    return rows.nbytes if isinstance(rows, MadeRows) else prod(rows.shape) * rows.dtype.itemsize


def _in_memory(rows: Rows, dtype: np.dtype, block: int = 1024) -> Rows:
    """All rows; block by block, since the file may hold images as floats four times their size. Of those that are made, what they
    are made of."""
    if isinstance(rows, MadeRows):
        return rows.in_memory()
    out = np.empty(rows.shape, dtype)
    for i in range(0, len(rows), block):
        out[i : i + block] = rows[i : i + block]
    return out
