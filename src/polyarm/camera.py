"""A depth camera: its calibration, checked, and as a stream holds it; depth to points of the world, and back. Numpy only.

A camera is its intrinsics K `[3 3]`, pixels, and `camera_from_world` `[3 4]` or `[4 4]`, m: a point p is seen at K (R p + t), whose
last number is its depth. The centre of the pixel in column u and row v lies at (u + 1/2, v + 1/2), as renderers count; to cx and cy
of a calibration that counts from the first pixel's centre, as OpenCV's, add 1/2.

A stream of kind camera holds 16 numbers a row: fx fy cx cy, px, then base_from_camera row by row, m.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Float32

from polyarm.spec import UserError, unknown
from polyarm.streams import NUMBERS

UNITS = ("mm", "m")
REACH_M = 0.02, 20.0
"""Nine tenths of what an arm's camera sees lie beyond the first, one tenth nearer than the second, or the unit is another."""
SKEW = 1e-3
"""By how much a rotation's products may differ from those of a rotation (float16 calibrations do by 5e-4)."""


def to_row(intrinsics: Any, camera_from_base: Any) -> Float32[np.ndarray, "16"]:
    """A calibration as a stream of kind camera holds it. Raises `UserError` for what is none, and for skewed pixels."""
    k, (rotation, shift) = _intrinsics(intrinsics), _extrinsics(camera_from_base)
    if k[0, 1]:
        raise UserError(f"intrinsics have a skew of {k[0, 1]:g}: a camera's row has none, so rectify the pictures")
    base_from_camera = np.concatenate([rotation.T, -(rotation.T @ shift)[:, None]], 1)
    return np.concatenate([k[[0, 1, 0, 1], [0, 1, 2, 2]], base_from_camera.ravel()]).astype(np.float32)


def from_row(row: Any, name: str = "camera") -> tuple[Float[np.ndarray, "3 3"], Float[np.ndarray, "3 4"]]:
    """(intrinsics, camera_from_base) of one row of the stream `name`, checked."""
    row = np.asarray(row, np.float64)
    if row.shape != (NUMBERS,):
        raise UserError(f"{name} has shape {row.shape}: {FORM}")
    require_rows(row[None], name)
    fx, fy, cx, cy = row[:4]
    pose = row[4:].reshape(3, 4)
    back = pose[:, :3].T
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]), np.concatenate([back, -back @ pose[:, 3:]], 1)


FORM = "give fx fy cx cy in pixels, then base_from_camera, three rows of [R | t] with a rotation R and t in m"


def require_rows(rows: Float[np.ndarray, "t 16"], name: str) -> None:
    """Refuse rows of a stream of kind camera that are no calibration; names the first."""
    x = np.asarray(rows, np.float64)
    pose = x[:, 4:].reshape(-1, 3, 4)
    r = np.where(np.isfinite(pose[..., :3]), pose[..., :3], 0)
    off = np.abs(r @ r.transpose(0, 2, 1) - np.eye(3)).max((1, 2))

    def refuse(bad: Any, says: Any) -> None:
        if bad.any():
            i = int(bad.argmax())
            where = f" in row {i}" if len(x) > 1 else ""
            raise UserError(f"{name} {says(i)}{where}: {FORM}")

    refuse(~np.isfinite(x).all(1), lambda i: "holds numbers that are not finite")
    refuse(~x.any(1), lambda i: "holds zeros alone, no calibration,")
    refuse((x[:, :2] <= 0).any(1), lambda i: f"has focal lengths {x[i, 0]:g} and {x[i, 1]:g}")
    refuse(
        np.linalg.det(r) < SKEW,
        lambda i: f"has a rotation of determinant {np.linalg.det(r[i]):.3g}, singular or a mirror,",
    )
    refuse(
        off > SKEW, lambda i: f"has a rotation that is none, it stretches by {np.linalg.norm(r[i], axis=0).max():.4g},"
    )
    far = np.linalg.norm(pose[..., 3], axis=1)
    refuse(far > REACH_M[1], lambda i: f"stands {far[i]:.4g} m from the base, as if in millimetres,")


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
        raise UserError(f"the last row of the extrinsics is {pose[3].tolist()}, which is no pose's: {form}")
    r = pose[:3, :3]
    if (det := np.linalg.det(r)) < SKEW:
        raise UserError(f"the rotation of the extrinsics has determinant {det:.3g}, it is singular or a mirror: {form}")
    if np.abs(r @ r.T - np.eye(3)).max() > SKEW:
        raise UserError(
            f"the rotation of the extrinsics is none, it stretches by {np.linalg.norm(r, axis=1).max():.4g}: {form}"
        )
    return r, pose[:3, 3]
