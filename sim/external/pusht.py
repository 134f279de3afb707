"""PushT: a round finger pushes a T into its goal pose on a 512 px square, 10 Hz (Diffusion Policy, section 8 of the published
reference), on the physics and the drawing of gym-pusht."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from jaxtyping import Float

from polyarm.sim.world import choose, command, observation_space
from polyarm.spec import ActionSpace, ObsSpace, Spec, Stream, UserError

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # pygame imports the deprecated pkg_resources
    from gym_pusht.envs.pusht import PushTEnv, pymunk_to_shapely
from pymunk.vec2d import Vec2d

VERSION = "PushT-v0.1"
RATE_HZ, SIDE_PX, IMAGE_PX, SOLVED = 10.0, 512, 96, 0.95

KEYPOINTS_PX = np.array(
    [
        [9.269787, 90.040974],
        [-60.983472, -1.186730],
        [60.912756, -1.393364],
        [-0.270503, 25.543625],
        [-14.064927, 122.815854],
        [39.002738, 32.857404],
        [-39.966414, 32.729656],
        [-16.824344, 62.863179],
        [23.541461, -1.700288],
    ]
)
"""The block's keypoints in its own frame (origin mid-top of the bar, bar |x| <= 60, 0 <= y <= 30, stem |x| <= 15 down to 120).

They follow from no formula: the demonstrations' authors drew them at random on the picture of the T. Fitted from the
recorded keypoints and block poses of the 206 human episodes, which are these nine points moved rigidly, to 2e-5 px.
"""


def _pair(name: str) -> Stream:
    return Stream(name, "state", (2,), ("x", "y"), ("px", "px"), "image")


STREAMS = {
    "keypoint": Stream(
        "keypoint", "state", (18,), tuple(f"{axis}{k}" for k in range(9) for axis in "xy"), ("px",) * 18, "image"
    ),
    "agent_pos": _pair("agent_pos"),
    "image": Stream("image", "image", (IMAGE_PX, IMAGE_PX, 3), frame="image"),
    "state": Stream(
        "state",
        "state",
        (5,),
        ("agent_x", "agent_y", "block_x", "block_y", "block_angle"),
        ("px",) * 4 + ("rad",),
        "image",
    ),
}


class _Inner(PushTEnv):
    """gym-pusht 1.7 times as fast, to the same bits: the goal's polygon is made once, contacts are not counted."""

    _goal: Any = None

    def act(self, target: Vec2d) -> None:
        """A tenth of a second under PD control."""
        agent = self.agent
        for _ in range(round(1 / (RATE_HZ * self.dt))):
            velocity = agent.velocity
            agent.velocity = velocity + (self.k_p * (target - agent.position) - self.k_v * velocity) * self.dt
            self.space.step(self.dt)

    def _handle_collision(self, arbiter: Any, space: Any, data: Any) -> None: ...

    def _get_coverage(self) -> float:
        if self._goal is None:
            self._goal = pymunk_to_shapely(self.get_goal_pose_body(self.goal_pose), self.block.shapes)
        return self._goal.intersection(pymunk_to_shapely(self.block, self.block.shapes)).area / self._goal.area


class PushT(gym.Env):
    """`streams` chooses from `keypoint` [18] (nine points x y px), `agent_pos` [2] px, `image` (without the action's marker)
    and `state` [5] (agent x y, block x y px, block angle rad in [0, 2 pi)).

    Action [2]: where the finger is to go, x y px in [0, 512]. The reward is coverage / 0.95, at most 1, where coverage is
    the part of the goal's area under the T; coverage above 0.95 is success and ends the episode.

    A seeded reset draws as the published benchmark does. `legacy_reset` also places the block as that does: position
    before angle, which turns it about its centre of mass and so moves it, then one physics step.
    `reset(options={"state": [5]})` starts from exactly that state, at rest.
    """

    observation_space: spaces.Dict
    action_space: spaces.Box
    metadata = {"render_modes": ["rgb_array"], "render_fps": RATE_HZ}  # noqa: RUF012  as gymnasium declares it

    def __init__(
        self,
        streams: Sequence[str] = ("keypoint", "agent_pos"),
        legacy_reset: bool = False,
        max_steps: int = 300,
        render_px: int = 480,
        render_mode: str = "rgb_array",
    ) -> None:
        self.streams = choose(tuple(streams), STREAMS, "PushT stream")
        self.legacy_reset, self.max_steps, self.render_mode = legacy_reset, max_steps, render_mode
        obs = ObsSpace(tuple(STREAMS[s] for s in self.streams), RATE_HZ)
        action = ActionSpace(("x", "y"), ("px", "px"), "image", RATE_HZ)
        versions = {name: version(name) for name in ("gym-pusht", "pymunk")}
        self._spec = Spec(obs, action, versions | {"env": VERSION})
        self.observation_space = observation_space(obs)
        self.action_space = spaces.Box(0, SIDE_PX, (2,), np.float32)
        self._inner = _Inner(visualization_width=render_px, visualization_height=render_px)
        self._steps = 0

    @property
    def world_spec(self) -> Spec:
        return self._spec

    @property
    def time_s(self) -> float:
        return self._steps / RATE_HZ

    @property
    def state(self) -> Float[np.ndarray, "5"]:
        """Agent x y, block x y (px), block angle (rad, in [0, 2 pi))."""
        agent, block = self._inner.agent, self._inner.block
        return np.array([*agent.position, *block.position, block.angle % (2 * np.pi)])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self._steps, self._inner._last_action = 0, None
        self._inner._setup()
        state = (options or {}).get("state")
        if state is not None:
            self._put(_checked(state))
        elif self.legacy_reset:
            self._inner._set_state(self._draw(seed))
        else:
            self._put(self._draw(seed))
        return self._obs(), {"is_success": False, "coverage": self._inner._get_coverage()}

    def step(self, action: np.ndarray):
        target = command(action, self.action_space, "PushT")
        self._inner._last_action = target  # drawn by render
        self._inner.act(Vec2d(*target.tolist()))
        self._steps += 1
        coverage = float(self._inner._get_coverage())
        success = coverage > SOLVED
        info = {"is_success": success, "coverage": coverage}
        return self._obs(), min(coverage / SOLVED, 1.0), success, self._steps >= self.max_steps, info

    def render(self) -> np.ndarray:
        """`render_px` square, with a red cross where the last action pointed."""
        return self._inner.render()

    def _draw(self, seed: int | None) -> Float[np.ndarray, "5"]:
        rng = np.random.RandomState(self.np_random.integers(2**32) if seed is None else seed)
        x, y = rng.randint(50, 450), rng.randint(50, 450)
        block_x, block_y = rng.randint(100, 400), rng.randint(100, 400)
        return np.array([x, y, block_x, block_y, rng.randn() * 2 * np.pi - np.pi])

    def _put(self, state: Float[np.ndarray, "5"]) -> None:
        agent, block = self._inner.agent, self._inner.block
        agent.position = tuple(state[:2].tolist())
        block.angle = float(state[4])  # first: it turns about the centre of mass and moves the position
        block.position = tuple(state[2:4].tolist())
        for body in (agent, block):
            body.velocity, body.angular_velocity = (0.0, 0.0), 0.0
            self._inner.space.reindex_shapes_for_body(body)  # drawing and contacts read the shapes, not the body

    def _obs(self) -> dict[str, np.ndarray]:
        return {name: READ[name](self) for name in self.streams}


def keypoints(state: Float[np.ndarray, "... 5"]) -> Float[np.ndarray, "... 9 2"]:
    """The nine keypoints (px) of blocks in these states."""
    cos, sin = np.cos(state[..., 4, None]), np.sin(state[..., 4, None])
    x, y = KEYPOINTS_PX.T
    return np.stack([cos * x - sin * y, sin * x + cos * y], -1) + state[..., None, 2:4]


def _checked(state: Any) -> np.ndarray:
    state = np.asarray(state, np.float64)
    if state.shape != (5,) or not np.isfinite(state).all():
        raise UserError(
            f"PushT was asked to start from state {state.tolist()}: give agent x y, block x y (px) and angle (rad)"
        )
    return state


READ = {
    "keypoint": lambda world: keypoints(world.state).ravel().astype(np.float32),
    "agent_pos": lambda world: world.state[:2].astype(np.float32),
    "image": lambda world: world._inner._render(),
    "state": lambda world: world.state.astype(np.float32),
}
