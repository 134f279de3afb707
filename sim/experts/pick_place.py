"""A scripted expert for PickPlace: a table of phases that switch on what is, not on time."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import gymnasium as gym
import numpy as np
from jaxtyping import Float32

from polyarm.sim.mujoco.pick_place import CUBE_M, OPEN_M, PickPlace
from polyarm.sim.mujoco.so101 import tip_step, wrap

CLOSE_M, LIFT_M, RETREAT_M, RELEASE_M = 0.008, 0.07, 0.09, CUBE_M + 0.002


class Seen(NamedTuple):
    """What the phases decide on, m in the base frame."""

    tip: np.ndarray
    cube: np.ndarray
    target: np.ndarray
    opening: float

    def over(self, xy: np.ndarray) -> float:
        return float(np.linalg.norm(self.tip[:2] - xy[:2]))

    @property
    def held(self) -> bool:
        return self.opening >= CUBE_M - 0.003 and bool(np.linalg.norm(self.cube - self.tip) <= 0.03)


class Phase(NamedTuple):
    name: str
    xy: Callable[[Seen], np.ndarray]
    height_m: float
    opening_m: float
    done: Callable[[Seen], bool]
    aims: bool = False
    """Chooses the yaw to grasp with."""
    turns: bool = True
    """The wrist may roll; while carrying it must not, the cube's yaw is free."""
    holds: bool = False
    """The cube must be in hand; once lost, start again."""


def cube(s: Seen) -> np.ndarray:
    return s.cube[:2]


def here(s: Seen) -> np.ndarray:
    return s.tip[:2]


def target(s: Seen) -> np.ndarray:
    return s.target


# fmt: off
PHASES = (
    Phase("hover",   cube,   LIFT_M,        OPEN_M,  lambda s: s.over(s.cube) < 0.008 and abs(s.tip[2] - LIFT_M) < 0.03, aims=True),
    Phase("descend", cube,   CUBE_M,        OPEN_M,  lambda s: s.over(s.cube) < 0.006 and s.tip[2] < CUBE_M + 0.005),
    Phase("close",   cube,   CUBE_M,        CLOSE_M, lambda s: s.opening < CUBE_M + 0.0015),
    Phase("lift",    here,   LIFT_M + 0.01, CLOSE_M, lambda s: s.tip[2] > LIFT_M - 0.012, holds=True),
    Phase("carry",   target, LIFT_M,        CLOSE_M, lambda s: s.over(s.target) < 0.008, turns=False, holds=True),
    Phase("lower",   target, RELEASE_M,     CLOSE_M, lambda s: s.tip[2] < CUBE_M + 0.007, turns=False, holds=True),
    Phase("open",    here,   RELEASE_M,     OPEN_M,  lambda s: s.opening > CUBE_M + 0.007, turns=False),
    Phase("retreat", target, RETREAT_M,     OPEN_M,  lambda s: s.tip[2] > RETREAT_M - 0.005, turns=False),
)
# fmt: on


class PickPlaceExpert:
    """Closed loop on the simulator's state: the tip moves towards the phase's goal at most `speed_m_s`, by damped least squares.

    After the last phase it starts again, which matters only when the cube missed the target.
    """

    def __init__(self, env: gym.Env, speed_m_s: float = 0.25, joint_speed_rad_s: float = 1.8) -> None:
        world = env.unwrapped
        if not isinstance(world, PickPlace):
            raise TypeError(f"PickPlaceExpert knows PickPlace only, this is {type(world).__name__}")
        self._world = world
        dt = 1 / world.world_spec.action.rate_hz
        self._stride_m, self._stride_rad = speed_m_s * dt, joint_speed_rad_s * dt
        self.reset()

    def reset(self) -> None:
        self._phase, self._yaw = 0, self._grasp_yaw()

    @property
    def phase(self) -> str:
        """Name of the present phase."""
        return PHASES[self._phase].name

    def act(self) -> Float32[np.ndarray, "6"]:
        """Joint targets rad and finger opening m for the world as it is now."""
        world = self._world
        seen = Seen(world.tip_pos, world.cube_pos, world.target_pos, world.opening)
        phase = self._advance(seen)
        if phase.aims:
            self._yaw = self._grasp_yaw()
        goal = np.array([*phase.xy(seen), phase.height_m])
        way = goal - seen.tip
        way *= min(1.0, self._stride_m / max(float(np.linalg.norm(way)), 1e-9))
        step = tip_step(world.model, world.data, seen.tip + way, self._yaw if phase.turns else world.tip_yaw)
        if not phase.turns:
            step[4] = 0.0
        step = np.clip(step, -self._stride_rad, self._stride_rad)
        return np.array([*(world.joints + step), phase.opening_m], np.float32)

    def _advance(self, seen: Seen) -> Phase:
        if PHASES[self._phase].holds and not seen.held:
            self._phase = 0
        for _ in PHASES:
            if not PHASES[self._phase].done(seen):
                break
            self._phase = (self._phase + 1) % len(PHASES)
        return PHASES[self._phase]

    def _grasp_yaw(self) -> float:
        """Of the cube's four equal yaws the one that needs the least wrist roll (none: slides along the radius)."""
        x, y, _ = self._world.cube_pos
        unrolled = np.arctan2(y, x) + np.pi
        yaws = [self._world.cube_yaw + k * np.pi / 2 for k in range(4)]
        return min(yaws, key=lambda yaw: abs(wrap(yaw - unrolled)))
