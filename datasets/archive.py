"""Arrays that others wrote: zarr of format 2 or 3, in a folder or a zip, with what is lost or cannot be decoded told by name."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Sequence
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec
from zarr.storage import LocalStore, ZipStore

from polyarm.datasets.chunks import require_whole
from polyarm.datasets.demos import no_file
from polyarm.spec import UserError

HEADS = ("zarr.json", ".zarray")
"""The file that describes an array, in formats 3 and 2."""


class Archive:
    """The arrays below the folder, or folder of a zip, that holds `landmark`, an array they all come with.

    A zip is opened anew in every process: one that was opened before a fork shares its place in the file with the others.
    """

    def __init__(self, path: Path, landmark: str) -> None:
        self.path, self._zipped = path, path.is_file()
        if not path.exists():
            raise no_file(path, "demonstrations")
        try:
            self._root = _inside(path, landmark) if self._zipped else ""
        except OSError as e:
            raise UserError(f"{path} cannot be read ({e.strerror}): check the disk and who may read it") from e
        self._process, self._arrays, self._whole = os.getpid(), dict[str, zarr.Array](), set[str]()
        if landmark.rpartition("/")[2] not in self.keys(landmark.rpartition("/")[0]):
            near = [p for p in path.iterdir() if (p / landmark).is_dir()] if path.is_dir() else []
            hint = f"did you mean {near[0]}?" if near else "give what holds data/<key> and meta/episode_ends as zarr"
            raise UserError(f"{path} has no {landmark}: {hint}")

    def keys(self, group: str) -> list[str]:
        """Names of the arrays of a group."""
        below = f"{self._root}{group}/"
        if self._zipped:
            heads = [name.rpartition("/") for name in self._names if name.startswith(below)]
            return sorted(
                {place[len(below) :] for place, _, file in heads if file in HEADS and "/" not in place[len(below) :]}
                - {""}
            )
        folder = self.path / group
        return (
            sorted(p.name for p in folder.iterdir() if any((p / h).is_file() for h in HEADS)) if folder.is_dir() else []
        )

    def array(self, name: str) -> zarr.Array:
        """Raises `UserError` for one that zarr cannot open."""
        if self._process != os.getpid():
            self._process, self._arrays = os.getpid(), {}
        if name not in self._arrays:
            store = ZipStore(self.path, mode="r") if self._zipped else LocalStore(self.path, read_only=True)
            try:
                self._arrays[name] = zarr.open_array(store, path=self._root + name, mode="r")
            except Exception as e:  # whatever zarr's parsers and codecs raise
                said = " ".join(str(e).split())
                raise UserError(
                    f"{self.path}/{name}/{self._head(name)} cannot be read ({said or type(e).__name__}): if it names a codec, "
                    "install that or store the data without; otherwise it is damaged, copy the demonstrations again"
                ) from e
        return self._arrays[name]

    def absent(self, name: str) -> list[str]:
        """The chunks that are not there, each by the end of its path."""
        array = self.array(name)
        if self._zipped:
            there = {n for n in self._names if n.startswith(f"{self._root}{name}/")}
        else:
            there = {f.relative_to(self.path).as_posix() for f in (self.path / name).rglob("*") if f.is_file()}
        return [key for _, key in _touched(array, slice(None)) if f"{self._root}{name}/{key}" not in there]

    def read(self, name: str, rows: slice | np.ndarray) -> np.ndarray:
        """Rows of an array: a slice, or row numbers that rise. Raises `UserError` with the file that cannot be decoded."""
        array = self.array(name)
        try:
            self._require_whole(array, name, [key for _, key in _touched(array, rows)])
            return np.asarray(array[rows] if isinstance(rows, slice) else array.oindex[rows])
        except Exception as e:  # whatever codecs and the disk raise
            said = " ".join(str(e).split()) or type(e).__name__
            raise UserError(
                f"{self.path}/{self._culprit(array, name, rows)} cannot be read ({said}): it is damaged, copy the demonstrations again"
            ) from e

    def _culprit(self, array: zarr.Array, name: str, rows: slice | np.ndarray) -> str:
        step = _cut(array)[0]
        for i, key in _touched(array, rows):
            try:
                self._require_whole(array, name, [key])
                array[i * step : (i + 1) * step]
            except Exception:  # noqa: BLE001  the caller tells it
                return f"{name}/{key}"
        return name

    def _require_whole(self, array: zarr.Array, name: str, keys: Sequence[str]) -> None:
        """Refuse a chunk of blosc that is cut short, which it does not notice."""
        last = array.compressors[-1] if array.compressors else None
        new = [f"{name}/{key}" for key in keys if f"{name}/{key}" not in self._whole]
        if not new or not (isinstance(last, BloscCodec) or getattr(last, "codec_id", None) == "blosc"):
            return
        if self._zipped:
            with zipfile.ZipFile(self.path) as whole:
                for file in set(new) & {n.removeprefix(self._root) for n in self._names}:
                    with whole.open(self._root + file) as chunk:
                        require_whole(chunk.read(16), whole.getinfo(self._root + file).file_size)
        else:
            for place in (self.path / file for file in new if (self.path / file).exists()):
                with place.open("rb") as chunk:
                    require_whole(chunk.read(16), place.stat().st_size)
        self._whole.update(new)

    def _head(self, name: str) -> str:
        """Of the files that describe an array the one that is no JSON, else the first."""
        found = [h for h in (*HEADS, ".zattrs") if self._is_json(f"{name}/{h}") is not None]
        return next((h for h in found if not self._is_json(f"{name}/{h}")), found[0] if found else HEADS[0])

    def _is_json(self, file: str) -> bool | None:
        """None: it is not there."""
        try:
            if self._zipped:
                with zipfile.ZipFile(self.path) as whole:
                    json.loads(whole.read(self._root + file))
            else:
                json.loads((self.path / file).read_bytes())
            return True
        except (KeyError, FileNotFoundError):
            return None
        except (ValueError, OSError, zipfile.BadZipFile):
            return False

    @cached_property
    def _names(self) -> list[str]:
        with zipfile.ZipFile(self.path) as file:
            return file.namelist()

    def __getstate__(self) -> dict[str, Any]:
        return {name: x for name, x in self.__dict__.items() if name != "_names"} | {"_arrays": {}}


def _cut(array: zarr.Array) -> tuple[int, ...]:
    return getattr(array, "shards", None) or array.chunks


def _touched(array: zarr.Array, rows: slice | np.ndarray) -> list[tuple[int, str]]:
    """(its place along the first axis, name below the array's folder) of every file that holds some of these rows."""
    first, *others = (range(-(-n // c)) for n, c in zip(array.shape, _cut(array), strict=True))
    if not isinstance(rows, slice) or rows != slice(None):
        numbers = np.arange(array.shape[0])[rows] if isinstance(rows, slice) else rows
        first = np.unique(numbers // _cut(array)[0]).tolist()
    return [(at[0], array.metadata.encode_chunk_key(at)) for at in product(first, *others)]


def _inside(path: Path, landmark: str) -> str:
    """The folder of a zip that holds the landmark, "" or with a slash at its end: many zip the folder, not what is in it."""
    try:
        with zipfile.ZipFile(path) as file:
            names = file.namelist()
    except zipfile.BadZipFile as e:
        with path.open("rb") as raw:
            begins = raw.read(16)
        what = f"it begins with {begins!r}" if begins else "it is empty"
        raise UserError(
            f"{path} is neither a folder nor a whole zip ({e}; {what}): download it again, or check the path"
        ) from e
    ends = tuple(f"{landmark}/{head}" for head in HEADS)
    roots = {n[: -len(e)] for n in names for e in ends if n.endswith(e) and not n.startswith("__MACOSX/")}
    roots = {root for root in roots if not root or root.endswith("/")}
    if len(roots) > 1:
        raise UserError(
            f"{path} holds {len(roots)} sets of demonstrations, {', '.join(sorted(roots))}: unpack it and name one"
        )
    return roots.pop() if roots else ""
