"""The store of demonstrations: one zarr v3 folder that a kill at any moment cannot spoil.

    data/<stream>      [N, ...]     one array a stream, episodes end to end; float32, images uint8
    data/action        [N, d]       float32, raw units
    data/time_s        [N]          float64, measured, rising within an episode
    meta/seed          [episodes]   int64
    meta/success       [episodes]   bool
    meta/episode_ends  [episodes]   int64, cumulative and exclusive
    attributes: "spec" (spec.Spec) and what else the writer has to say

`episode_ends` is written last, after everything else was put on the disk: an episode is there when its end is.
Readers believe nothing past the last valid end; the next writer cuts it off.
"""

from __future__ import annotations

import os
import shutil
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr
from zarr.codecs import BloscCodec

from polyarm.datasets.demos import ACTION, TIME_S, Demos, Rows, checked, no_file, one_length, valid_ends
from polyarm.datasets.disk import ChunkRows, Disk, fsync, lock_folder
from polyarm.datasets.field import guess
from polyarm.spec import Spec, UserError, unknown

CHUNK_BYTES = 1 << 17
"""Of raw data a chunk. An append rewrites the last chunk of each stream, so this bounds its cost; 96 px images: 4 frames."""


class Store:
    """Demonstrations on disk; a `Demos`. Made by `create` or `open`; a writer closes it or is a `with` block."""

    def __init__(self, path: Path, disk: Disk, root: zarr.Group, lock: int | None) -> None:
        self.path, self._disk, self._root = path, disk, root
        self._unlock = weakref.finalize(self, os.close, lock) if lock is not None else None
        self.spec = Spec.from_json(root.attrs["spec"], str(path))
        ends = root["meta/episode_ends"][:]  # before the others: they are never shorter than what it says
        self._arrays = {name: root[f"data/{name}"] for name in _layout(self.spec)}
        self._notes = {name: root[f"meta/{name}"] for name in ("seed", "success")}
        self._ends = root["meta/episode_ends"]
        shortest = min(a.shape[0] for a in self._arrays.values())
        n = min(valid_ends(ends), int(np.sum(ends <= shortest)), *(a.shape[0] for a in self._notes.values()))
        self.episode_ends: np.ndarray = ends[:n]
        self.dropped_rows = max(a.shape[0] for a in self._arrays.values()) - self.frames
        """Rows that lay past the last valid end when the store was opened: of an episode that was never finished."""

    @classmethod
    def create(cls, path: str | Path, spec: Spec, **attributes: Any) -> Store:
        """A new, empty store, open for writing. Raises `UserError` if there is anything at `path`."""
        path = Path(path)
        made = path.with_name(f".{path.name}.{os.getpid()}.partial")
        disk = Disk(made)
        root = zarr.create_group(disk, zarr_format=3, overwrite=True)
        for name, (shape, dtype) in _layout(spec).items():
            shuffle = "noshuffle" if dtype == np.uint8 else "bitshuffle"
            root.create_array(
                f"data/{name}",
                shape=(0, *shape),
                chunks=(max(1, CHUNK_BYTES // (dtype.itemsize * max(1, int(np.prod(shape))))), *shape),
                dtype=dtype,
                compressors=BloscCodec(cname="zstd", clevel=5, shuffle=shuffle, typesize=dtype.itemsize),
            )
        for name, kind in (("seed", "i8"), ("success", "?"), ("episode_ends", "i8")):
            root.create_array(f"meta/{name}", shape=(0,), chunks=(1024,), dtype=kind, compressors=None)
        root.attrs.update({"spec": spec.to_json(), **attributes})
        disk.settle()
        try:
            made.rename(path)  # whole or not at all; an empty folder may be in its place
        except OSError:
            shutil.rmtree(made)
            raise UserError(f"{path} exists: open it to append, or give another path") from None
        fsync(path.parent)
        return cls.open(path, "a")

    @classmethod
    def open(cls, path: str | Path, mode: Literal["r", "a"] = "r") -> Store:
        """The store at `path`, as it is now. With mode "a" the one writer, which cuts off what was not finished.

        Raises `UserError` if there is none, or if another process writes to it.
        """
        path = Path(path)
        if not (path / "zarr.json").exists():
            raise no_file(path, "a store of demonstrations (zarr v3)")
        lock = lock_folder(path) if mode == "a" else None
        disk = Disk(path, read_only=mode == "r")
        root = zarr.open_group(disk, mode="r" if mode == "r" else "r+", zarr_format=3)
        if "spec" not in root.attrs:
            raise UserError(f"{path} has no spec: it was not finished when it was created; delete it and start again")
        store = cls(path, disk, root, lock)
        if mode == "a":
            store._repair()
        return store

    def append(self, arrays: Mapping[str, Any], seed: int, success: bool = True) -> None:
        """One episode: every stream of the spec, "action" and "time_s", `[t, ...]` each. It is durable on return.

        Raises `UserError`, and leaves the store as it was, for a wrong name, shape, type or number.
        """
        if self._unlock is None or not self._unlock.alive:
            raise UserError(f"{self.path} is not open for writing: open it with mode 'a'")
        rows = _checked_episode(arrays, self.spec)
        end = self.frames + len(rows[ACTION])
        try:
            for name, x in rows.items():
                _extend(self._arrays[name], x)
            for name, value in (("seed", seed), ("success", success)):
                _extend(self._notes[name], np.array([value]))
            self._disk.settle()
            _extend(self._ends, np.array([end]))
            self._disk.settle()
        except BaseException:  # half written, perhaps committed: only opening it again tells
            self.close()
            raise
        self.episode_ends = np.append(self.episode_ends, end)

    def stream(self, name: str) -> Rows:
        """Rows of an observation stream, of "action" or of "time_s"; read when indexed."""
        if name not in self._arrays:
            raise unknown(f"stream of {self.path}", name, self._arrays)
        return ChunkRows(self._arrays[name], self.path / "data" / name, self.frames)

    def read(self, name: str) -> np.ndarray:
        return self.stream(name)[:]

    def __len__(self) -> int:
        return len(self.episode_ends)

    @property
    def frames(self) -> int:
        return int(self.episode_ends[-1]) if len(self) else 0

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.episode_ends, prepend=0)

    @property
    def seeds(self) -> np.ndarray:
        return self._notes["seed"][: len(self)]

    @property
    def successes(self) -> np.ndarray:
        return self._notes["success"][: len(self)]

    @property
    def attributes(self) -> dict[str, Any]:
        return {k: v for k, v in self._root.attrs.items() if k != "spec"}

    def close(self) -> None:
        if self._unlock is not None:
            self._unlock()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _repair(self) -> None:
        for litter in self.path.rglob("*.partial"):  # zarr writes there before it renames; we hold the lock
            litter.unlink()
        for array in self._arrays.values():
            _cut(array, self.frames)
        if self._ends.shape[0] > len(self):
            self._ends[len(self) :] = 0  # a cut leaves the chunk as it is: growing again must not bring an old end back
        for array in (*self._notes.values(), self._ends):
            _cut(array, len(self))
        self._disk.settle()


def _layout(spec: Spec) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """{array: (shape of one row, dtype)}"""
    layout = {s.name: (s.shape, np.dtype(s.dtype)) for s in spec.obs.streams}
    for taken in (ACTION, TIME_S):
        if taken in layout:
            raise UserError(f"an observation stream is called {taken!r}: that name is taken, choose another")
    return layout | {ACTION: ((spec.action.width,), np.dtype("f4")), TIME_S: ((), np.dtype("f8"))}


def _checked_episode(arrays: Mapping[str, Any], spec: Spec) -> dict[str, np.ndarray]:
    layout = _layout(spec)
    for name in arrays:
        if name not in layout:
            raise unknown("stream of an episode", name, layout)
    for name in layout:
        if name not in arrays:
            raise UserError(f"the episode has no {name!r}: give {', '.join(layout)}")
    rows = {name: checked(f"{name!r}", arrays[name], *want) for name, want in layout.items()}
    one_length((name, len(x)) for name, x in rows.items())
    late = np.flatnonzero(np.diff(rows[TIME_S]) <= 0)
    if late.size:
        t = rows[TIME_S]
        raise UserError(
            f"'time_s' goes from {t[late[0]]:g} to {t[late[0] + 1]:g} s at row {late[0] + 1}: give the measured time, which rises"
        )
    return rows


def _extend(array: zarr.Array, x: np.ndarray) -> None:
    n = array.shape[0]
    array.resize((n + len(x), *array.shape[1:]))
    array[n:] = x


def _cut(array: zarr.Array, n: int) -> None:
    if array.shape[0] != n:
        array.resize((n, *array.shape[1:]))


def open_path(path: str | Path) -> Demos:
    """Whatever demonstrations lie at `path`, for a look at them."""
    path = Path(path)
    return guess(path) if path.suffix == ".zip" or (path / ".zgroup").exists() else Store.open(path)
