"""One array of a store: a zarr v3 folder of chunks along its first axis, read and written file by file and checked.

Going through zarr costs some 0.25 ms a chunk, ten times what it takes to decode four frames of 96 px, and what zarr writes goes
on in the background when the writer has been told that it failed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterator
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
from google_crc32c import value as crc32c
from numcodecs import blosc  # type: ignore[import-untyped]

from polyarm.datasets.demos import damaged
from polyarm.datasets.disk import Disk
from polyarm.spec import UserError

CODECS = ("bytes", "blosc", "crc32c")
"""What a chunk may be coded with, in this order."""


class ChunkRows:
    """The rows of an array, `[N, *row]`.

    Raises `UserError` with the file's name for an array of another layout and for a chunk that is lost, cut short or does not
    match its checksum. `sparse`: a chunk that is not there holds zeros, and none needs a checksum, as stores were written at
    first.
    """

    def __init__(self, folder: Path, row: tuple[int, ...], dtype: np.dtype, sparse: bool = False) -> None:
        self._folder, self._sparse, self.dtype = folder, sparse, dtype
        n, self.chunk_rows, self.codecs = _layout(folder / "zarr.json", row, dtype, () if sparse else ("crc32c",))
        self.shape = (n, *row)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """A slice, or whole row numbers of any shape."""
        rows = np.arange(*rows.indices(len(self))) if isinstance(rows, slice) else np.asarray(rows)
        if rows.size and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of {len(self)}")
        chunk, within = np.divmod(rows.reshape(-1), self.chunk_rows)
        out = np.empty((rows.size, *self.shape[1:]), self.dtype)
        order = np.argsort(chunk, kind="stable")
        for group in np.split(order, np.flatnonzero(np.diff(chunk[order])) + 1) if rows.size else ():
            out[group] = self._chunk(int(chunk[group[0]]))[within[group]]
        return out.reshape(*rows.shape, *self.shape[1:])

    def upto(self, n: int, why: str) -> ChunkRows:
        """The first n rows. Raises `UserError` where there are fewer, though `why` says that there are."""
        if len(self) < n:
            raise damaged(self._folder / "zarr.json", f"says {len(self)} rows, where {why} {n}")
        first = copy(self)
        first.shape = (n, *self.shape[1:])
        return first

    def all_chunks(self) -> np.ndarray:
        """Every chunk there is, whatever length the array is said to have; at least as many as that length needs."""
        found = [self._chunk(i) for i in range(max([self._needed(), *(i + 1 for i, _ in self._files())]))]
        return np.concatenate(found) if found else np.empty((0, *self.shape[1:]), self.dtype)

    def extend(self, x: np.ndarray, disk: Disk) -> None:
        """Put `x` behind the rows: the array's length first, then the chunks."""
        n = len(self)
        first = n // self.chunk_rows
        begin = first * self.chunk_rows
        x = np.concatenate([self[begin:n], x])
        self.resize(begin + len(x), disk)
        for i in range(0, len(x), self.chunk_rows):
            self.put(first + i // self.chunk_rows, x[i : i + self.chunk_rows], disk)

    def resize(self, n: int, disk: Disk) -> None:
        """Say that there are n rows, and remove the chunks that then hold none."""
        if n != len(self):
            found = read_json(self._folder / "zarr.json")
            found["shape"][0] = n
            disk.put(self._folder / "zarr.json", json.dumps(found, indent=2).encode())
            self.shape = (n, *self.shape[1:])
        for i, place in self._files():
            if i >= self._needed():
                shutil.rmtree(place) if place.is_dir() else place.unlink()

    def put(self, i: int, rows: np.ndarray, disk: Disk, settled: bool = False) -> None:
        """Write chunk i: these rows, zeros behind them."""
        chunk = np.zeros((self.chunk_rows, *self.shape[1:]), self.dtype)
        chunk[: len(rows)] = rows
        raw = chunk.tobytes()
        if "blosc" in self.codecs:
            shuffle = blosc.NOSHUFFLE if self.dtype.itemsize == 1 else blosc.BITSHUFFLE
            raw = blosc.compress(chunk, b"zstd", 5, shuffle)
        disk.put(self._file(i), raw + crc32c(raw).to_bytes(4, "little") if "crc32c" in self.codecs else raw, settled)

    def _needed(self) -> int:
        return -(-len(self) // self.chunk_rows)

    def _files(self) -> Iterator[tuple[int, Path]]:
        """(number, file or folder) of the chunks there are."""
        folder = self._folder / "c"
        for place in sorted(folder.iterdir()) if folder.is_dir() else ():
            if place.name.isdecimal():
                yield int(place.name), place

    def _file(self, i: int) -> Path:
        return self._folder / "c" / "/".join(map(str, (i, *(0 for _ in self.shape[1:]))))

    def _chunk(self, i: int) -> np.ndarray:
        file, shape = self._file(i), (self.chunk_rows, *self.shape[1:])
        try:
            raw = file.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            if self._sparse:
                return np.zeros(shape, self.dtype)
            raise UserError(f"{file} is lost: copy the demonstrations again, or restore it from a copy") from None
        except OSError as e:
            raise UserError(f"{file} cannot be read ({e.strerror}): check the disk and who may read it") from e
        if "crc32c" in self.codecs:
            raw, checksum = raw[:-4], raw[-4:]
            if crc32c(raw).to_bytes(4, "little") != checksum:
                raise damaged(file, "does not match its checksum")
        try:
            if "blosc" in self.codecs:
                require_whole(raw, len(raw))
                raw = blosc.decompress(raw)
            return np.frombuffer(raw, self.dtype).reshape(shape)
        except (ValueError, RuntimeError, MemoryError) as e:
            raise damaged(file, f"cannot be decoded ({e})") from e


def require_whole(head: bytes, size: int) -> None:
    """Refuse a chunk of blosc cut short, which blosc would read past its end. `head`: its first 16 bytes or more."""
    said = int.from_bytes(head[12:16], "little")
    if len(head) < 16 or said != size:
        raise ValueError(f"{size} bytes where there were {said}" if len(head) >= 16 else f"{size} bytes")


def _layout(
    file: Path, row: tuple[int, ...], dtype: np.dtype, needed: Collection[str]
) -> tuple[int, int, tuple[str, ...]]:
    """(rows, rows a chunk, codecs) of the array that `file`, its zarr.json, describes."""
    found = read_json(file)
    try:
        shape, chunk = found["shape"], found["chunk_grid"]["configuration"]["chunk_shape"]
        codecs = tuple(codec["name"] for codec in found["codecs"])
        said = {
            "zarr_format": (found["zarr_format"], 3), "node_type": (found["node_type"], "array"),
            "data_type": (found["data_type"], dtype.name), "shape": (shape[1:], list(row)),
            "chunk_grid": (found["chunk_grid"]["name"], "regular"), "chunk_shape": (chunk[1:], list(row)),
            "chunk_key_encoding": (found["chunk_key_encoding"], {"name": "default", "configuration": {"separator": "/"}}),
            "fill_value": (float(found["fill_value"]), 0.0), "storage_transformers": (found.get("storage_transformers", []), []),
            "codecs": (list(codecs), [c for c in CODECS if c == "bytes" or c in codecs or c in needed]),
            "endian": (found["codecs"][0].get("configuration", {}).get("endian", "little"), "little"),
        }  # fmt: skip
        whole = all(type(n) is int and n >= 0 for n in shape) and type(chunk[0]) is int and chunk[0] > 0
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as e:
        raise damaged(file, f"does not describe an array ({type(e).__name__}: {e})") from e
    for what, (have, want) in said.items():
        if have != want:
            raise UserError(
                f"{file} has {what} {have}, a store of polyarm's own {want}: it is damaged, or another program wrote it; "
                "restore it, or copy the demonstrations without changing their layout"
            )
    if not whole:
        raise damaged(file, f"has shape {shape} in chunks of {chunk}")
    return shape[0], chunk[0], codecs


def read_json(file: Path) -> dict[str, Any]:
    """A file that holds a mapping. Raises `UserError` with its name if it is lost or damaged."""
    try:
        found = json.loads(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{file} is lost: copy the demonstrations again, or restore it from a copy") from None
    except OSError as e:
        raise UserError(f"{file} cannot be read ({e.strerror}): check the disk and who may read it") from e
    except (ValueError, RecursionError) as e:
        raise damaged(file, f"is no JSON ({e})" if file.stat().st_size else "is empty") from e
    if not isinstance(found, dict):
        raise damaged(file, "holds no mapping")
    return found
