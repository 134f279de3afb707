"""Gymnasium environments of other people: `Reach` with whatever may be odd about one, and worlds written from scratch."""

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from polyarm.sim.gym_world import register
from polyarm.streams import image, numbers
from tests.odd_worlds import Odd

PICTURES = {
    "right": ((4, 6, 3), np.uint8, 255), "float": ((4, 6, 3), np.float32, 1), "chw": ((3, 4, 6), np.uint8, 255),
    "grey": ((4, 6), np.uint8, 255), "alpha": ((4, 6, 4), np.uint8, 255), "bits": ((4, 6, 3), np.uint8, 1),
}  # fmt: skip


class Reach(gym.Env):
    """A tip moved by its actions from near the origin, without an end of its own. Success: further than 2."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    dt = 0.05

    def __init__(self, picture="right", lies="", actions="box", bound=1.0, shape=(2,), chance=False, still=False):
        size, dtype, high = PICTURES[picture]
        self.lies, self.chance, self.still = lies, chance, still
        self.observation_space = spaces.Dict({
            "tip": spaces.Box(-np.inf, np.inf, (2,), np.float64), "front": spaces.Box(0, high, size, dtype),
            "button": spaces.Discrete(2),
        })  # fmt: skip
        self.action_space = {
            "box": spaces.Box(-bound, bound, shape, np.float32), "discrete": spaces.Discrete(4),
            "whole": spaces.Box(-1, 1, (2,), np.int64),
        }[actions]  # fmt: skip

    def reset(self, *, seed=None, options=None):
        assert not self.still
        super().reset(seed=seed)
        self.tip = (np.random.default_rng() if self.chance else self.np_random).uniform(size=2) * (1e-9 + self.chance)
        return self._obs(), {}

    def step(self, action):
        assert action.shape == self.action_space.shape and action.dtype == np.float32
        self.tip = self.tip + action.ravel()
        info = {"success": np.linalg.norm(self.tip) > 2, "force": np.float32(2), "note": [[1], [1, 2]]}
        return self._obs(), -7.0, False, False, info

    def render(self):
        return np.full((8, 8, 3), 9, np.uint8)

    def _obs(self):
        box = self.observation_space["front"]
        front = np.full(box.shape, 0.5, float) if self.lies == "float" else np.ones(box.shape, box.dtype)
        obs = {"tip": self.tip, "button": 1, "front": front}
        return {k: v for k, v in obs.items() if self.lies != "missing" or k != "front"}


class Mute(Odd):
    """A world that does not say whether it succeeded."""

    def step(self, action):
        obs, reward, done, cut, _ = super().step(action)
        return obs, reward, done, cut, {"force": 1.0}


class Wrong(Odd):
    observation_space = spaces.Dict({"stat": Odd.observation_space["state"]})


class Chooses(Odd):
    action_space = spaces.Discrete(3)


register(
    "test/GymReach-v0",
    lambda **kwargs: Reach(**kwargs),
    streams=[numbers("tip", {"x": "m", "y": "m"}), image("front", 4, 6)],
    action={"x": "m/s", "y": "m/s"},
    rate_hz=10,
    success=lambda step: step.info["success"],
    max_steps=5,
)
