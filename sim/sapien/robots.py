"""ManiSkill's robots as polyarm speaks to them: what a row of actions means, and the joints that a controller is told."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float

from polyarm.rotation import convert
from polyarm.sim.sapien.arm import Arm
from polyarm.spec import ActionSpace, UserError

RATE_HZ = 20.0


class Panda:
    """Action [8]: the absolute pose of the tip in the base's frame, x y z (m) and wxyz, and the opening of each finger (m)."""

    joints = (*(f"joint{i}" for i in range(1, 8)), "opening")
    units = (*("rad",) * 7, "m")
    action = ActionSpace(
        ("x", "y", "z", "qw", "qx", "qy", "qz", "opening"), (*("m",) * 3, *("1",) * 4, "m"), "base", RATE_HZ,
        rotation="quat_wxyz", rotations=(3,),
    )  # fmt: skip
    low = (0.2, -0.5, -0.02, -1, -1, -1, -1, -0.01)
    high = (0.95, 0.5, 0.7, 1, 1, 1, 1, 0.04)
    """A finger is told to press 1 cm beyond shut on what is thin."""

    def __init__(self, agent: Any) -> None:
        self.agent = agent

    @cached_property
    def arm(self) -> Arm:
        return Arm(self.agent, "panda_hand_tcp")

    def told(self, action: Float[np.ndarray, "8"], qpos: Float[np.ndarray, "9"]) -> Float[np.ndarray, "8"]:
        """What ManiSkill's `pd_joint_pos` is given."""
        quat = action[3:7]
        if np.linalg.norm(quat) < 1e-6:
            raise UserError(f"the tip was given the quaternion {quat.tolist()}: give one of length 1")
        goal = np.eye(4)
        goal[:3, :3], goal[:3, 3] = convert(quat, "quat_wxyz", "matrix"), action[:3]
        share = (action[7] - self.low[7]) / (self.high[7] - self.low[7])
        return np.array([*self.arm.solve(goal, qpos), 2 * share - 1])

    def shown(self, qpos: Float[np.ndarray, "9"]) -> list[float]:
        return [*qpos[:7], qpos[7:].mean()]

    def tip(self) -> Any:
        return self.agent.tcp.pose


class SO100:
    """Action [6]: the joints' targets, rad, the jaw's last."""

    joints = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
    units = ("rad",) * 6
    action = ActionSpace(joints, units, "joint", RATE_HZ)
    low = (-2.0, -1.57, -1.57, -1.8, -3.14, -1.1)
    high = (2.0, 1.57, 1.57, 1.8, 3.14, 1.1)

    def __init__(self, agent: Any) -> None:
        self.agent = agent

    @cached_property
    def arm(self) -> Arm:
        return Arm(self.agent, "Fixed_Jaw_tip", counts=(1, 1, 1, 0.1, 0.1, 0.1))

    def told(self, action: Float[np.ndarray, "6"], qpos: Float[np.ndarray, "6"]) -> Float[np.ndarray, "6"]:
        return action

    def shown(self, qpos: Float[np.ndarray, "6"]) -> list[float]:
        return list(qpos)

    def tip(self) -> Any:
        return self.agent.tcp_pose


ROBOTS = {"panda": Panda, "panda_wristcam": Panda, "so100": SO100}
