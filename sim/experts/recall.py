"""A scripted expert for Recall: down the lane, to the pad, back through the junction to the dock, and again."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
from jaxtyping import Float32

from polyarm.sim.mujoco.recall import DOCK_M, JUNCTION_M, Recall
from polyarm.sim.mujoco.so101 import tip_step, wrap

JITTER_M = 0.006
"""Dock and junction are aimed at this much off, anew each leg: what is seen on the lane must not tell one visit from another."""
AT_JUNCTION_M, AT_PAD_M, AT_DOCK_M = 0.012, 0.008, 0.006
PAD_HEIGHT_M, JOINT_STEP_RAD = 0.05, 0.15


class RecallExpert:
    """Knows what was touched. It drives to within 8 mm of a pad: turning back at the touch makes the turn unlearnable."""

    def __init__(self, env: gym.Env, speed_m_s: float = 0.45) -> None:
        world = env.unwrapped
        if not isinstance(world, Recall):
            raise TypeError(f"RecallExpert knows Recall only, this is {type(world).__name__}")
        self._world = world
        self._stride_m = speed_m_s / world.world_spec.action.rate_hz

    def reset(self) -> None:
        # a child generator: the world's own stream of noise stays as it is without an expert
        self._rng = self._world.np_random.spawn(1)[0]
        self._leg = "junction"
        self._dock, self._junction = self._near(DOCK_M), self._near(JUNCTION_M)

    def act(self) -> Float32[np.ndarray, "4"]:
        """Joint targets rad for the world as it is now."""
        world = self._world
        tip = world.tip_pos
        self._advance(tip)
        way = {"junction": self._junction, "dock": self._dock, "pad": self._pad_pos()}[self._leg] - tip
        way *= min(1.0, self._stride_m / max(float(np.linalg.norm(way)), 1e-9))
        step = tip_step(world.model, world.data, tip + way, wrap(np.arctan2(tip[1], tip[0]) + np.pi))
        return (world.joints + np.clip(step, -JOINT_STEP_RAD, JOINT_STEP_RAD))[:4].astype(np.float32)

    def _advance(self, tip: np.ndarray) -> None:
        if self._leg == "junction" and np.linalg.norm(tip - self._junction) < AT_JUNCTION_M:
            self._leg = "pad" if self._world.armed else "dock"
            self._junction, self._pad = self._near(JUNCTION_M), self._choose()
        elif self._leg == "pad" and np.linalg.norm(tip[:2] - self._world.pads[self._pad]) < AT_PAD_M:
            self._leg = "junction"
        elif self._leg == "dock" and np.linalg.norm(tip - self._dock) < AT_DOCK_M:
            self._leg = "junction"
            self._dock, self._junction = self._near(DOCK_M), self._near(JUNCTION_M)

    def _choose(self) -> str:
        return self._world.wanted

    def _pad_pos(self) -> np.ndarray:
        return np.array([*self._world.pads[self._pad], PAD_HEIGHT_M]) if self._leg == "pad" else JUNCTION_M

    def _near(self, place: np.ndarray) -> np.ndarray:
        return place + self._rng.uniform(-JITTER_M, JITTER_M, 3)
