"""The table of tasks in ManiSkill's scenes: what of each is shown beside the robot, from where it is seen, and how long it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from polyarm.spec import Stream

TURN = tuple(f"r{i}{j}" for j in (0, 1) for i in range(3))
"""The first two columns of a rotation, one after the other."""


class Shape(NamedTuple):
    """How a pose is written as channels."""

    names: tuple[str, ...]
    units: tuple[str, ...]
    read: Callable[[Float[np.ndarray, "4 4"]], list[float]]

    def stream(self, name: str) -> Stream:
        return Stream(name, "state", (len(self.names),), self.names, self.units, "base")


def _yaw(pose: np.ndarray, times: int) -> list[float]:
    yaw = times * np.arctan2(pose[1, 0], pose[0, 0])
    return [np.cos(yaw), np.sin(yaw)]


XYZ, M3 = ("x", "y", "z"), ("m", "m", "m")
POSE = Shape((*XYZ, *TURN), (*M3, *("1",) * 6), lambda p: [*p[:3, 3], *p[:3, 0], *p[:3, 1]])
POINT = Shape(XYZ, M3, lambda p: [*p[:3, 3]])
FLAT = Shape(("x", "y"), ("m", "m"), lambda p: [*p[:2, 3]])
CUBE = Shape((*XYZ, "cos4yaw", "sin4yaw"), (*M3, "1", "1"), lambda p: [*p[:3, 3], *_yaw(p, 4)])
"""A cube looks the same every 90 degrees."""
STANDING = Shape((*XYZ, "cosyaw", "sinyaw"), (*M3, "1", "1"), lambda p: [*p[:3, 3], *_yaw(p, 1)])
FIXED = Shape(("x", "y", "cosyaw", "sinyaw"), ("m", "m", "1", "1"), lambda p: [*p[:2, 3], *_yaw(p, 1)])


COLOURS: Mapping[str, tuple[float, float, float]] = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1)}
"""Of the cubes of LiftNamedCube."""


def _sizes(env: Any) -> list[float]:
    return env.peg_half_sizes[0, :2].tolist()


@dataclass(frozen=True)
class Task:
    """`shows` {stream: (attribute of ManiSkill's environment, its shape)}; `sizes` {stream: (channels, what reads them, m)}; `says`
    {thing: the instruction where that is the one that counts}. The outer camera stands at `eye` and looks at `look`, m in
    ManiSkill's world, whose origin lies before the robot."""

    id: str
    shows: Mapping[str, tuple[str, Shape]]
    sizes: Mapping[str, tuple[tuple[str, ...], Callable[[Any], list[float]]]] = field(default_factory=dict)
    says: Mapping[str, str] = field(default_factory=dict)
    robot: str = "panda"
    steps: int = 100
    eye: tuple[float, float, float] = (0.3, 0.0, 0.6)
    look: tuple[float, float, float] = (-0.1, 0.0, 0.1)


TASKS = {
    task.id: task
    for task in (
        Task("PickCube-v1", {"cube": ("cube", CUBE), "goal": ("goal_site", POINT)}),
        Task("PushCube-v1", {"cube": ("obj", CUBE), "goal": ("goal_region", FLAT)}),
        Task("PullCube-v1", {"cube": ("obj", CUBE), "goal": ("goal_region", FLAT)}),
        Task("StackCube-v1", {"cube_a": ("cubeA", CUBE), "cube_b": ("cubeB", CUBE)}, steps=150),
        Task(
            "LiftNamedCube-v1", {f"{c}_cube": (f"{c}_cube", CUBE) for c in COLOURS},
            says={c: f"lift the {c} cube" for c in COLOURS},
        ),
        Task("LiftPegUpright-v1", {"peg": ("peg", POSE)}, steps=150),
        Task(
            "PegInsertionSide-v1",
            {"peg": ("peg", POSE), "hole": ("box_hole_pose", STANDING)},
            {"peg_size": (("half_length", "half_width"), _sizes)},
            robot="panda_wristcam", steps=200, eye=(0.45, -0.05, 0.65), look=(-0.05, 0.05, 0.05),
        ),
        Task(
            "PlugCharger-v1", {"charger": ("charger", POSE), "receptacle": ("receptacle", FIXED)},
            robot="panda_wristcam", steps=250,
        ),
        Task(
            "PickCubeSO100-v1", {"cube": ("cube", CUBE), "goal": ("goal_site", POINT)},
            robot="so100", eye=(-0.27, 0.0, 0.4), look=(-0.56, 0.0, -0.25),
        ),
    )
}  # fmt: skip
