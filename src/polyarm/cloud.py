"""Depth and calibration to points, cropped to a workspace and thinned to a number. Numpy only: worlds, drivers, data and the
report make their clouds by the same lines, so that stored depth and live depth give the same points.

A camera is its intrinsics K `[3 3]`, pixels, and `camera_from_world` `[3 4]` or `[4 4]`, m: a point p is seen at K (R p + t), whose
last number is its depth. The centre of the pixel in column u and row v lies at (u + 1/2, v + 1/2), as renderers count; to cx and cy
of a calibration that counts from the first pixel's centre, as OpenCV's, add 1/2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from polyarm.spec import UserError, unknown

UNITS = ("mm", "m")
REACH_M = 0.02, 20.0
"""Nine tenths of what an arm's camera sees lie beyond the first, one tenth nearer than the second, or the unit is another."""
SKEW = 1e-3
"""By how much a rotation's products may differ from those of a rotation (float16 calibrations do by 5e-4)."""


class View(NamedTuple):
    """What one camera saw in one time step. `unit`: "mm", uint16, or "m", floats. `rgb`: uint8 `[h w 3]`."""

    depth: Any
    unit: str
    intrinsics: Any
    camera_from_world: Any
    rgb: Any = None


def cloud(
    views: Sequence[View], low: Any, high: Any, n: int, start: int | np.random.Generator = 0
) -> Float[np.ndarray, "n c"]:
    """n points of all cameras within the workspace from `low` to `high` (m), float32: x y z and, where pictures are given, red
    green blue from 0 to 1. `farthest` chooses; where there are too few points they repeat."""
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


def lift(depth: Any, unit: str, intrinsics: Any, camera_from_world: Any) -> Float[np.ndarray, "h w 3"]:
    """Every pixel's point in the world, m; nan where its depth is not known. float64 if the depth is, float32 otherwise."""
    z = metres(depth, unit)
    inverse, (rotation, shift) = np.linalg.inv(_intrinsics(intrinsics)), _extrinsics(camera_from_world)
    u, v = (np.arange(size) + 0.5 for size in z.shape[::-1])
    ray = np.stack(np.broadcast_arrays(u[None], v[:, None], 1.0), -1) @ inverse.T  # in the camera, depth 1
    to_world = (ray @ rotation).astype(z.dtype)  # the rotation's inverse, from the right
    return to_world * z[..., None] - (shift @ rotation).astype(z.dtype)


def project(
    points: Float[np.ndarray, "*p 3"], intrinsics: Any, camera_from_world: Any
) -> tuple[Float[np.ndarray, "*p 2"], Float[np.ndarray, "*p"]]:
    """(where a camera sees points: column and row in pixels; their depth, m, negative behind the camera)."""
    rotation, shift = _extrinsics(camera_from_world)
    seen = (points @ rotation.T + shift) @ _intrinsics(intrinsics).T
    return seen[..., :2] / seen[..., 2:], seen[..., 2]


def metres(depth: Any, unit: str) -> Float[np.ndarray, "h w"]:
    """Depth in metres, nan where it is 0 or not finite. Whole numbers are millimetres and floats are metres, and `unit` has to
    say so; a range that only the other unit has is refused."""
    if unit not in UNITS:
        raise unknown("unit of depth", unit, UNITS)
    x = np.asarray(depth)
    if x.ndim != 2 or not x.size:
        raise UserError(f"a depth map has shape {x.shape}: give (height, width), one number a pixel")
    if unit == "mm" and x.dtype != np.uint16:
        raise UserError(
            f"depth is {x.dtype} and said to be millimetres, which are uint16: say 'm' if it is metres, or round it to np.uint16"
        )
    if unit == "m" and x.dtype.kind != "f":
        raise UserError(f"depth is {x.dtype} and said to be metres, which are floats: say 'mm' if it is millimetres")
    if unit == "mm":
        z = x.astype(np.float32) / 1000
    else:
        z = x if x.dtype == np.float64 else x.astype(np.float32)
    known = np.isfinite(z) & (z != 0)
    if (low := z[known].min(initial=0)) < 0:
        raise UserError(
            f"depth goes down to {low:.3g} m: it counts forward along the camera's axis, so give -depth if the axis is turned"
        )
    if known.any():
        near, far = np.quantile(z[known], (0.1, 0.9))
        if near > REACH_M[1]:
            raise UserError(
                f"nine tenths of the depth lie beyond {near:.4g} m: it is millimetres; give depth.round().astype(np.uint16) and 'mm'"
                if unit == "m"
                else f"nine tenths of the depth lie beyond {near:.4g} m: it is finer than millimetres; convert it to those"
            )
        if far < REACH_M[0]:
            raise UserError(
                f"nine tenths of the depth lie nearer than {far * 1000:.3g} mm: say its true unit, metres as floats or millimetres as uint16"
            )
    return np.where(known, z, z.dtype.type(np.nan))


def crop(points: Float[np.ndarray, "p c"], low: Any, high: Any) -> Float[np.ndarray, "q c"]:
    """The points whose x y z lie within the box, faces included; what is not known is left out. Raises UserError for no point."""
    low, high = _corner("low", low), _corner("high", high)
    if not (low < high).all():
        raise UserError(
            f"a workspace from {_shown(low)} to {_shown(high)} m is empty: give low below high on each axis"
        )
    xyz = points[:, :3]
    known = xyz[np.isfinite(xyz).all(1)]
    if not len(known):
        raise UserError(f"none of the {len(points)} points is known: depth is 0 or nan everywhere, so check the camera")
    inside = points[((xyz >= low) & (xyz <= high)).all(1)]
    if not len(inside):
        raise UserError(
            f"no point lies within {_shown(low)} to {_shown(high)} m, they span {_shown(known.min(0))} to {_shown(known.max(0))}: widen the "
            "workspace, or look at the extrinsics"
        )
    return inside


def thin(points: Float[np.ndarray, "p c"], n: int, start: int | np.random.Generator = 0) -> Float[np.ndarray, "n c"]:
    """n of the points by `farthest` of their x y z, colours beside them; all of them, repeated, where there are fewer."""
    if 0 < len(points) <= n:
        return points[np.resize(np.arange(len(points)), n)]
    return points[farthest(points[:, :3], n, start)]


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


def _intrinsics(k: Any) -> Float[np.ndarray, "3 3"]:
    form = "give [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] in pixels"
    if k is None:
        raise UserError(f"a depth map comes without intrinsics, so its points cannot be known: {form}")
    k = np.asarray(k, np.float64)
    if k.shape != (3, 3) or not np.isfinite(k).all():
        raise UserError(f"intrinsics have shape {k.shape} or numbers that are not finite: {form}")
    if not (k[0, 0] > 0 and k[1, 1] > 0) or k[1, 0] or (k[2] != (0, 0, 1)).any():
        raise UserError(f"intrinsics are {k.tolist()}: {form}, both focal lengths above 0")
    return k


def _extrinsics(pose: Any) -> tuple[Float[np.ndarray, "3 3"], Float[np.ndarray, "3"]]:
    form = "give camera_from_world, [R | t] with a rotation R and t in m"
    if pose is None:
        raise UserError(f"a depth map comes without extrinsics, so its points cannot be known: {form}")
    pose = np.asarray(pose, np.float64)
    if pose.shape not in ((3, 4), (4, 4)) or not np.isfinite(pose).all():
        raise UserError(f"extrinsics have shape {pose.shape} or numbers that are not finite: {form}")
    if len(pose) == 4 and (pose[3] != (0, 0, 0, 1)).any():
        raise UserError(f"the last row of the extrinsics is {_shown(pose[3])}, which is no pose's: {form}")
    r = pose[:3, :3]
    if (det := np.linalg.det(r)) < SKEW:
        raise UserError(f"the rotation of the extrinsics has determinant {det:.3g}, it is singular or a mirror: {form}")
    if np.abs(r @ r.T - np.eye(3)).max() > SKEW:
        raise UserError(
            f"the rotation of the extrinsics is none, it stretches by {np.linalg.norm(r, axis=1).max():.4g}: {form}"
        )
    return r, pose[:3, 3]


def _corner(name: str, x: Any) -> Float[np.ndarray, "3"]:
    x = np.asarray(x, np.float64)
    if x.shape != (3,) or np.isnan(x).any():
        raise UserError(f"{name}={x.tolist()} of the workspace: give three numbers, x y z in m")
    return x


def _shown(x: np.ndarray) -> str:
    return "(" + ", ".join(f"{value:.3g}" for value in x) + ")"
