"""A ManiSkill robot's hand, moved by pose: forward kinematics and damped least squares, in the frame of its base."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

ITERATIONS, DAMPING, MOST_RAD = 8, 1e-3, 0.6


class Arm:
    """The chain of `agent` up to `link`, its tip. `turns` [6]: how much each part of an error counts, the three of the position (m)
    and of the rotation (rad), both in the tip's axes; an arm of five joints gives up one. SAPIEN's own pinocchio is asked for by
    name: another one in the environment would give other digits."""

    def __init__(self, agent: Any, link: str, counts: tuple[float, ...] = (1, 1, 1, 1, 1, 1)) -> None:
        from sapien.pysapien_pinocchio import PinocchioModel
        from sapien.wrapper.urdf_exporter import export_kinematic_chain_urdf

        robot = agent.robot._objs[0]
        self.n = len(agent.arm_joint_names)
        self.model = PinocchioModel(export_kinematic_chain_urdf(robot, force_fix_root=True), [0, 0, -9.81])
        self.model.set_joint_order([f"joint_{j.child_link.index}" for j in robot.active_joints])
        self.model.set_link_order([f"link_{part.index}" for part in robot.links])
        self._tip = agent.robot.links_map[link]._objs[0].index
        self._counts = np.asarray(counts, np.float64)
        self.limits = np.asarray(robot.get_qlimits(), np.float64)[: self.n]

    def pose(self, qpos: Float[np.ndarray, "q"]) -> Float[np.ndarray, "4 4"]:
        """base_from_tip."""
        self.model.compute_forward_kinematics(qpos)
        return self.model.get_link_pose(self._tip).to_transformation_matrix()

    def solve(self, goal: Float[np.ndarray, "4 4"], qpos: Float[np.ndarray, "q"]) -> Float[np.ndarray, "n"]:
        """Arm joints (rad) that bring the tip to `goal`, base_from_tip, or near it, looked for from `qpos` on."""
        q = np.array(qpos, np.float64)
        for _ in range(ITERATIONS):
            error = self._counts * apart(self.pose(q), goal)
            if np.abs(error).max() < 1e-5:
                break
            jac = self.model.compute_single_link_local_jacobian(q, self._tip)[:, : self.n] * self._counts[:, None]
            step = jac.T @ np.linalg.solve(jac @ jac.T + DAMPING * np.eye(6), error)
            q[: self.n] = np.clip(q[: self.n] + np.clip(step, -MOST_RAD, MOST_RAD), *self.limits.T)
        return q[: self.n]


def apart(here: Float[np.ndarray, "4 4"], goal: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "6"]:
    """From `here` to `goal`, in the axes of `here`: m, then axis times angle, rad."""
    turned = here[:3, :3].T
    return np.concatenate([turned @ (goal[:3, 3] - here[:3, 3]), rotvec(turned @ goal[:3, :3])])


def rotvec(matrix: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "3"]:
    """Axis times angle of a rotation matrix."""
    axis = np.array([matrix[2, 1] - matrix[1, 2], matrix[0, 2] - matrix[2, 0], matrix[1, 0] - matrix[0, 1]])
    sine, cosine = np.linalg.norm(axis) / 2, (np.trace(matrix) - 1) / 2
    angle = np.arctan2(sine, cosine)
    if sine > 1e-6:
        return axis * (angle / (2 * sine))
    if cosine > 0:
        return axis / 2
    i = int(np.argmax(np.diag(matrix)))
    column = matrix[:, i] + np.eye(3)[i]
    return np.pi * column / np.linalg.norm(column)
