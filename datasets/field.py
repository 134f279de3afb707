"""The field's own file: zarr v2 (`.zarr`, `.zarr.zip`) with `data/<key>` and `meta/episode_ends`, as Diffusion Policy writes it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.storage import ZipStore

from polyarm.datasets.demos import ACTION, Rows, checked, no_file, valid_ends
from polyarm.spec import ActionSpace, ObsSpace, Spec, Stream, UserError, unknown


@dataclass(frozen=True)
class Field:
    """Where a stream lies: `data/<key>`, its trailing axes flattened, of which `columns` are taken (None: all).

    Images keep their axes; those stored as floats 0 to 255 are read as uint8.
    """

    key: str
    columns: tuple[int, ...] | None = None

    @classmethod
    def of(cls, name: str, settings: Mapping[str, Any]) -> Field:
        known = [f.name for f in fields(cls)]
        for setting in settings:
            if setting not in known:
                raise unknown(f"setting of field {name!r}", setting, known)
        columns = settings.get("columns")
        return cls(settings.get("key", name), None if columns is None else tuple(columns))


class FieldStore:
    """Demonstrations in the field's layout, read only; a `Demos`. The file does not say what its numbers mean: `spec` does.

    where: {stream: Field}, "action" among them. The streams of `spec` that it names are offered. Low-dim streams are read
    and checked at once (as many rows as the last end; finite, unless told otherwise); images when indexed. Raises `UserError`.
    """

    def __init__(self, path: str | Path, spec: Spec, where: Mapping[str, Field], finite: bool = True) -> None:
        self.path = Path(path)
        root = open_v2(self.path)
        if ACTION not in where:
            raise UserError(f"no field says where the action of {path} lies: add action: {{key: ...}}")
        for name in where:
            if name != ACTION:
                spec.obs[name]  # raises for an unknown one
        self.spec = Spec(spec.obs.pick(n for n in spec.obs.names if n in where), spec.action, spec.versions)
        self.episode_ends = _ends(root, self.path)
        self._rows: dict[str, Rows] = {}
        for stream in self.spec.obs.streams:
            rows = _FieldRows(
                self._array(root, where[stream.name]), where[stream.name], stream.shape, np.dtype(stream.dtype)
            )
            self._rows[stream.name] = self._loaded(stream.name, rows, finite) if stream.low_dim else rows
        action = _FieldRows(self._array(root, where[ACTION]), where[ACTION], (spec.action.width,), np.dtype("f4"))
        self._rows[ACTION] = self._loaded(ACTION, action, finite)

    def stream(self, name: str) -> Rows:
        """Rows of an observation stream or of "action"."""
        if name not in self._rows:
            raise unknown(f"stream of {self.path}", name, self._rows)
        return self._rows[name]

    def _array(self, root: zarr.Group, field: Field) -> zarr.Array:
        data = root["data"]
        if field.key not in data:
            raise unknown(f"key of {self.path}/data", field.key, data.array_keys())
        try:
            array = data[field.key]
        except ValueError as e:
            raise UserError(
                f"data/{field.key} of {self.path} cannot be decoded ({e}): store it without that codec"
            ) from e
        if array.shape[0] != self.episode_ends[-1]:
            raise UserError(
                f"data/{field.key} of {self.path} has {array.shape[0]} rows, the last episode ends at "
                f"{self.episode_ends[-1]}: the file is damaged, get it again"
            )
        return array

    def _loaded(self, name: str, rows: _FieldRows, finite: bool) -> np.ndarray:
        x = rows[:]
        return checked(f"{name!r} of {self.path}", x, x.shape[1:], x.dtype) if finite else x


class _FieldRows:
    """`[N, *shape]` of one array: columns taken, trailing axes flattened, floats of images made uint8."""

    def __init__(self, array: zarr.Array, field: Field, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self._array, self._columns, self.dtype = array, field.columns, dtype
        have = array.shape[1:] if dtype == np.uint8 else (math.prod(array.shape[1:]),)
        if field.columns is not None:
            if any(not 0 <= c < have[-1] for c in field.columns):
                raise UserError(f"columns {list(field.columns)} of {field.key!r}: it has {have[-1]}, count from 0")
            have = (*have[:-1], len(field.columns))
        if have != shape:
            raise UserError(
                f"field {field.key!r} is {have} a row, the spec wants {shape}: choose columns, or another key"
            )
        self.shape = (array.shape[0], *shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        """A slice, or row numbers of any shape."""
        if isinstance(rows, slice):
            return self._read(self._array[rows])
        needed, back = np.unique(np.asarray(rows), return_inverse=True)
        return self._read(self._array.oindex[needed])[back].reshape(*np.shape(rows), *self.shape[1:])

    def _read(self, x: np.ndarray) -> np.ndarray:
        if self.dtype != np.uint8:
            x = x.reshape(len(x), -1)
            return (x if self._columns is None else x[:, self._columns]).astype(self.dtype)
        if x.dtype != np.uint8:
            if x.size and not (x.min() >= 0 and 1 < x.max() <= 255):
                raise UserError(f"an image holds {x.min():g} to {x.max():g}: it must be 0 to 255, convert it first")
            x = np.rint(x).astype(np.uint8)
        return x if self._columns is None else x[..., self._columns]


def open_v2(path: Path) -> zarr.Group:
    """The root group. Raises `UserError` if there is no such file or it has another layout."""
    zipped = path.is_file() and path.suffix == ".zip"
    if not zipped and not (path / ".zgroup").exists():
        raise no_file(path, "a zarr v2 group")
    root = zarr.open_group(ZipStore(path, mode="r") if zipped else path, mode="r", zarr_format=2)
    for group in ("data", "meta"):
        if group not in root:
            raise UserError(f"{path} has no group {group!r}: it must hold data/<key> and meta/episode_ends")
    return root


def guess(path: Path) -> FieldStore:
    """The file read as it is, for a first look: images by their shape, channels numbered, the rate (unknown) 0, any number allowed."""
    root = open_v2(path)
    streams, width = [], 0
    for key, array in sorted(root["data"].arrays()):
        names = tuple(str(i) for i in range(math.prod(array.shape[1:])))
        if key == ACTION:
            width = len(names)
        elif array.ndim == 4 and array.shape[-1] == 3:
            streams.append(Stream(key, "image", array.shape[1:]))
        else:
            streams.append(Stream(key, "state", (len(names),), names))
    spec = Spec(ObsSpace(tuple(streams), 0.0), ActionSpace(tuple(str(i) for i in range(width)), (), "", 0.0))
    return FieldStore(path, spec, {name: Field(name) for name in (*spec.obs.names, ACTION)}, finite=False)


def _ends(root: zarr.Group, path: Path) -> np.ndarray:
    if "episode_ends" not in root["meta"]:
        raise unknown(f"key of {path}/meta", "episode_ends", root["meta"].array_keys())
    ends = root["meta/episode_ends"][:].astype(np.int64)
    n = valid_ends(ends)
    if n == 0 or n < len(ends):
        raise UserError(f"meta/episode_ends of {path} does not rise at episode {n}: the file is damaged, get it again")
    return ends
