"""The field's own file, diffusion_policy's replay buffer: zarr (`.zarr`, `.zarr.zip`) with `data/<key>` and `meta/episode_ends`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from polyarm.datasets.archive import Archive
from polyarm.datasets.demos import ACTION, Rows, checked, valid_ends
from polyarm.spec import ActionSpace, ObsSpace, Spec, Stream, UserError, unknown
from polyarm.text import text_row

ENDS = "meta/episode_ends"
WIDE = 128, 32
"""Numbers a row above which an array of unknown meaning is no list of channels: of a vector, and of several axes."""


@dataclass(frozen=True)
class Field:
    """Where a stream lies: `data/<key>`. Of a low-dim one the trailing axes are flattened and `columns` taken (None: all).

    Others keep their axes. `white`: the value of white in images that are not uint8, which are read as 0 to 255; None: 255,
    and images that may go from 0 to 1 are refused. A stream of texts takes strings, too.
    """

    key: str
    columns: tuple[int, ...] | None = None
    white: int | float | None = None

    @classmethod
    def of(cls, name: str, settings: Mapping[str, Any]) -> Field:
        known = [f.name for f in fields(cls)]
        for setting in settings:
            if setting not in known:
                raise unknown(f"setting of field {name!r}", setting, known)
        columns = settings.get("columns")
        return cls(settings.get("key", name), None if columns is None else tuple(columns), settings.get("white"))


class ReplayBuffer:
    """Demonstrations in diffusion_policy's layout, read only; a `Demos`. The file does not say what its numbers mean: `spec`
    does.

    where: {stream: Field}, "action" among them. The streams of `spec` that it names are offered. Low-dim streams are read
    and checked at once (as many rows as the last end; finite, unless told otherwise); others when indexed. A chunk that is not
    there is an error, unless `sparse`: zarr 3 leaves out those that hold nothing but the fill value. Raises `UserError`.
    """

    def __init__(
        self, path: str | Path, spec: Spec, where: Mapping[str, Field], finite: bool = True, sparse: bool = False
    ) -> None:
        self.path = Path(path)
        self._archive, self._sparse = Archive(self.path, ENDS), sparse
        self.left_out: dict[str, str] = {}
        """{key: why} of what lies in the file and cannot be shown, of a file that is guessed."""
        if ACTION not in where:
            raise UserError(f"no field says where the action of {path} lies: add action: {{key: ...}}")
        for name in where:
            if name != ACTION:
                spec.obs[name]  # raises for an unknown one
        self.spec = Spec(spec.obs.pick(n for n in spec.obs.names if n in where), spec.action, spec.versions)
        self.episode_ends = _ends(self._archive)
        width = spec.action.width
        action = Stream(ACTION, "state", (width,), spec.action.names)
        self._rows: dict[str, Rows] = {}
        for stream in (*self.spec.obs.streams, action):
            rows = self._open(where[stream.name], stream)
            self._rows[stream.name] = self._loaded(stream.name, rows) if stream.low_dim and finite else rows

    def stream(self, name: str) -> Rows:
        """Rows of an observation stream or of "action"."""
        if name not in self._rows:
            raise unknown(f"stream of {self.path}", name, self._rows)
        return self._rows[name]

    def absent(self) -> dict[str, list[str]]:
        """{key: chunks that are not there} where there are some."""
        found = {
            rows.key: self._archive.absent(f"data/{rows.key}")
            for rows in self._rows.values()
            if isinstance(rows, _Rows)
        }
        return {key: chunks for key, chunks in found.items() if chunks}

    def _open(self, field: Field, stream: Stream) -> _Rows:
        name = f"data/{field.key}"
        if field.key not in (known := self._archive.keys("data")):
            raise unknown(f"key of {self.path}/data", field.key, known)
        n, last = self._archive.array(name).shape[:1], int(self.episode_ends[-1])
        if n != (last,):
            raise UserError(
                f"{name} of {self.path} has {n[0] if n else 'no'} rows, the last episode ends at {last}: "
                "the file is damaged, get it again"
            )
        if not self._sparse:
            _require_whole(self._archive, name)
        return _Rows(self._archive, field, stream)

    def _loaded(self, name: str, rows: _Rows) -> np.ndarray:
        x = rows[:]
        return checked(f"{name!r} of {self.path}", x, x.shape[1:], x.dtype)


class _Rows:
    """`[N, *shape]` of one array: columns taken, trailing axes of channels flattened, other images and texts made uint8."""

    def __init__(self, archive: Archive, field: Field, stream: Stream) -> None:
        array = archive.array(f"data/{field.key}")
        self.key, self._archive, self._field, self._stream = field.key, archive, field, stream
        self.dtype, self._texts = np.dtype(stream.dtype), array.dtype.kind in "UTO"
        have = (math.prod(array.shape[1:]),) if stream.low_dim else array.shape[1:]
        if field.columns is not None:
            if any(not 0 <= c < have[-1] for c in field.columns):
                raise UserError(f"columns {list(field.columns)} of {field.key!r}: it has {have[-1]}, count from 0")
            have = (*have[:-1], len(field.columns))
        if self._texts and stream.kind == "text" and not have:
            have = stream.shape
        elif array.dtype.kind not in "biuf":
            raise UserError(
                f"field {field.key!r} holds {array.dtype}, stream {stream.name!r} is {stream.kind}: give numbers"
            )
        if have != stream.shape:
            raise UserError(
                f"field {field.key!r} is {have} a row, the spec wants {stream.shape}: choose columns, or another key"
            )
        self.shape = (array.shape[0], *stream.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        """A slice, or row numbers of any shape."""
        name = f"data/{self.key}"
        if isinstance(rows, slice):
            return self._as_stream(self._archive.read(name, rows))
        needed, back = np.unique(np.asarray(rows), return_inverse=True)
        found = self._as_stream(self._archive.read(name, needed))
        return found[back].reshape(*np.shape(rows), *self.shape[1:])

    def _as_stream(self, x: np.ndarray) -> np.ndarray:
        if self._texts:
            rows = [text_row(str(text), self.shape[1]) for text in x]
            return np.stack(rows) if rows else np.empty((0, *self.shape[1:]), self.dtype)
        if self._stream.low_dim:
            x = x.reshape(len(x), -1)
        x = x if self._field.columns is None else x[..., self._field.columns]
        return self._bytes(x) if self.dtype == np.uint8 and x.dtype != np.uint8 else x.astype(self.dtype, copy=False)

    def _bytes(self, x: np.ndarray) -> np.ndarray:
        low, high = (x.min(), x.max()) if x.size else (0, 0)
        white = 255 if self._field.white is None else self._field.white
        unsure = self._field.white is None and x.dtype.kind in "bf" and 0 < high <= 1
        if unsure or not 0 <= low <= high <= white:
            raise UserError(
                f"an image of field {self.key!r} holds {low:g} to {high:g}: it must be 0 to {white:g}, or give its field the value "
                "of white, as in {key: ..., white: 1}"
            )
        return np.rint(x * (255 / white)).astype(np.uint8)


def open_replay_buffer(path: str | Path, fields: Mapping[str, Any], spec: Spec, sparse: bool = False) -> ReplayBuffer:
    """What a task's `demos` name as their `_target_`: fields: {stream: {key, columns, white}}; `spec` is the world's."""
    return ReplayBuffer(path, spec, {name: Field.of(name, where) for name, where in fields.items()}, sparse=sparse)


def guess(path: Path) -> ReplayBuffer:
    """The file read as it is, for a first look: images by their shape, channels numbered, the rate (unknown) 0, any number
    allowed, and what is not there taken for the fill value."""
    archive, streams, width, left_out = Archive(path, ENDS), list[Stream](), 0, dict[str, str]()
    last = int(_ends(archive)[-1])
    for key in archive.keys("data"):
        try:
            array = archive.array(f"data/{key}")
            if key != ACTION and array.shape[:1] != (last,):
                raise UserError(f"it has shape {list(array.shape)} for {last} rows")
            stream = _guessed(key, archive)
        except UserError as e:
            if key == ACTION:
                raise
            left_out[key] = str(e)
            continue
        if key == ACTION:
            width = math.prod(array.shape[1:])
        else:
            streams.append(stream)
    spec = Spec(ObsSpace(tuple(streams), 0.0), ActionSpace(tuple(str(i) for i in range(width)), (), "", 0.0))
    where = {name: Field(name) for name in (*spec.obs.names, ACTION)}
    demos = ReplayBuffer(path, spec, where, finite=False, sparse=True)
    demos.left_out = left_out
    return demos


def _guessed(key: str, archive: Archive) -> Stream:
    array = archive.array(f"data/{key}")
    row = array.shape[1:]
    if array.dtype.kind in "UTO" and not row:
        longest = max((len(str(text).encode()) for text in archive.read(f"data/{key}", slice(None))), default=0)
        return Stream(key, "text", (max(longest, 1),))
    if array.dtype.kind not in "biuf":
        raise UserError(f"it holds {array.dtype}")
    if (len(row) == 3 and row[-1] == 3) or (array.dtype == np.uint8 and len(row) > 1):
        return Stream(key, "image", row)
    if math.prod(row) > WIDE[len(row) > 1]:
        return Stream(key, "points", row)
    names = tuple(str(i) for i in range(math.prod(row)))
    return Stream(key, "state", (len(names),), names)


def _require_whole(archive: Archive, name: str) -> None:
    if absent := archive.absent(name):
        raise UserError(
            f"{archive.path}/{name}/{absent[0]} is lost, and {len(absent) - 1} more: copy the demonstrations again; or, if "
            "their writer left out chunks that hold nothing but the fill value, give +task.demos.sparse=true"
        )


def _ends(archive: Archive) -> np.ndarray:
    _require_whole(archive, ENDS)
    ends = archive.read(ENDS, slice(None))
    if ends.ndim != 1 or ends.dtype.kind not in "iuf" or not len(ends):
        raise UserError(
            f"{ENDS} of {archive.path} is {ends.dtype} of shape {list(ends.shape)}: it must hold the row after each episode's last, "
            "of one episode at least"
        )
    ends = ends.astype(np.int64)
    n = valid_ends(ends)
    if n < len(ends):
        raise UserError(f"{ENDS} of {archive.path} does not rise at episode {n}: the file is damaged, get it again")
    return ends
