"""Scripted experts for ManiSkill's tasks: tables of phases that switch on what is, not on time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from jaxtyping import Float, Float32

from polyarm.rotation import convert
from polyarm.sim.sapien.arm import apart
from polyarm.sim.sapien.maniskill import ManiSkill

OPEN_M, CLOSED_M = 0.04, -0.01
STRIDE_M, STRIDE_RAD = 0.04, 0.25
"""How far ahead of where it is the tip is told to be, at most."""
HALF_M = 0.02
"""Half a cube's edge."""


class Phase(NamedTuple):
    name: str
    goal: Callable[[Any], np.ndarray]
    """base_from_tip to go to."""
    opening_m: float
    done: Callable[[Any], bool | np.bool_]
    holds: str = ""
    """An object that must be in hand; once lost, start again."""
    stride_m: float = STRIDE_M
    firm: bool = False
    """What the arm gives way by, across the line of the task, is added to what it is told."""
    patience: int = 10_000
    """Steps after which the phase before is tried again."""


class Expert:
    """Walks `phases`, from one to the next as each is done. Raises `TypeError` for a world of another task."""

    phases: tuple[Phase, ...]
    task: str
    keypose = False
    """A phase has just ended (see `episode.Marking`)."""
    lost_m = 0.03
    """A held object farther from the tip than it was when it was taken is lost."""

    def __init__(self, env: gym.Env) -> None:
        world = env.unwrapped
        if not isinstance(world, ManiSkill) or world.task.id != self.task:
            raise TypeError(f"{type(self).__name__} knows {self.task}, this is {world}")
        self.world = world
        self.reset()

    def reset(self) -> None:
        self.at, self.since, self.given_way, self.reach, self.keypose = 0, 0, np.zeros(3), 0.0, False

    @property
    def phase(self) -> str:
        return self.phases[self.at].name

    def act(self) -> Float32[np.ndarray, "8"]:
        self.since += 1
        self._advance()
        phase = self.phases[self.at]
        here, goal = self.world.tip, phase.goal(self)
        error = apart(here, goal)
        way, spin = goal[:3, 3] - here[:3, 3], error[3:]
        across = way - self.line * (self.line @ way)
        self.given_way = np.clip(self.given_way + 0.2 * across, -0.01, 0.01) if phase.firm else np.zeros(3)
        way = way * min(1.0, phase.stride_m / max(float(np.linalg.norm(way)), 1e-9)) + self.given_way
        spin = spin * min(1.0, STRIDE_RAD / max(float(np.linalg.norm(spin)), 1e-9))
        quat = convert(here[:3, :3] @ convert(spin, "rotvec", "matrix"), "matrix", "quat_wxyz")
        return np.array([*(here[:3, 3] + way), *quat, phase.opening_m], np.float32)

    line = np.zeros(3)
    """The direction in which something is pushed in, of length 1; zeros for a task without."""

    def _advance(self) -> None:
        holds, self.keypose = self.phases[self.at].holds, False
        if self.since > self.phases[self.at].patience:
            self.at, self.since = self.at - 1, 0
            return
        if holds and self.away(holds) > self.reach + self.lost_m:
            self.reset()
        for _ in self.phases:
            if not self.phases[self.at].done(self):
                break
            self.at, self.since = min(self.at + 1, len(self.phases) - 1), 0
            self.keypose = True
            if not holds and self.phases[self.at].holds:
                self.reach = self.away(self.phases[self.at].holds)

    def away(self, name: str) -> float:
        return float(np.linalg.norm(self.xyz(name) - self.world.tip[:3, 3]))

    def xyz(self, name: str) -> Float[np.ndarray, "3"]:
        return self.world.pose(name)[:3, 3]

    @property
    def opening(self) -> float:
        return float(self.world.qpos[7:].mean())

    def near(self, goal: Float[np.ndarray, "4 4"], m: float, rad: float = 0.1) -> bool:
        error = apart(self.world.tip, goal)
        return bool(np.linalg.norm(error[:3]) < m and np.linalg.norm(error[3:]) < rad)

    def over(self, name: str, height_m: float, fold: int = 4) -> Float[np.ndarray, "4 4"]:
        """The tip above a thing, pointing down, its x along one of the thing's `fold` like directions, the nearest."""
        pose, here = self.world.pose(name), self.world.tip
        yaws = np.arctan2(pose[1, 0], pose[0, 0]) + 2 * np.pi / fold * np.arange(fold)
        now = np.arctan2(here[1, 0], here[0, 0])
        yaw = min(yaws, key=lambda y: abs((y - now + np.pi) % (2 * np.pi) - np.pi))
        return down(pose[:3, 3] + [0, 0, height_m], yaw)

    def to(self, xyz: np.ndarray) -> Float[np.ndarray, "4 4"]:
        """As the tip is turned, made to point straight down, at `xyz`."""
        here = self.world.tip
        return down(xyz, np.arctan2(here[1, 0], here[0, 0]))

    def bring(self, name: str, goal: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "4 4"]:
        """Where the tip is to be for the thing in hand to be at `goal`, base_from_thing."""
        return goal @ np.linalg.inv(self.world.pose(name)) @ self.world.tip


def down(xyz: np.ndarray | Sequence[float], yaw: float) -> Float[np.ndarray, "4 4"]:
    cos, sin, pose = np.cos(yaw), np.sin(yaw), np.eye(4)
    pose[:3, :3] = [[cos, sin, 0], [sin, -cos, 0], [0, 0, -1]]
    pose[:3, 3] = xyz
    return pose


def along(pose: Float[np.ndarray, "4 4"], x: float, z: float = 0.0) -> Float[np.ndarray, "4 4"]:
    """`pose` moved in its own axes."""
    moved = pose.copy()
    moved[:3, 3] += x * pose[:3, 0] + z * pose[:3, 2]
    return moved


class PickCube(Expert):
    task = "PickCube-v1"
    # fmt: off
    phases = (
        Phase("hover",   lambda s: s.over("cube", 0.08), OPEN_M,   lambda s: s.near(s.over("cube", 0.08), 0.02, 0.15)),
        Phase("descend", lambda s: s.over("cube", 0.0),  OPEN_M,   lambda s: s.near(s.over("cube", 0.0), 0.006)),
        Phase("close",   lambda s: s.over("cube", 0.0),  CLOSED_M, lambda s: s.opening < HALF_M + 0.001 and s.since > 2),
        Phase("carry",   lambda s: s.to(s.xyz("goal_site") + s.world.tip[:3, 3] - s.xyz("cube")), CLOSED_M, lambda s: False, holds="cube"),
    )
    # fmt: on


class PushCube(Expert):
    """The closed hand goes behind the cube and pushes it away from the robot."""

    task = "PushCube-v1"
    # fmt: off
    phases = (
        Phase("above",  lambda s: down(s.xyz("obj") + [-0.10, 0, 0.06], 0.0), CLOSED_M, lambda s: s.near(down(s.xyz("obj") + [-0.10, 0, 0.06], 0.0), 0.02, 0.2)),
        Phase("behind", lambda s: down(s.xyz("obj") + [-0.09, 0, 0.0], 0.0),  CLOSED_M, lambda s: s.near(down(s.xyz("obj") + [-0.09, 0, 0.0], 0.0), 0.015, 0.2)),
        Phase("push",   lambda s: down([s.xyz("goal_region")[0], s.xyz("obj")[1], HALF_M], 0.0), CLOSED_M, lambda s: False),
    )
    # fmt: on


class PullCube(Expert):
    """The closed hand goes beyond the cube and pulls it towards the robot."""

    task = "PullCube-v1"
    # fmt: off
    phases = (
        Phase("above",  lambda s: down(s.xyz("obj") + [0.10, 0, 0.06], 0.0), CLOSED_M, lambda s: s.near(down(s.xyz("obj") + [0.10, 0, 0.06], 0.0), 0.02, 0.2)),
        Phase("beyond", lambda s: down(s.xyz("obj") + [0.08, 0, 0.0], 0.0),  CLOSED_M, lambda s: s.near(down(s.xyz("obj") + [0.08, 0, 0.0], 0.0), 0.015, 0.2)),
        Phase("pull",   lambda s: down([s.xyz("goal_region")[0], s.xyz("obj")[1], HALF_M], 0.0), CLOSED_M, lambda s: False),
    )
    # fmt: on


class StackCube(Expert):
    task = "StackCube-v1"
    # fmt: off
    phases = (
        Phase("hover",   lambda s: s.over("cubeA", 0.08), OPEN_M,   lambda s: s.near(s.over("cubeA", 0.08), 0.02, 0.15)),
        Phase("descend", lambda s: s.over("cubeA", 0.0),  OPEN_M,   lambda s: s.near(s.over("cubeA", 0.0), 0.006)),
        Phase("close",   lambda s: s.over("cubeA", 0.0),  CLOSED_M, lambda s: s.opening < HALF_M + 0.001 and s.since > 2),
        Phase("lift",    lambda s: s.to(s.world.tip[:3, 3] + [0, 0, 0.12 - s.xyz("cubeA")[2]]), CLOSED_M, lambda s: s.xyz("cubeA")[2] > 0.09, holds="cubeA"),
        Phase("carry",   lambda s: s.to(s.above_b(0.08)), CLOSED_M, lambda s: np.linalg.norm(s.xyz("cubeA")[:2] - s.xyz("cubeB")[:2]) < 0.006, holds="cubeA"),
        Phase("lower",   lambda s: s.to(s.above_b(0.041)), CLOSED_M, lambda s: s.xyz("cubeA")[2] - s.xyz("cubeB")[2] < 0.044, holds="cubeA"),
        Phase("open",    lambda s: s.to(s.world.tip[:3, 3]), OPEN_M, lambda s: s.opening > HALF_M + 0.008),
        Phase("retreat", lambda s: s.to(s.xyz("cubeB") + [0, 0, 0.15]), OPEN_M, lambda s: False),
    )
    # fmt: on

    def above_b(self, height_m: float) -> np.ndarray:
        """Where the tip is to be, for cube A to be centred so far above cube B."""
        return self.xyz("cubeB") + [0, 0, height_m] + self.world.tip[:3, 3] - self.xyz("cubeA")


class LiftNamedCube(Expert):
    task = "LiftNamedCube-v1"
    # fmt: off
    phases = (
        *PickCube.phases[:3],
        Phase("lift",    lambda s: s.to(s.world.tip[:3, 3] + [0, 0, 0.15 - s.xyz("cube")[2]]), CLOSED_M, lambda s: False, holds="cube"),
    )
    # fmt: on


UPRIGHT_M, PEG_M = 0.12, 0.025
"""Of the peg that is to stand: half its length, half its width."""


class LiftPegUpright(Expert):
    """Takes the lying peg in its middle, lifts it, turns the hand to point back at the robot, sets the peg down on its end."""

    task = "LiftPegUpright-v1"
    # fmt: off
    phases = (
        Phase("hover",   lambda s: s.middle(0.10), OPEN_M,   lambda s: s.near(s.middle(0.10), 0.02, 0.15)),
        Phase("descend", lambda s: s.middle(0.0),  OPEN_M,   lambda s: s.near(s.middle(0.0), 0.006)),
        Phase("close",   lambda s: s.middle(0.0),  CLOSED_M, lambda s: s.opening < PEG_M + 0.001 and s.since > 2),
        Phase("lift",    lambda s: s.middle(0.25 - s.xyz("peg")[2]), CLOSED_M, lambda s: s.xyz("peg")[2] > 0.17, holds="peg"),
        Phase("turn",    lambda s: s.back(0.20),  CLOSED_M, lambda s: s.near(s.back(0.20), 0.05, 0.06), holds="peg"),
        Phase("lower",   lambda s: s.back(UPRIGHT_M - 0.004), CLOSED_M, lambda s: False),
    )
    # fmt: on

    def middle(self, height_m: float) -> np.ndarray:
        return down(self.xyz("peg") + [0, 0, height_m], 0.0)

    def back(self, height_m: float) -> np.ndarray:
        """The hand points back at the robot (ahead is beyond joint 6), the peg's middle at this height; corrected by how the peg
        lies in the hand."""
        pose, peg, here = np.eye(4), self.world.pose("peg"), self.world.tip
        pose[:3, :3] = [[0, 0, -1], [0, -1, 0], [-1, 0, 0]]
        pose[:3, 3] = [0.50, peg[1, 3], height_m]
        tip_from_peg = np.linalg.inv(here) @ peg
        pose[:3, 3] -= pose[:3, :3] @ tip_from_peg[:3, 3]
        return pose


class PegInsertion(Expert):
    """Takes the peg near its tail, brings its head before the hole, and pushes it in along the hole."""

    task = "PegInsertionSide-v1"
    # fmt: off
    phases = (
        Phase("hover",   lambda s: s.tail(0.08), OPEN_M,   lambda s: s.near(s.tail(0.08), 0.02, 0.1)),
        Phase("descend", lambda s: s.tail(0.0),  OPEN_M,   lambda s: s.near(s.tail(0.0), 0.004, 0.05)),
        Phase("close",   lambda s: s.tail(0.0),  CLOSED_M, lambda s: s.opening < s.width + 0.001 and s.since > 3),
        Phase("lift",    lambda s: s.to(s.world.tip[:3, 3] + [0, 0, 0.05]), CLOSED_M, lambda s: s.xyz("peg")[2] > s.width + 0.04, holds="peg"),
        Phase("aim",     lambda s: s.bring("peg", s.before(0.04)), CLOSED_M, lambda s: s.in_line(0.04, 0.006, 0.04), holds="peg"),
        Phase("align",   lambda s: s.bring("peg", s.before(0.01)), CLOSED_M, lambda s: s.in_line(0.01, 0.0015, 0.015), holds="peg", firm=True),
        Phase("insert",  lambda s: s.bring("peg", s.before(-s.length - 0.01)), CLOSED_M, lambda s: False, holds="peg", stride_m=0.02),
    )
    # fmt: on

    @property
    def line(self) -> np.ndarray:  # type: ignore[override]
        return self.world.pose("goal_pose")[:3, 0]

    @property
    def length(self) -> float:
        return self.world.sizes("peg_size")[0]

    @property
    def width(self) -> float:
        return self.world.sizes("peg_size")[1]

    def tail(self, height_m: float) -> np.ndarray:
        return along(self.over("peg", height_m, fold=1), -max(0.05, self.length / 2 + 0.01))

    def before(self, gap_m: float) -> Float[np.ndarray, "4 4"]:
        """base_from_peg, the head so far before the hole."""
        return along(self.world.pose("goal_pose"), -self.length - gap_m)

    def in_line(self, gap_m: float, m: float, rad: float) -> bool:
        error = apart(self.world.pose("peg"), self.before(gap_m))
        return bool(np.linalg.norm(error[1:3]) < m and abs(error[0]) < 0.01 and np.linalg.norm(error[3:]) < rad)


class PlugCharger(Expert):
    """Takes the charger by its base with the hand leaning away from the receptacle, brings the pins before the holes, pushes them in."""

    task = "PlugCharger-v1"
    lean_rad = 0.26
    # fmt: off
    phases = (
        Phase("hover",   lambda s: s.base(0.06), OPEN_M,   lambda s: s.near(s.base(0.06), 0.015, 0.1)),
        Phase("descend", lambda s: s.base(0.0),  OPEN_M,   lambda s: s.near(s.base(0.0), 0.004, 0.05)),
        Phase("close",   lambda s: s.base(0.0),  CLOSED_M, lambda s: s.opening < 0.0165 and s.since > 3),
        Phase("lift",    lambda s: s.bring("charger", s.raised()), CLOSED_M, lambda s: s.xyz("charger")[2] > 0.07, holds="charger"),
        Phase("aim",     lambda s: s.bring("charger", s.before(0.05)), CLOSED_M, lambda s: s.in_line(0.05, 0.004, 0.05), holds="charger"),
        Phase("align",   lambda s: s.bring("charger", s.before(0.022)), CLOSED_M, lambda s: s.in_line(0.022, 0.0003, 0.008) and s.since > 3, holds="charger", firm=True),
        Phase("insert",  lambda s: s.bring("charger", s.before(s.gap - 0.006)), CLOSED_M, lambda s: False, holds="charger", firm=True, patience=25),
    )
    # fmt: on

    @property
    def line(self) -> np.ndarray:  # type: ignore[override]
        return self.world.pose("goal_pose")[:3, 0]

    @property
    def gap(self) -> float:
        return float(self.line @ (self.xyz("goal_pose") - self.xyz("charger")))

    def base(self, height_m: float) -> np.ndarray:
        pose, lean = along(self.over("charger", 0.0, fold=1), -0.02), np.eye(4)
        cos, sin = np.cos(self.lean_rad), np.sin(self.lean_rad)
        lean[:3, :3] = [[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]]
        return along(pose @ lean, 0.0, -height_m)

    def raised(self) -> Float[np.ndarray, "4 4"]:
        pose = self.world.pose("charger")
        pose[2, 3] = 0.10
        return pose

    def before(self, gap_m: float) -> Float[np.ndarray, "4 4"]:
        return along(self.world.pose("goal_pose"), -gap_m)

    def in_line(self, gap_m: float, m: float, rad: float) -> bool:
        error = apart(self.world.pose("charger"), self.before(gap_m))
        return bool(np.linalg.norm(error[1:3]) < m and abs(error[0]) < 0.01 and np.linalg.norm(error[3:]) < rad)
