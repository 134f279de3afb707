"""Depth and calibration to points, cropped to a workspace and thinned to a number, as streams of points. Numpy only: worlds,
drivers, data and the report make their clouds by the same lines, so that stored depth and live depth give the same points.

What a camera is stands in `polyarm.camera`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from polyarm.camera import from_row, lift, metres, project
from polyarm.spec import ObsSpace, Stream, UserError
from polyarm.streams import points as points_stream

__all__ = ["Cloud", "PointMap", "View", "cloud", "crop", "farthest", "lift", "metres", "project", "thin"]

SPLITS = 5
"""Of the tree by which fpsample leaves points out."""


class View(NamedTuple):
    """What one camera saw in one time step. `unit`: "mm", uint16, or "m", floats. `rgb`: uint8 `[h w 3]`."""

    depth: Any
    unit: str
    intrinsics: Any
    camera_from_world: Any
    rgb: Any = None


@dataclass(frozen=True)
class Cloud:
    """A stream of `points` points that these cameras see between the corners `low` and `high` of the workspace, m of the cameras'
    frame; with `colours` of their pictures. Camera c shows `c_depth`, `c_camera` and the picture `c`."""

    cameras: Any
    low: Any
    high: Any
    points: Any
    colours: Any = False
    held: ClassVar[bool] = True

    def __post_init__(self) -> None:
        names = self.cameras
        if (
            isinstance(names, str)
            or not names
            or not all(isinstance(c, str) for c in names)
            or len({*names}) < len(names)
        ):
            raise UserError(f"cameras={names} of a cloud: give a list of different cameras, such as [front]")
        if not isinstance(self.colours, bool):
            raise UserError(f"colours={self.colours} of a cloud: give true or false")
        low, high = _box(self.low, self.high)
        for name, value in (("cameras", tuple(names)), ("low", tuple(low.tolist())), ("high", tuple(high.tolist()))):
            object.__setattr__(self, name, value)

    def needs(self) -> tuple[str, ...]:
        """The streams that it is made of."""
        parts = ("_depth", "_camera", "") if self.colours else ("_depth", "_camera")
        return tuple(f"{c}{part}" for c in self.cameras for part in parts)

    def stream(self, name: str, obs: ObsSpace) -> Stream:
        """What it is called `name`; raises UserError where `obs` does not show what it needs."""
        frames = {_require_camera(name, c, obs, self.colours).frame for c in self.cameras}
        if len(frames) > 1:
            raise UserError(
                f"stream {name!r} is made of cameras in frames {', '.join(sorted(frames))}: give all of a cloud in one frame"
            )
        made_of = f"{', '.join(self.cameras)} within {self.low} to {self.high} m"
        stream = points_stream(name, self.points, self.colours, frames.pop())
        return Stream(name, stream.kind, stream.shape, stream.names, stream.units, stream.frame, made_of=made_of)

    def make(self, obs: Mapping[str, np.ndarray]) -> Float[np.ndarray, "n c"]:
        """The points of one time step."""
        views = [
            View(
                obs[f"{c}_depth"], "mm", *from_row(obs[f"{c}_camera"], f"{c}_camera"), obs[c] if self.colours else None
            )
            for c in self.cameras
        ]
        return cloud(views, self.low, self.high, self.points)


@dataclass(frozen=True)
class PointMap:
    """A stream with a point for each pixel of a camera, `[h w 3]`, m of its frame; nan where depth is not known. It is as large as
    twice its pictures and depth, so it is made each time that it is read."""

    camera: Any
    held: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not isinstance(self.camera, str) or not self.camera:
            raise UserError(f"camera={self.camera} of a point map: give the name of one camera, such as front")

    def needs(self) -> tuple[str, ...]:
        """The streams that it is made of."""
        return f"{self.camera}_depth", f"{self.camera}_camera"

    def stream(self, name: str, obs: ObsSpace) -> Stream:
        """What it is called `name`; raises UserError where `obs` does not show what it needs."""
        frame = _require_camera(name, self.camera, obs).frame
        shape = (*obs[f"{self.camera}_depth"].shape, 3)
        return Stream(name, "points", shape, (), ("m",) * 3, frame, made_of=self.camera)

    def make(self, obs: Mapping[str, np.ndarray]) -> Float[np.ndarray, "h w 3"]:
        """The points of one time step."""
        depth, row = (obs[name] for name in self.needs())
        if not depth.any():
            raise _nothing(depth.size)
        return lift(depth, "mm", *from_row(row, f"{self.camera}_camera"))


def _require_camera(name: str, camera: str, obs: ObsSpace, colours: bool = False) -> Stream:
    """The calibration's stream of a camera that `obs` has with depth and, if asked for, a picture of the same pixels."""
    kinds = {f"{camera}_depth": "depth", f"{camera}_camera": "camera"} | ({camera: "image"} if colours else {})
    for part, kind in kinds.items():
        if part not in obs.names:
            raise UserError(
                f"stream {name!r} is made of camera {camera!r}, and its {kind} {part!r} is not there, only {', '.join(obs.names)}: "
                f"record it, or name another camera in task.derive.{name}"
            )
        if obs[part].kind != kind:
            raise UserError(f"stream {name!r} takes {part!r} for {kind}, it is {obs[part].kind}: rename one of them")
    depth = obs[f"{camera}_depth"].shape
    if colours and obs[camera].shape[:2] != depth:
        raise UserError(
            f"stream {name!r} has colours of {camera!r}, {obs[camera].shape}, and depth {depth}: record both with the same pixels"
        )
    return obs[f"{camera}_camera"]


def cloud(
    views: Sequence[View], low: Any, high: Any, n: int, start: int | np.random.Generator | None = None
) -> Float[np.ndarray, "n c"]:
    """n points of all cameras within the workspace from `low` to `high` (m), float32: x y z and, where pictures are given, red
    green blue from 0 to 1. `thin` chooses; where there are too few points they repeat."""
    if not views:
        raise UserError("a cloud of no cameras: give at least one View")
    if len({v.rgb is None for v in views}) > 1:
        raise UserError("some cameras of a cloud have a picture and some have none: give rgb of all, or of none")
    every = np.concatenate([_pixels(v).reshape(-1, 3 if v.rgb is None else 6) for v in views])
    return thin(crop(every, low, high), n, start)


def _pixels(view: View) -> np.ndarray:
    xyz = lift(*view[:4]).astype(np.float32, copy=False)
    if view.rgb is None:
        return xyz
    rgb = np.asarray(view.rgb)
    if rgb.dtype != np.uint8 or rgb.shape != xyz.shape:
        raise UserError(
            f"the picture of a depth map is {rgb.dtype} {rgb.shape}: give uint8 {xyz.shape}, a colour for each pixel of the depth"
        )
    return np.concatenate([xyz, rgb.astype(np.float32) / 255], -1)


def crop(points: Float[np.ndarray, "p c"], low: Any, high: Any) -> Float[np.ndarray, "q c"]:
    """The points whose x y z lie within the box, faces included; what is not known is left out. Raises UserError for no point."""
    low, high = _box(low, high)
    xyz = points[:, :3]
    known = xyz[np.isfinite(xyz).all(1)]
    if not len(known):
        raise _nothing(len(points))
    inside = points[((xyz >= low) & (xyz <= high)).all(1)]
    if not len(inside):
        raise UserError(
            f"no point lies within {_shown(low)} to {_shown(high)} m, they span {_shown(known.min(0))} to {_shown(known.max(0))}: widen the "
            "workspace, or look at the extrinsics"
        )
    return inside


def thin(
    points: Float[np.ndarray, "p c"], n: int, start: int | np.random.Generator | None = None
) -> Float[np.ndarray, "n c"]:
    """n of the points, the `farthest` of their x y z, colours beside them; all of them, repeated, where there are fewer. `start`
    None: begun from the lowest corner of the box that holds them, which is none of them."""
    if 0 < len(points) <= n:
        return points[np.resize(np.arange(len(points)), n)]
    return points[_from_corner(points[:, :3], n) if start is None else farthest(points[:, :3], n, start)]


def _from_corner(xyz: Float[np.ndarray, "p 3"], n: int) -> Int[np.ndarray, "n"]:
    """By fpsample (Han et al., 2023: the same points by a tree that leaves most of them out) where that is; where several points
    are equally far, as on a regular grid, it may take another of them. The corner stays first in its tree, being least in all
    coordinates, and is where it begins."""
    if n < 1 or not len(xyz) or not np.isfinite(xyz).all():
        return farthest(xyz, n)  # says so
    begun = np.concatenate([xyz.min(0)[None], xyz])
    if (fast := _fpsample()) is not None:
        chosen = fast(begun.astype(np.float32), n + 1, h=min(SPLITS, int(np.log2(len(begun)))), start_idx=0)
        if chosen[0] == 0:
            return chosen[1:].astype(np.int64) - 1
    return farthest(begun, n + 1)[1:] - 1


@cache
def _fpsample() -> Any:
    try:
        from fpsample import bucket_fps_kdline_sampling
    except ImportError:
        return None
    return bucket_fps_kdline_sampling


def farthest(points: Float[np.ndarray, "p c"], n: int, start: int | np.random.Generator = 0) -> Int[np.ndarray, "n"]:
    """Farthest point sampling (Eldar et al., 1997): each next point is the one farthest from all before, of equals the first.
    `start` is the first one, or what draws it. `polyarm.encoders.points.farthest` is the same for batches of tensors."""
    p = len(points)
    if not 1 <= n <= p:
        raise UserError(f"{n} farthest of {p} points: give a number from 1 to {p}")
    i = int(start.integers(p)) if isinstance(start, np.random.Generator) else start
    if not 0 <= i < p:
        raise UserError(f"farthest points from point {i} of {p} on: count from 0")
    if not np.isfinite(points).all():
        raise UserError(
            "points to choose from hold numbers that are not finite: crop them first, which leaves those out"
        )
    columns = np.ascontiguousarray(points.T)  # long rows, which is four times faster than rows of three
    apart, near = np.empty_like(columns), np.full(p, np.inf, columns.dtype)
    chosen, square = np.empty(n, np.int64), np.empty_like(near)
    for k in range(n):
        chosen[k] = i
        np.subtract(columns, columns[:, i, None], apart)
        np.multiply(apart, apart, apart)
        np.add.reduce(apart, 0, out=square)
        np.minimum(near, square, near)
        i = int(near.argmax())
    return chosen


def _nothing(n: int) -> UserError:
    return UserError(f"none of the {n} points is known: depth is 0 or nan everywhere, so check the camera")


def _box(low: Any, high: Any) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"]]:
    low, high = _corner("low", low), _corner("high", high)
    if not (low < high).all():
        raise UserError(
            f"a workspace from {_shown(low)} to {_shown(high)} m is empty: give low below high on each axis"
        )
    return low, high


def _corner(name: str, x: Any) -> Float[np.ndarray, "3"]:
    try:
        found = np.asarray(x, np.float64)
    except (TypeError, ValueError):
        found = np.array(np.nan)
    if found.shape != (3,) or np.isnan(found).any():
        raise UserError(f"{name}={x} of the workspace: give three numbers, x y z in m")
    return found


def _shown(x: np.ndarray) -> str:
    return "(" + ", ".join(f"{value:.3g}" for value in x) + ")"
