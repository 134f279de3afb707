"""What cameras measured, as points in the robot's base frame, for a view that turns: a wrong extrinsic is seen there before
training. The points are those of `polyarm.camera.lift`, by which training and acting make theirs. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from polyarm.camera import from_row, lift
from polyarm.datasets.demos import ACTION, Demos
from polyarm.spec import ObsSpace, Stream, UserError
from polyarm.streams import CHANNELS

POINTS = 5000
"""Drawn of all cameras at one moment."""
SEEN = 1024
"""Drawn of each stream of points at one moment."""
STEPS = 200
"""Drawn of the gripper's path."""
GREY = 128
"""Where nobody says a colour."""

Box = tuple[Sequence[float], Sequence[float]]


@dataclass(frozen=True)
class Points:
    """In the base frame, m."""

    xyz: Float[np.ndarray, "p 3"]
    rgb: UInt8[np.ndarray, "p 3"]


@dataclass(frozen=True)
class Camera:
    """One camera at one moment."""

    name: str
    eye: Float[np.ndarray, "3"]
    rays: Float[np.ndarray, "4 3"]
    """From the eye to the corners of its picture at a depth of 1 m, the upper left one first, clockwise."""
    points: Points
    measured: float
    """Share of the pixels whose depth is known."""


@dataclass(frozen=True)
class Moment:
    """One observation. `seen`: streams of points, which policies see as they are, by name."""

    label: str
    cameras: tuple[Camera, ...]
    seen: Mapping[str, Points]
    tip: Float[np.ndarray, "3"] | None = None


@dataclass(frozen=True)
class Scene:
    """Moments of one world. `path`: of the gripper, empty where no stream says it; `box`: low and high of a workspace."""

    title: str
    moments: tuple[Moment, ...]
    path: Float[np.ndarray, "t 3"]
    box: Box | None = None


def has_scene(space: ObsSpace) -> bool:
    return any(s.kind in ("depth", "points") for s in space.streams)


def scene(demos: Demos, episode: int = 0, box: Box | None = None) -> Scene:
    """The first, middle and last moment of an episode. Raises `UserError` where there is nothing to lift, or no calibration."""
    space, ends = demos.spec.obs, demos.episode_ends
    if not has_scene(space):
        raise UserError(
            f"the demonstrations hold {', '.join(space.names) or 'no streams'}, no depth and no points, so nothing is known in three "
            "dimensions: record a depth stream, such as front_depth, with front_camera beside it"
        )
    if not 0 <= episode < len(ends):
        raise UserError(f"there is no episode {episode} among {len(ends)}: record it, or choose another")
    begin, end = (int(row) for row in np.insert(ends, 0, 0)[episode : episode + 2])
    tips, moments = _tips(demos, begin, end), []
    for row, name in sorted({end - 1: "last", (begin + end - 1) // 2: "middle", begin: "first"}.items()):
        obs = {s.name: np.asarray(demos.stream(s.name)[row : row + 1])[0] for s in space.streams if s.kind in KINDS}
        tip = tips[row - begin] if len(tips) else None
        moments.append(moment(f"{name} row", obs, space, tip))
    thinned = tips[np.linspace(0, len(tips) - 1, min(STEPS, len(tips))).round().astype(int)]
    return Scene(f"demonstrations: episode {episode}, rows 0 to {end - begin - 1}", tuple(moments), thinned, box)


def observed(title: str, obs: Mapping[str, np.ndarray], space: ObsSpace, box: Box | None = None) -> Scene:
    """One observation alone, {stream: [...]}."""
    axes = next((_axes(s.names, s.units) for s in space.streams if s.name == "tip"), [])
    tip = np.asarray(obs["tip"], np.float64)[axes] if axes else None
    return Scene(title, (moment("first observation", obs, space, tip),), np.empty((0, 3)), box)


KINDS = ("image", "depth", "camera", "points")
"""Of streams that a moment is made of."""


def moment(label: str, obs: Mapping[str, np.ndarray], space: ObsSpace, tip: np.ndarray | None = None) -> Moment:
    """`obs`: {stream: [...]} of one time step."""
    depths = [s.name for s in space.streams if s.kind == "depth"]
    cameras = tuple(_camera(name, obs, space, POINTS // len(depths)) for name in depths)
    return Moment(label, cameras, {s.name: _given(s, obs[s.name]) for s in space.streams if s.kind == "points"}, tip)


def _camera(depth: str, obs: Mapping[str, np.ndarray], space: ObsSpace, n: int) -> Camera:
    name = depth.removesuffix("_depth")
    if f"{name}_camera" not in space.names:
        raise UserError(
            f"depth stream {depth!r} comes without {name}_camera, so where its points lie is not known: record fx fy cx cy (px) and "
            "base_from_camera row by row (m) as a stream of kind camera, 16 numbers"
        )
    k, camera_from_base = from_row(obs[f"{name}_camera"], f"stream '{name}_camera'")
    try:
        xyz = lift(obs[depth], "mm", k, camera_from_base)
    except UserError as error:
        raise UserError(f"stream {depth!r}: {error}") from error
    h, w = xyz.shape[:2]
    picture = obs.get(name)
    rgb = picture if picture is not None and picture.shape == (h, w, 3) else np.full((h, w, 3), GREY, np.uint8)
    known = np.isfinite(xyz).all(-1)
    corners = np.array([[0, 0, 1], [w, 0, 1], [w, h, 1], [0, h, 1]]) @ np.linalg.inv(k).T
    rotation, shift = camera_from_base[:, :3], camera_from_base[:, 3]
    return Camera(name, -shift @ rotation, corners @ rotation, _some(xyz[known], rgb[known], n), float(known.mean()))


def _given(stream: Stream, x: np.ndarray) -> Points:
    rows = x.reshape(-1, x.shape[-1])
    rows = rows[np.isfinite(rows).all(1)]
    coloured = stream.names[3:6] == CHANNELS[3:]
    rgb = np.rint(rows[:, 3:6].clip(0, 1) * 255) if coloured else np.full((len(rows), 3), GREY)
    return _some(rows[:, :3], rgb.astype(np.uint8), SEEN)


def _some(xyz: np.ndarray, rgb: np.ndarray, n: int) -> Points:
    """n of them at random, always the same."""
    if len(xyz) > n:
        chosen = np.random.default_rng(0).choice(len(xyz), n, replace=False)
        xyz, rgb = xyz[chosen], rgb[chosen]
    return Points(xyz.astype(np.float64), rgb)


def _tips(demos: Demos, begin: int, end: int) -> Float[np.ndarray, "t 3"]:
    """Where the gripper was, by stream "tip", or where it was told to be; none where neither has x y z in m."""
    spec = demos.spec
    said = [("tip", s.names, s.units) for s in spec.obs.streams if s.name == "tip"]
    for name, names, units in (*said, (ACTION, spec.action.names, spec.action.units)):
        if at := _axes(names, units):
            return np.asarray(demos.stream(name)[begin:end], np.float64)[:, at]
    return np.empty((0, 3))


def _axes(names: Sequence[str], units: Sequence[str]) -> list[int]:
    """The channels x y z, if they are there in m."""
    at = [
        i
        for axis in "xyz"
        for i, (name, unit) in enumerate(zip(names, units, strict=False))
        if (name, unit) == (axis, "m")
    ]
    return at if len(at) == 3 else []
