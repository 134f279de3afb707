"""A hand in space that grips what lies at a place, as fast as it is told to within limits: a world of poses without an engine."""

import gymnasium as gym
import numpy as np

from polyarm.rotation import convert
from polyarm.sim.world import observation_space
from polyarm.spec import ActionSpace, ObsSpace, Spec, Stream

SIX = ("r00", "r10", "r20", "r01", "r11", "r21")
M, ONE = ("m", "m", "m"), ("1",) * 6
STEP_M, STEP_RAD, STEP_OPENING = 0.03, 0.3, 0.01


class Reach(gym.Env):
    """Gripped at the thing and held at z = 0.3: success. `wall`: no x beyond it. The opening shown is the one that is."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10.0}  # noqa: RUF012
    look = True
    shots = 0
    """Of all of the process."""

    def __init__(self, max_steps=200, wall=1.0, ends=True, flat=False, frame="base", render_mode="rgb_array"):
        self.render_mode, self.max_steps, self.wall, self.ends = render_mode, max_steps, wall, ends
        streams = (
            Stream("tip", "state", (9,), ("x", "y", "z", *SIX), (*M, *ONE), frame),
            Stream("fingers", "state", (1,), ("opening",), ("m",)),
            Stream("joints", "state", (3,), ("a", "b", "c"), ("rad",) * 3),
            Stream("thing", "state", (3,), ("x", "y", "z"), M, "base"),
            Stream("marks", "state", (1,), ("mark",), ("1",)),
            Stream("front", "image", (8, 8, 3)),
        )
        names = ("x", "y", "z", "qw", "qx", "qy", "qz", "opening")
        action = ActionSpace(names, (*M, *("1",) * 4, "m"), "base", 10.0, rotation="quat_wxyz", rotations=(3,))
        if flat:
            action = ActionSpace(("x", "y"), ("m", "m"), "base", 10.0)
        self.world_spec = Spec(ObsSpace(streams, 10.0), action, {"env": "Reach-v0.1"})
        self.observation_space = observation_space(self.world_spec.obs)
        self.action_space = gym.spaces.Box(-1, 1, (action.width,), np.float32)

    @property
    def time_s(self):
        return self.t / 10

    @property
    def is_success(self):
        return bool(self.held and self.xyz[2] >= 0.3 - 0.01)

    def _obs(self, look=True):
        if look:
            Reach.shots += 1
            self.picture = np.full((8, 8, 3), self.t, np.uint8)
        tip = np.concatenate([self.xyz, convert(self.turn, "matrix", "rot6d_columns")])
        low = {"tip": tip, "fingers": [self.opening], "joints": self.xyz, "thing": self.thing, "marks": [self.mark]}
        return {name: np.asarray(x, np.float32) for name, x in low.items()} | {"front": self.picture}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.xyz, self.turn, self.opening, self.t, self.held, self.mark = np.array([0, 0, 0.4]), np.eye(3), 0.04, 0, False, 0.0  # fmt: skip
        self.thing = np.array([*self.np_random.uniform(-0.3, 0.3, 2), 0.0])
        return self._obs(), {"is_success": False}

    def step(self, action):
        a = np.asarray(action, np.float64)
        way, spin = a[:3] - self.xyz, convert(self.turn.T @ convert(a[3:7], "quat_wxyz", "matrix"), "matrix", "rotvec")
        self.xyz = self.xyz + way * min(1, STEP_M / max(np.linalg.norm(way), 1e-9))
        self.xyz[0] = min(self.xyz[0], self.wall)
        spin = spin * min(1, STEP_RAD / max(np.linalg.norm(spin), 1e-9))
        self.turn = self.turn @ convert(spin, "rotvec", "matrix")
        self.opening += float(np.clip(a[7] - self.opening, -STEP_OPENING, STEP_OPENING))
        self.held = self.opening < 0.021 and (self.held or np.linalg.norm(self.xyz - self.thing) < 0.01)
        self.t += 1
        won = self.is_success
        return self._obs(self.look), float(won), won and self.ends, self.t >= self.max_steps, {"is_success": won}

    def render(self):
        return np.full((16, 16, 3), self.t, np.uint8)


class Expert:
    """To the thing, half a turn on the way; grips; lifts."""

    def __init__(self, world):
        self.world = world.unwrapped

    def reset(self):
        self.stage = 0

    def act(self):
        w = self.world
        if self.stage == 0 and np.linalg.norm(w.xyz - w.thing) < 1e-6:
            self.stage = 1
        if self.stage == 1 and w.held:
            self.stage = 2
        goal = w.thing + [0, 0, 0.32 * (self.stage == 2)]
        turn = convert(np.array([0, 0, np.pi / 2]), "rotvec", "quat_wxyz")
        return np.float32([*goal, *turn, 0.0 if self.stage else 0.04])


class Marker(Expert):
    """Says where one stage ends."""

    keypose = False

    def act(self):
        before = self.stage
        action = super().act()
        self.keypose = self.stage > before
        return action


gym.register("test/Reach-v0", "tests.reach_world:Reach", disable_env_checker=True)
NAME = "tests.reach_world:test/Reach-v0"
