"""A `Scene` as what its view on a page draws: places as whole numbers, colours as bytes, both in base64. Loads no torch."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from math import degrees, floor, log10
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from polyarm.eval.page import script, write_page
from polyarm.eval.scene import Camera, Points, Scene

FAR = 3.0
"""What lies beyond so many median distances from the middle of what cameras measured is left out: a horizon would make a table a dot."""
MOST = 2**16 - 1


@dataclass(frozen=True)
class Grid:
    """Places as uint16: `low + step * number`, m."""

    low: Float[np.ndarray, "3"]
    step: float

    def put(self, xyz: Float[np.ndarray, "p 3"]) -> str:
        return packed(np.rint((xyz - self.low) / self.step).astype("<u2"))


def write_look(path: Path | str, title: str, scene: Scene) -> None:
    """A page of this view alone."""
    write_page(path, "look.html", {}, title=title, view=view(scene), script=script("scene.js"))


def packed(x: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(x).tobytes()).decode()


def view(scene: Scene) -> dict[str, Any]:
    """What the template needs: `data`, json for the script; `moments`, their labels; `seen`, names of streams; `cameras`, a row of
    facts each; `left_out`, the share of points that is not drawn."""
    middle, reach = _extent(scene)
    near = lambda p: _within(p, middle, reach)
    kept = [near(p) for p in _clouds(scene)]
    stand = np.stack([np.zeros(3), *(c.eye for m in scene.moments for c in m.cameras)])
    xyz = np.concatenate([k.xyz for k in kept])
    most = np.concatenate([stand, np.quantile(xyz, (0.1, 0.9), axis=0)]) if len(xyz) else stand
    centre = (most.min(0) + most.max(0)) / 2
    size = float(np.linalg.norm(np.ptp(most, 0)) / 2) or 1.0
    ends = np.concatenate([xyz, stand, scene.path])
    grid = Grid(ends.min(0), float(np.ptp(ends, 0).max() or 1) / MOST)
    data = {
        "low": _rounded(grid.low, 7), "step": grid.step, "middle": _rounded(centre), "size": round(size, 4),
        "cell": nice(size / 5), "path": grid.put(scene.path), "box": scene.box and [_rounded(corner) for corner in scene.box],
        "moments": [
            {
                "cameras": [_camera(c, near(c.points), grid, 0.1 * size) for c in m.cameras],
                "seen": [grid.put(near(p).xyz) for p in m.seen.values()],
                "tip": None if m.tip is None else _rounded(m.tip),
            }
            for m in scene.moments
        ],
    }  # fmt: skip
    first, every = scene.moments[0], sum(len(p.xyz) for p in _clouds(scene))
    return {
        "title": scene.title, "data": json.dumps(data, separators=(",", ":")), "moments": [m.label for m in scene.moments],
        "seen": list(first.seen), "cameras": [facts(c) for c in first.cameras], "path": bool(len(scene.path)),
        "box": scene.box, "cell": data["cell"],
        "left_out": 1 - sum(len(k.xyz) for k in kept) / every if every else 0.0,
    }  # fmt: skip


def nice(x: float) -> float:
    """The largest 1, 2 or 5 times a power of ten up to x."""
    power = 10.0 ** floor(log10(x))
    return float(f"{max(n for n in (1, 2, 5) if n * power <= x * (1 + 1e-9)) * power:.6g}")


def facts(c: Camera) -> dict[str, Any]:
    """Numbers by which a wrong calibration shows."""
    ahead = c.rays.mean(0)
    down = c.eye[2] > 0 > ahead[2]
    left, right = c.rays[0] + c.rays[3], c.rays[1] + c.rays[2]  # to the middles of the picture's sides
    across = degrees(np.arccos(left @ right / np.linalg.norm(left) / np.linalg.norm(right)))
    z = np.quantile(c.points.xyz[:, 2], (0.02, 0.98)) if len(c.points.xyz) else None
    return {
        "name": c.name, "eye": said(c.eye), "at": said((c.eye - ahead * c.eye[2] / ahead[2])[:2]) if down else "nowhere",
        "across": round(across), "measured": c.measured, "z": "nothing" if z is None else " to ".join(said(z).split(", ")),
    }  # fmt: skip


def said(xyz: np.ndarray) -> str:
    return ", ".join(f"{x + 0.0:.3f}" for x in np.round(xyz, 3))


def _clouds(scene: Scene) -> Iterator[Points]:
    for m in scene.moments:
        yield from (c.points for c in m.cameras)
        yield from m.seen.values()


def _extent(scene: Scene) -> tuple[np.ndarray, float]:
    """(middle of the points, how far from it they are drawn)."""
    xyz = np.concatenate([p.xyz for p in _clouds(scene)])
    if not len(xyz):
        return np.zeros(3), 1.0
    middle = np.median(xyz, 0)
    return middle, float(FAR * np.median(np.linalg.norm(xyz - middle, axis=1))) or 1.0


def _within(p: Points, middle: np.ndarray, reach: float) -> Points:
    near = np.linalg.norm(p.xyz - middle, axis=1) <= reach
    return Points(p.xyz[near], p.rgb[near])


def _camera(c: Camera, points: Points, grid: Grid, depth: float) -> dict[str, Any]:
    return {
        "name": c.name, "eye": _rounded(c.eye), "corners": [_rounded(c.eye + ray * depth) for ray in c.rays],
        "xyz": grid.put(points.xyz), "rgb": packed(points.rgb),
    }  # fmt: skip


def _rounded(x: Any, digits: int = 4) -> list[float]:
    return [round(float(n), digits) for n in x]
