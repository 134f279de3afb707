"""A scripted expert for ManiSkill's PickCubeSO100: the fixed jaw goes down beside the cube, the moving one presses it there."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
from jaxtyping import Float, Float32

from polyarm.sim.sapien.arm import apart
from polyarm.sim.sapien.maniskill import ManiSkill

HALF_M, OPEN_RAD, SHUT_RAD = 0.0125, -0.2, -0.8
STRIDE_M, CARRY_M, STRIDE_RAD = 0.03, 0.012, 0.3


class PickCubeSO100:
    """Four phases: above the cube, down, shut, carry to the goal. Acts by the arm's joints, found by damped least squares."""

    def __init__(self, env: gym.Env) -> None:
        world = env.unwrapped
        if not isinstance(world, ManiSkill) or world.task.id != "PickCubeSO100-v1":
            raise TypeError(f"{type(self).__name__} knows PickCubeSO100-v1, this is {world}")
        self.world = world
        self.reset()

    def reset(self) -> None:
        self.phase, self.since = 0, 0
        self._told: np.ndarray = np.zeros(6, np.float32)

    def act(self) -> Float32[np.ndarray, "6"]:
        self.since += 1
        qpos, jaw = self.world.qpos, self.world.robot.arm.pose(self.world.qpos)
        goal = self._goal(jaw)
        error = apart(jaw, goal)
        if self._done(error, qpos[5]):
            self.phase, self.since = self.phase + 1, 0
            goal = self._goal(jaw)
            error = apart(jaw, goal)
        elif self.phase == 3 and np.linalg.norm(self._cube[:3, 3] - jaw[:3, 3]) > 0.05:  # dropped
            self.reset()
        step, stride = jaw.copy(), CARRY_M if self.phase == 3 else STRIDE_M
        step[:3, 3] += (goal[:3, 3] - jaw[:3, 3]) * min(1.0, stride / max(float(np.linalg.norm(error[:3])), 1e-9))
        step[:3, :3] = goal[:3, :3]
        turn = 0.005 if self.phase == 3 else 0.1  # near the base the wrist cannot point down
        joints = np.clip(self.world.robot.arm.solve(step, qpos, turn), qpos[:5] - STRIDE_RAD, qpos[:5] + STRIDE_RAD)
        if self.phase == 3 and np.linalg.norm(error[:3]) < 0.011:  # there: stand still, which is asked for
            return self._told
        self._told = np.array([*joints, OPEN_RAD if self.phase < 2 else SHUT_RAD], np.float32)
        return self._told

    @property
    def _cube(self) -> Float[np.ndarray, "4 4"]:
        return self.world.pose("cube")

    def _done(self, error: Float[np.ndarray, "6"], jaw_rad: float) -> bool:
        here = np.linalg.norm(error[:3])
        return bool(
            (self.phase == 0 and here < 0.012)
            or (self.phase == 1 and (here < 0.004 or (self.since > 15 and here < 0.008)))
            or (self.phase == 2 and self.since > 8)
        )

    def _goal(self, jaw: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "4 4"]:
        """base_from_jaw: the jaw points straight down (its y up), its x across two faces of the cube."""
        cube = self._cube
        yaws = np.arctan2(cube[1, 0], cube[0, 0]) + np.pi / 2 * np.arange(4)
        now = np.arctan2(jaw[1, 0], jaw[0, 0])
        yaw = min(yaws, key=lambda y: abs((y - now + np.pi) % (2 * np.pi) - np.pi)) if self.phase < 2 else now
        x, up = np.array([np.cos(yaw), np.sin(yaw), 0.0]), np.array([0.0, 0.0, 1.0])
        goal = np.eye(4)
        goal[:3, :3] = np.stack([x, up, np.cross(x, up)], axis=1)
        if self.phase == 3:
            goal[:3, 3] = jaw[:3, 3] + self.world.pose("goal_site")[:3, 3] - cube[:3, 3]
        else:  # the other jaw comes from the side of -x
            goal[:3, 3] = cube[:3, 3] + x * (HALF_M + 0.006) + up * (0.06 if self.phase == 0 else 0.004)
        return goal
