"""Whether calibrations fit what was seen: figures of depth, camera by camera, and a sentence where they are clearly off. Nothing is
known of the scene, so what a right calibration makes true of any is measured:

- the largest flat part of what is seen, a table or a floor, is level in the robot's frame;
- what one camera sees, no other looks through;
- the arm's tip is where something is seen, and not below the table.

An error of a few millimetres or of a degree is not found so; with one camera, nor is one that moves all points sideways by less
than the gripper is wide, or down. Loads no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import permutations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from polyarm.camera import from_row, lift, project
from polyarm.datasets.demos import Demos
from polyarm.datasets.store import open_path
from polyarm.spec import ObsSpace, UserError

MOMENTS = 24
"""At which the cameras are looked at, of as many episodes as there are."""
FLAT_M, FLAT = 0.006, 0.2
"""A plane holds a point that is no further from it, and is one if it holds such a share of them."""
TILT_DEG, THROUGH_M, THROUGH, TIP_M, BELOW_M, PAST = 4.0, 0.02, 0.1, 0.04, 0.015, 0.65
"""What is clearly off: the tilt of the plane; the share of points out of it that another camera looks through, so many metres deep;
the tip's distance from what is seen; how far it goes below the plane; and the share of moments at which a camera looks past it
(between open fingers a right one does at a third of them)."""

FEW = 200
"""Points that say nothing of two cameras."""


class Plane(NamedTuple):
    """normal . p = offset, the normal up."""

    normal: Float[np.ndarray, "3"]
    offset: float


def check(source: str | Path | Demos) -> dict[str, Any]:
    """Figures that are plain data: path, moments, cameras [{camera, measured (share of its pixels), size, centre (principal point),
    tilt_deg, height_m (of the plane), flat (share of points it holds), past (see `PAST`); None where that is not known}], pairs [{cameras,
    off_mm (median), through (share)}], tip {stream, off_mm (median), below_mm} or None, and wrong, the sentences.

    Raises `UserError` for demonstrations without depth and calibration, and for a calibration that is none.
    """
    demos = open_path(source) if isinstance(source, str | Path) else source
    space = demos.spec.obs
    names = [c for c in (s.name.removesuffix("_depth") for s in space.streams if s.kind == "depth") if f"{c}_camera" in space.names]  # fmt: skip
    if not names:
        raise UserError(
            f"{getattr(demos, 'path', 'the demonstrations')} holds {', '.join(space.names)}, no depth with its calibration: record a "
            "camera's front_depth and front_camera"
        )
    rows = _moments(demos.episode_ends)
    seen = {c: [_Seen.of(demos, c, i) for i in rows] for c in names}
    planes = {c: [_plane(s.points) for s in seen[c]] for c in names}
    out: dict[str, Any] = {"path": str(getattr(demos, "path", "")) or None, "moments": len(rows)}
    tip = _tip(space, f"{names[0]}_camera")
    where = None if tip is None else [np.asarray(demos.stream(tip)[i : i + 1], np.float64)[0, :3] for i in rows]
    out["cameras"] = [_camera(c, seen[c], planes[c]) | {"past": where and _past(seen[c], where)} for c in names]
    out["pairs"] = [_pair(a, b, seen[a], seen[b], planes[a]) for a, b in permutations(names, 2)]
    out["tip"] = where and {"stream": tip, **_off_tip(where, seen, planes)}
    out["wrong"] = list(_wrong(out))
    return out


class _Seen(NamedTuple):
    """What a camera saw at one moment. `points`: those that are known, in the base frame."""

    depth: Float[np.ndarray, "h w"]
    points: Float[np.ndarray, "p 3"]
    camera: tuple[np.ndarray, np.ndarray]

    @classmethod
    def of(cls, demos: Demos, camera: str, row: int) -> _Seen:
        depth, numbers = (
            np.asarray(demos.stream(f"{camera}_{part}")[row : row + 1])[0] for part in ("depth", "camera")
        )
        calibration = from_row(numbers, f"{camera}_camera in row {row}")
        points = lift(depth, "mm", *calibration).reshape(-1, 3)
        return cls(depth / 1000, points[np.isfinite(points).all(1)], calibration)


def _moments(ends: np.ndarray) -> list[int]:
    """Rows spread over all episodes, and within them."""
    if not len(ends):
        raise UserError("there is no episode to look at: record one")
    lengths = np.diff(ends, prepend=0)
    episodes = np.unique(np.linspace(0, len(ends) - 1, MOMENTS).astype(int))
    each = -(-MOMENTS // len(episodes))
    part = np.linspace(0, 1, each + 2)[1:-1] if each > 1 else np.linspace(0.05, 0.95, len(episodes))
    within = [part] * len(episodes) if each > 1 else part[np.random.default_rng(0).permutation(len(part)), None]
    return sorted({int(ends[e] - lengths[e] + p * (lengths[e] - 1)) for e, w in zip(episodes, within, strict=True) for p in w})  # fmt: skip


def _plane(points: Float[np.ndarray, "p 3"], tries: int = 200) -> Plane | None:
    """The plane within 45 degrees of level that holds most points, if it holds enough (RANSAC, Fischler and Bolles, 1981)."""
    rng = np.random.default_rng(0)
    some = points[rng.permutation(len(points))[:2000]].astype(np.float64)
    if len(some) < 50:
        return None
    three = some[rng.integers(len(some), size=(tries, 3))]
    normal = np.cross(three[:, 1] - three[:, 0], three[:, 2] - three[:, 0])
    size = np.linalg.norm(normal, axis=1)
    keep = (size > 1e-6) & (np.abs(normal[:, 2]) > size * np.cos(np.pi / 4))
    if not keep.any():
        return None
    normal = normal[keep] / size[keep, None]
    off = np.abs(some @ normal.T - (normal * three[keep, 0]).sum(1))
    best = off[:, (off < FLAT_M).sum(0).argmax()] < FLAT_M
    middle = some[best].mean(0)
    up = np.linalg.svd(some[best] - middle, full_matrices=False)[2][2]
    up = up * np.sign(up[2])
    plane = Plane(up, float(up @ middle))
    return plane if _on(plane, some).mean() >= FLAT else None


def _on(plane: Plane, points: Float[np.ndarray, "p 3"]) -> Bool[np.ndarray, "p"]:
    return np.abs(points @ plane.normal - plane.offset) < FLAT_M


def _camera(name: str, seen: list[_Seen], planes: list[Plane | None]) -> dict[str, Any]:
    there = [(p, s.points[_on(p, s.points)]) for p, s in zip(planes, seen, strict=True) if p is not None]
    out = {"camera": name, "measured": float(np.mean([(s.depth > 0).mean() for s in seen]))}
    out |= {"size": list(seen[0].depth.shape), "centre": seen[0].camera[0][:2, 2].tolist()}
    if 2 * len(there) < len(seen):  # none that stays
        return {**out, "tilt_deg": None, "height_m": None, "flat": None}
    tilt = [float(np.degrees(np.arccos(min(p.normal[2], 1.0)))) for p, _ in there]
    flat = float(np.mean([0.0 if p is None else _on(p, s.points).mean() for p, s in zip(planes, seen, strict=True)]))
    return {
        **out,
        "tilt_deg": float(np.median(tilt)),
        "height_m": float(np.median([np.median(on[:, 2]) for _, on in there])),
        "flat": flat,
    }


def _pair(a: str, b: str, of_a: list[_Seen], of_b: list[_Seen], planes: list[Plane | None]) -> dict[str, Any]:
    """How what `a` saw lies in the depth of `b`, where both see it or `b` looks through it. Of all for how far off it is; what
    stands out of the plane for what is looked through, since a plane that slides along itself stays where it is."""
    off, through = [], []
    for one, other, plane in zip(of_a, of_b, planes, strict=True):
        points = one.points[:: max(1, len(one.points) // 4000)]
        pixel, z = project(points, *other.camera)
        there = _depth_at(other.depth, pixel, z)
        met = (there > 0) & (there > z - THROUGH_M)  # what lies further behind is hidden from b
        off.append(np.abs(there - z)[met])
        out = met if plane is None else met & (points @ plane.normal - plane.offset > THROUGH_M)
        through.append((_depth_at(_nearest(other.depth), pixel, z) > z + THROUGH_M)[out])
    every, stands = np.concatenate(off), np.concatenate(through)
    return {
        "cameras": [a, b],
        "off_mm": float(np.median(every) * 1000) if len(every) >= FEW else None,
        "through": float(stands.mean()) if len(stands) >= FEW else None,
    }


def _nearest(depth: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """The least that was measured in each pixel and those round it, so that an outline off by a pixel is not looked past."""
    known = np.pad(np.where(depth > 0, depth, np.inf), 1, constant_values=np.inf)
    h, w = depth.shape
    return np.min([known[i : i + h, j : j + w] for i in range(3) for j in range(3)], 0)


def _tip(space: ObsSpace, camera: str) -> str | None:
    """The stream that says where the tip is: x y z, m, in the frame that cameras are in."""
    fits = [s.name for s in space.streams if s.names[:3] == ("x", "y", "z") and s.low_dim and s.units[:3] == ("m",) * 3 and s.frame == space[camera].frame]  # fmt: skip
    return next((n for n in fits if "tip" in n), None)


def _past(seen: list[_Seen], tip: list[np.ndarray]) -> float | None:
    """The share of moments at which a camera that stands still looks past the tip; None where it never has it in view."""
    if any(np.abs(s.camera[1] - seen[0].camera[1]).max() > 1e-3 for s in seen):
        return None  # on the hand, it always looks between the fingers
    past = []
    for s, where in zip(seen, tip, strict=True):
        pixel, z = project(where, *s.camera)
        there = _depth_at(s.depth, pixel[None], z[None])[0]
        if there > 0:
            past.append(there > z + THROUGH_M)
    return float(np.mean(past)) if past else None


def _depth_at(
    depth: Float[np.ndarray, "h w"], pixel: Float[np.ndarray, "p 2"], z: Float[np.ndarray, "p"]
) -> Float[np.ndarray, "p"]:
    """What was measured where points are seen; 0 outside the picture and behind the camera."""
    h, w = depth.shape
    column, row = np.floor(np.nan_to_num(pixel, nan=-1, posinf=-1, neginf=-1)).clip(-1, 1 << 15).astype(int).T
    inside = (z > 0) & (column >= 0) & (row >= 0) & (column < w) & (row < h)
    return np.where(inside, depth[row.clip(0, h - 1), column.clip(0, w - 1)], 0.0)


def _off_tip(
    tip: list[np.ndarray], seen: Mapping[str, list[_Seen]], planes: Mapping[str, list[Plane | None]]
) -> dict[str, Any]:
    """Of all cameras; what lies on the plane is no arm."""
    far, below = [], []
    for at, where in enumerate(tip):
        found = []
        for c, each in seen.items():
            plane, points = planes[c][at], each[at].points
            if plane is not None:
                below.append(plane.offset - float(plane.normal @ where))
                points = points[points @ plane.normal - plane.offset > FLAT_M]
            found.append(points)
        every = np.concatenate(found)
        far.append(float(np.linalg.norm(every - where, axis=1).min()) if len(every) else np.inf)
    deepest = max([0.0, *below]) * 1000 if below else None
    return {"off_mm": float(np.median(far) * 1000), "below_mm": deepest}


def _wrong(found: Mapping[str, Any]) -> Iterator[str]:
    tip = found["tip"]
    for c in found["cameras"]:
        name, (cx, cy), (h, w) = c["camera"], c["centre"], c["size"]
        if not (0 <= cx <= w and 0 <= cy <= h):
            yield (
                f"the principal point of {name}, ({cx:.4g}, {cy:.4g}), lies outside its picture, {w} x {h}: scale the intrinsics with the "
                "pictures, and shift them with a crop"
            )
        if c["tilt_deg"] is not None and c["tilt_deg"] > TILT_DEG:
            yield (
                f"the table that {name} sees is tilted by {c['tilt_deg']:.1f} degrees against the robot's base: calibrate its extrinsic "
                "again, unless the base stands aslant"
            )
        if c["past"] is not None and c["past"] > PAST:
            yield (
                f"{name} looks past the place of the arm's {tip['stream']} at {c['past']:.0%} of the moments: calibrate its extrinsic again"
            )
    for pair in found["pairs"]:
        if pair["through"] is not None and pair["through"] > THROUGH:
            a, b = pair["cameras"]
            yield f"{b} looks through {pair['through']:.0%} of what {a} sees on the table: calibrate the extrinsics of both again"
    if tip is not None and tip["off_mm"] > TIP_M * 1000:
        yield (
            f"nothing is seen within {tip['off_mm']:.0f} mm of the arm's {tip['stream']}, in the median: calibrate the extrinsics again, "
            "and let a camera see the gripper"
        )
    if tip is not None and (tip["below_mm"] or 0) > BELOW_M * 1000:
        yield (
            f"the arm's {tip['stream']} goes {tip['below_mm']:.0f} mm below the table that is seen: calibrate the extrinsics again"
        )


def said(found: Mapping[str, Any]) -> str:
    """The figures, a line each."""
    show = lambda x, form: "unknown" if x is None else format(x, form)
    lines = [f"{found['path'] or 'demonstrations'}: {found['moments']} moments"]
    for c in found["cameras"]:
        lines.append(
            f"{c['camera']}: depth in {c['measured']:.0%} of its pixels; the table is tilted by {show(c['tilt_deg'], '.1f')} degrees, at "
            f"z = {show(c['height_m'], '.3f')} m; looks past the tip at {show(c['past'], '.0%')} of the moments"
        )
    for pair in found["pairs"]:
        a, b = pair["cameras"]
        lines.append(
            f"{a} in {b}: {show(pair['off_mm'], '.1f')} mm apart, {show(pair['through'], '.1%')} looked through"
        )
    if (tip := found["tip"]) is not None:
        lines.append(
            f"{tip['stream']}: {tip['off_mm']:.0f} mm from what is seen, at most {show(tip['below_mm'], '.0f')} mm below the table"
        )
    return "\n".join(lines)
