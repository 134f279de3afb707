"""Chains of windows for policies with memory: row i of a batch goes on where row i of the batch before ended.

An episode's windows are split into as many interleaved chains as there are rows between two chunks, so that every window
is trained on at the rhythm of acting (SeedPolicy, section 6 of the published reference). A slot walks one chain after
another; the policy's state is restarted where `reset` says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapreplace
from itertools import count
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Int
from torch.utils.data import DataLoader

from polyarm.datasets.windows import Windows, _parts, _Replay
from polyarm.spec import Clip, UserError


def split_chains(episode: Int[np.ndarray, " n"], step: int) -> list[np.ndarray]:
    """The chains of windows `0 .. n - 1`, window i being of `episode[i]`: episode after episode, in each offset after
    offset, every `step`-th window."""
    episodes = np.split(np.arange(len(episode)), np.flatnonzero(np.diff(episode)) + 1)
    return [mine[o::step] for mine in episodes for o in range(min(step, len(mine)))]


def walk(
    chains: list[np.ndarray], slots: int, length: int, rng: np.random.Generator, interval: int
) -> tuple[Int[np.ndarray, "length slots"], Bool[np.ndarray, "length slots"]]:
    """(the window of each slot at each time, whether the state is restarted before it).

    The chains are shuffled; a slot whose chain has ended takes the next one, and when none is left all are shuffled anew.
    The state is restarted at the start of a chain and every `interval` windows of it.
    """
    items, reset = np.empty((length, slots), np.int64), np.empty((length, slots), bool)
    free = [(0, slot) for slot in range(slots)]
    waiting: Iterator[np.ndarray] = iter(())
    while (first := free[0])[0] < length:
        begin, slot = first
        chain = next(waiting, None)
        if chain is None:
            waiting = iter([chains[i] for i in rng.permutation(len(chains))])
            chain = next(waiting)
        end = min(begin + len(chain), length)
        items[begin:end, slot] = chain[: end - begin]
        reset[begin:end, slot] = np.arange(end - begin) % interval == 0
        heapreplace(free, (end, slot))
    return items, reset


class ChainLoader:
    """`Loader` for policies with memory: batches without end of `batch_size` rows of k consecutive windows of a chain.

    The batch at step s is a pure function of (windows, batch_size, k, interval, seed, rank, world, s), and batches for k
    are those for k = 1 taken k at a time. All ranks together walk one row of slots, each its share. Every row is flagged at
    the first batch of an epoch, which has `steps_per_epoch` batches; about every window is seen once. Raises `UserError`
    where the windows do not fill one batch.
    """

    def __init__(
        self,
        windows: Windows,
        batch_size: int,
        *,
        k: int = 1,
        interval: int = 40,
        seed: int,
        rank: int = 0,
        world: int = 1,
        start_step: int = 0,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        if min(batch_size, k, interval) < 1 or not 0 <= rank < world:
            raise UserError(
                f"batch_size={batch_size}, k={k}, interval={interval}, rank {rank} of {world}: each must be at least 1, and "
                "the rank below the number of ranks"
            )
        self.windows, self.batch_size, self.k, self.interval = windows, batch_size, k, interval
        self.seed, self.rank, self.world, self.start_step = seed, rank, world, start_step
        self.chains = split_chains(windows.episode, windows.stride)
        self.steps_per_epoch = len(windows) // (batch_size * k * world)
        self._options: dict[str, Any] = {
            "num_workers": num_workers, "pin_memory": pin_memory, "persistent_workers": num_workers > 0,
            "generator": torch.Generator(),  # its own: one that is not given draws from the global one, as dropout does
        }  # fmt: skip

    def rows(self, step: int) -> tuple[Int[np.ndarray, "b k"], Bool[np.ndarray, "b k"]]:
        """(windows, reset flags) of the batch at `step`."""
        batch = next(self._batches(step))
        return batch[..., 0], batch[..., 1].astype(bool)

    def __iter__(self) -> Iterator[Clip]:
        if not self.steps_per_epoch:
            raise UserError(
                f"batch_size={self.batch_size} rows of {self.k} windows for {self.world} processes with "
                f"{len(self.windows)} windows: lower one of them, or give more episodes"
            )
        return self._read(_Replay(self._batches, self.start_step))

    def one_epoch(self) -> Iterator[Clip]:
        """About every window once, the same every time, with at most as many rows as there are chains."""
        slots = min(self.batch_size, len(self.chains))
        return self._read(list(self._epoch(0, slots, -(-len(self.windows) // (slots * self.k)))))

    def _read(self, batches: Any) -> Iterator[Clip]:
        loader = DataLoader(_Rows(self.windows), batch_sampler=batches, collate_fn=_parts, **self._options)
        return (Clip(*parts) for parts in loader)

    def _batches(self, start_step: int) -> Iterator[np.ndarray]:
        first, skip = divmod(start_step, self.steps_per_epoch)
        mine = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        for epoch in count(first):
            batches = self._epoch(epoch, self.batch_size * self.world, self.steps_per_epoch)
            yield from batches[skip if epoch == first else 0 :, mine]

    def _epoch(self, epoch: int, slots: int, steps: int) -> Int[np.ndarray, "steps slots k 2"]:
        """(window, reset flag) of every place of an epoch."""
        rng = np.random.default_rng([self.seed, epoch])
        table = np.stack(walk(self.chains, slots, steps * self.k, rng, self.interval), -1)
        return rearrange(table, "(steps k) slots both -> steps slots k both", k=self.k)


class _Rows(torch.utils.data.Dataset):
    """Single windows, read as rows of k and with flags of the walk: an item is [k 2]."""

    def __init__(self, windows: Windows) -> None:
        self.windows = windows

    def __getitems__(self, rows: Int[np.ndarray, "b k 2"]) -> Clip:
        rows = np.asarray(rows)
        clip = self.windows.__getitems__(rows[..., 0].reshape(-1))
        together = lambda x: rearrange(x, "(b k) 1 ... -> b k ...", k=rows.shape[1])
        obs = {name: together(x) for name, x in clip.obs.items()}
        return Clip(obs, together(clip.action), torch.from_numpy(rows[..., 1].astype(bool)))
