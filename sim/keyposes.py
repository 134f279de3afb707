"""Worlds that are told keyposes, and move from one to the next by straight lines."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
from jaxtyping import Float

from polyarm.keypose import Keyposes, hand
from polyarm.rotation import convert
from polyarm.sim.world import command, spec_of
from polyarm.spec import Spec, UserError

STILL = 3
"""Steps in which the tip goes less than STILL_M and STILL_RAD, after which it goes no further."""
STILL_M, STILL_RAD = 0.001, 0.005


class Moved(gym.Wrapper):
    """`world`, of whose actions a step is many: the tip goes to the pose with the fingers as they are, then the fingers open or
    close. Reward and `is_success` are those of the last, the only one that looks. Cut short where the episode ends.

    `watch`, if set, is called after every step of the world, for those who film.
    """

    watch: Callable[[], None] | None = None

    def __init__(self, world: gym.Env, how: Keyposes, name: str) -> None:
        super().__init__(world)
        spec = spec_of(world, name)
        self._how, self._name, self._hand = how, name, hand(spec, how.tip, name)
        self._spec = replace(spec, action=replace(spec.action, kind="keypose"))
        steps = lambda seconds: max(1, math.ceil(seconds * spec.action.rate_hz - 1e-9))
        self._move, self._grip = steps(how.move_s), steps(how.grip_s)
        self._fingers = _fingers(spec, self._hand.opening)

    @property
    def world_spec(self) -> Spec:
        return self._spec

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        obs, info = self.env.reset(seed=seed, options=options)
        self._played, self._tip = 0, np.array(obs[self._how.tip])
        box: Any = self.action_space
        stream, channel = self._fingers
        self._opening = [float(obs[stream][channel]) if stream else float(box.high[i]) for i in self._hand.opening]
        return obs, info

    def step(self, action: Any):
        row = command(action, self.action_space, self._name)  # type: ignore[arg-type]
        goal, opening = self._goal(row), [float(row[i]) for i in self._hand.opening]
        looks = getattr(self.unwrapped, "look", True)
        rest = 1 if np.array_equal(opening, self._opening) else self._grip
        self._look(False)
        try:
            shown = self._go(goal)
            self._opening = opening
            for left in reversed(range(rest)):
                if shown is not None and (shown[2] or shown[3]):
                    break
                self._look(looks and left == 0)
                shown = self._tell(goal)
        finally:
            self._look(looks)
        assert shown is not None  # rest is at least 1
        self._played += 1
        obs, reward, terminated, truncated, info = shown
        return obs, reward, terminated, truncated or self._played >= self._how.most, info

    def _goal(self, row: Float[np.ndarray, "d"]) -> Float[np.ndarray, "4 4"]:
        told = self._hand.told
        with np.errstate(invalid="ignore", divide="ignore"):
            goal = told.pose(row)
        if not np.isfinite(goal).all():
            raise UserError(
                f"{self._name} was given the rotation {row[list(told.turn)].tolist()}, which is none: give one of length 1"
            )
        return goal

    def _go(self, goal: Float[np.ndarray, "4 4"]) -> Any:
        """What the last step showed; None where the tip is there already."""
        how, shown, still = self._how, None, 0
        for _ in range(self._move):
            here = self._hand.shown.pose(self._tip)
            way, spin = _apart(here, goal)
            far, turn = float(np.linalg.norm(way)), float(np.linalg.norm(spin))
            if far < how.near_m and turn < how.near_rad:
                break
            ahead = np.eye(4)
            ahead[:3, 3] = here[:3, 3] + way * min(1.0, how.stride_m / max(far, 1e-9))
            share = min(1.0, how.stride_rad / max(turn, 1e-9))
            ahead[:3, :3] = here[:3, :3] @ convert(spin * share, "rotvec", "matrix")
            shown = self._tell(ahead)
            moved, turned = _apart(here, self._hand.shown.pose(self._tip))
            still = still + 1 if np.linalg.norm(moved) < STILL_M and np.linalg.norm(turned) < STILL_RAD else 0
            if shown[2] or shown[3] or still >= STILL:
                break
        return shown

    def _tell(self, pose: Float[np.ndarray, "4 4"]) -> Any:
        row = np.zeros(self._spec.action.width)
        self._hand.told.write(pose, row)
        row[list(self._hand.opening)] = self._opening
        shown = self.env.step(row.astype(np.float32))
        self._tip = np.array(shown[0][self._how.tip])
        if self.watch is not None:
            self.watch()
        return shown

    def _look(self, wanted: bool) -> None:
        self.unwrapped.look = wanted  # type: ignore[attr-defined]


def _apart(
    here: Float[np.ndarray, "4 4"], goal: Float[np.ndarray, "4 4"]
) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"]]:
    """(m in the base's axes, axis times angle in the axes of `here`)."""
    return goal[:3, 3] - here[:3, 3], convert(here[:3, :3].T @ goal[:3, :3], "matrix", "rotvec")


def _fingers(spec: Spec, opening: tuple[int, ...]) -> tuple[str, int]:
    """The stream and the channel that are called as the action's opening, which say how open the hand is at first; "" for none."""
    for name in [spec.action.names[i] for i in opening]:
        for stream in spec.obs.streams:
            if stream.low_dim and name in stream.names:
                return stream.name, stream.names.index(name)
    return "", 0
