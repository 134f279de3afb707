"""The store's way to the disk: what is written is settled, what is read is read without detours, one process writes."""

from __future__ import annotations

import fcntl
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numcodecs import blosc  # type: ignore[import-untyped]
from zarr.storage import LocalStore

from polyarm.spec import UserError


class ChunkRows:
    """Rows of one array of a store, `[N, ...]`.

    Row numbers are read chunk by chunk straight from the files: going through zarr costs some 0.25 ms a chunk, ten times
    what it takes to decode four frames of 96 px.
    """

    def __init__(self, array: zarr.Array, folder: Path, n: int) -> None:
        self._array, self._folder = array, folder
        self.shape, self.dtype = (n, *array.shape[1:]), array.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """A slice, or whole row numbers of any shape."""
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            return self._array[start : max(start, stop)][::step]
        rows = np.asarray(rows)
        if rows.size and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of {len(self)}")
        chunk, within = np.divmod(rows.reshape(-1), self._array.chunks[0])
        out = np.empty((rows.size, *self.shape[1:]), self.dtype)
        order = np.argsort(chunk, kind="stable")
        for group in np.split(order, np.flatnonzero(np.diff(chunk[order])) + 1) if rows.size else ():
            out[group] = self._chunk(int(chunk[group[0]]))[within[group]]
        return out.reshape(*rows.shape, *self.shape[1:])

    def _chunk(self, i: int) -> np.ndarray:
        try:
            raw = (self._folder / "c" / "/".join(map(str, (i, *(0 for _ in self.shape[1:]))))).read_bytes()
        except FileNotFoundError:  # zarr writes no chunk that is all zero
            return np.zeros(self._array.chunks, self.dtype)
        return np.frombuffer(blosc.decompress(raw), self.dtype).reshape(self._array.chunks)


class Disk(LocalStore):
    """zarr's folder store, which renames complete files into place, and remembers them so that `settle` can fsync them."""

    @cached_property
    def _touched(self) -> set[Path]:
        return set()

    async def set(self, key: str, value: Any) -> None:
        await super().set(key, value)
        self._touched.add(self.root / key)

    def set_sync(self, key: str, value: Any) -> None:
        super().set_sync(key, value)
        self._touched.add(self.root / key)

    def settle(self) -> None:
        """Whatever was written is on the disk when this returns, with the folders that name it."""
        folders = {folder for file in self._touched for folder in file.parents if folder.is_relative_to(self.root)}
        list(_pool().map(fsync, (*self._touched, *folders)))
        self._touched.clear()


@cache
def _pool() -> ThreadPoolExecutor:
    """For calls to fsync: those that wait together share one commit of the file system's journal (1.5 ms, not 60)."""
    return ThreadPoolExecutor(16)


def fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def lock_folder(path: Path) -> int:
    """The one writer's lock: the kernel drops it with the process, so a dead one leaves nothing behind."""
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise UserError(f"{path} is being written by another process: wait until it ends, or write elsewhere") from None
    return fd
