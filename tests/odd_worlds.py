"""Worlds that do what worlds of other people do: registered by name, so that worker processes can make them too."""

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from polyarm.spec import ActionSpace, ObsSpace, Spec, Stream


class Odd(gym.Env):
    """Three steps an episode. What is said at step t is SAYS[t]; even seeds succeed, and only the last step says so."""

    observation_space = spaces.Dict({"state": spaces.Box(-9, 9, (2,), np.float32)})
    action_space = spaces.Box(-1, 1, (2,), np.float32)
    metadata = {"render_modes": ["rgb_array"], "render_fps": 10.0}  # noqa: RUF012
    world_spec = Spec(
        ObsSpace((Stream("state", "state", (2,), ("a", "b")),), 10.0),
        ActionSpace(("x", "y"), ("m", "m"), "world", 10.0),
        {"env": "Odd-v0.1"},
    )

    def __init__(self, show="right", fail=None, render_mode="rgb_array"):
        self.show, self.fail, self.render_mode = show, fail, render_mode

    def _obs(self):
        shown = {"right": {"state": np.full(2, self.t, np.float32)}, "none": {}, "narrow": {"state": np.zeros(1)}}
        return shown[self.show if self.t else "right"]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.wins, self.t = seed is not None and seed % 2 == 0, 0
        return self._obs(), {"force": 0, "note": "text", "started": True}

    def step(self, action):
        self.t += 1
        if self.fail is not None and self.t == 2:
            raise RuntimeError(self.fail)
        says = {
            1: {"force": 0.7},
            2: {"force": np.array(2), "contact": True, "is_success": self.wins and self.t > 9},
            3: {},
        }
        last = {"is_success": np.array(float(self.wins))} if self.t == 3 else {}
        return self._obs(), 0.25, self.t == 3, False, says[self.t] | last

    def render(self):
        return np.full((16, 16, 3), 20 * self.t, np.uint8)


class Passing(Odd):
    """Success at the second step, lost again at the third."""

    def step(self, action):
        obs, reward, done, cut, _ = super().step(action)
        return obs, reward, done, cut, {"is_success": self.t == 2}


class Chancy(Odd):
    """Not the same twice."""

    count = 0

    def step(self, action):
        Chancy.count += 1
        obs, reward, done, cut, _ = super().step(action)
        return obs, reward, done, cut, {"is_success": Chancy.count == 3}


class Bench(Odd):
    """One of its kind, like an arm on a bench: its time goes on, and it keeps pictures of the episodes of even seeds."""

    only_one, simulated_time = True, False

    def reset(self, *, seed=None, options=None):
        self.seed, self.kept = seed, []
        return super().reset(seed=seed)

    def step(self, action):
        self.kept.append(self.render())
        return super().step(action)

    def recording(self, seed):
        return (self.kept, 5.0) if seed == self.seed and seed % 2 == 0 else None


class Silent(gym.Env):
    """A gymnasium world that does not say what its numbers mean."""

    observation_space, action_space = Odd.observation_space, Odd.action_space


for kind in (Odd, Passing, Silent):
    gym.register(f"test/{kind.__name__}-v0", f"tests.odd_worlds:{kind.__name__}", disable_env_checker=True)
gym.register("test/Chancy-v0", "tests.odd_worlds:Chancy", disable_env_checker=True)
gym.register("test/Bench-v0", "tests.odd_worlds:Bench", disable_env_checker=True, nondeterministic=True)
gym.register("test/Arm-v0", "tests.odd_worlds:Odd", disable_env_checker=True, nondeterministic=True)
