"""What every set of demonstrations offers, whatever file it lies in."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from polyarm.spec import Spec, UserError, unknown

ACTION, TIME_S = "action", "time_s"


@runtime_checkable
class Rows(Protocol):
    """One stream of all episodes end to end, `[N, ...]`: on disk or in memory, read by a slice or by row numbers."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any) -> np.ndarray: ...


@runtime_checkable
class Demos(Protocol):
    """Demonstrations: what their numbers mean, where each episode ends, and the rows of a stream or of "action"."""

    @property
    def spec(self) -> Spec: ...

    @property
    def episode_ends(self) -> np.ndarray:
        """int64 `[episodes]`, cumulative and exclusive; the last one is N."""
        ...

    def stream(self, name: str) -> Rows: ...


def checked(what: str, x: Any, shape: tuple[int, ...], dtype: np.dtype, before: int = 0) -> np.ndarray:
    """`x` as `[t, *shape]` of `dtype`. Raises `UserError` unless the shape is that and every number is finite.

    Integers and wider floats become float32; images and texts must be uint8 already, since 0..1 and 0..255 look alike, and depth
    uint16, since metres and millimetres do. `before`: rows that `x` lies behind, for the message.
    """
    x = np.asarray(x)
    if x.ndim == 0 or x.shape[1:] != shape:
        want = ", ".join(map(str, ("t", *shape)))
        raise UserError(f"{what} has shape {x.shape}: the spec wants [{want}], give that or correct the spec")
    if dtype == np.uint8 and x.dtype != np.uint8:
        raise UserError(f"{what} is {x.dtype}: an image is uint8, 0 to 255, and so is a text's row; convert it first")
    if dtype == np.uint16 and x.dtype != np.uint16:
        raise UserError(
            f"{what} is {x.dtype}: depth is uint16 millimetres, 0 where nothing was measured, and so is a map of objects; convert it first"
        )
    if x.dtype.kind not in "fiub":
        raise UserError(f"{what} is {x.dtype}: give numbers")
    with np.errstate(over="ignore"):  # what does not fit float32 is inf, and refused as such
        x = x.astype(dtype, copy=False)
    if dtype.kind == "f" and not np.isfinite(x).all():
        row = int(np.argmin(np.isfinite(x).reshape(len(x), -1).all(1)))
        raise UserError(
            f"{what} holds {x[row].reshape(-1)[~np.isfinite(x[row].reshape(-1))][0]} in row {before + row}: "
            "give finite numbers, or leave the episode out"
        )
    return x


def valid_ends(ends: np.ndarray) -> int:
    """How many leading ends rise from above zero: past the first that does not, nothing is believed."""
    rises = np.diff(ends, prepend=0) > 0
    return len(ends) if rises.all() else int(np.argmin(rises))


def damaged(file: Path | str, why: str) -> UserError:
    """The error for a file that is not what was written."""
    return UserError(f"{file} {why}: the file is damaged; restore it from a copy, nothing else of the data was touched")


def no_file(path: Path, what: str) -> UserError:
    """The error for a path without demonstrations; names the nearest neighbour if the folder is there."""
    if path.exists():
        return UserError(f"{path} is not {what}: give the folder that holds data/ and meta/")
    folder = path.absolute().parent
    if not folder.is_dir():
        return UserError(f"there is no {path}: its folder does not exist either; check the path")
    return unknown(f"demonstrations in {folder}:", path.name, (p.name for p in folder.iterdir() if "zarr" in p.name))


def one_length(lengths: Iterable[tuple[str, int]]) -> int:
    """The length all of them share. Raises `UserError` naming the first that differs."""
    (first, length), *rest = lengths
    for name, n in rest:
        if n != length:
            raise UserError(f"{name!r} has {n} rows and {first!r} {length}: an episode needs as many of each")
    if length == 0:
        raise UserError(f"{first!r} has 0 rows: an episode needs at least one")
    return length
