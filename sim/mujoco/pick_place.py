"""Pick and place: an SO-101-class arm puts a cube on a target, 20 Hz."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium import spaces
from jaxtyping import Float

from polyarm.sim.mujoco import so101
from polyarm.sim.mujoco.render import picture
from polyarm.sim.world import choose, command, observation_space
from polyarm.spec import ActionSpace, ObsSpace, Spec, Stream, UserError

VERSION = "PickPlace-v0.1"
RATE_HZ, TIMESTEP_S = 20.0, 0.005
CUBE_M = 0.0125
"""Half the cube's edge."""
OPEN_M = 0.028
REACH_M, FAN_RAD, YAW_RAD, APART_M = (0.14, 0.22), np.deg2rad(50), np.deg2rad(45), 0.07
HOME_M, HOME_SPREAD_M = np.array([0.16, 0.0, 0.10]), np.array([0.02, 0.02, 0.02 / 1.5])
ON_TARGET_M, LOW_M, RELEASED_M, CLEAR_M = 0.025, CUBE_M + 0.006, CUBE_M + 0.006, 0.05

PROPS = f"""
<body name="cube" pos="0.18 0 {CUBE_M}">
  <freejoint name="cube"/>
  <geom name="cube" type="box" size="{CUBE_M} {CUBE_M} {CUBE_M}" mass="0.02" friction="1.0 0.02 0.001" condim="4"
    rgba=".86 .18 .20 1"/>
</body>
<body name="target" mocap="true" pos="0.18 0.1 0.001">
  <geom type="cylinder" size="0.03 0.0008" contype="0" conaffinity="0" rgba=".16 .62 .42 1"/>
  <geom type="cylinder" size="0.022 0.0009" contype="0" conaffinity="0" rgba=".45 .82 .60 1"/>
</body>"""

STREAMS = {
    "joint_pos": Stream("joint_pos", "state", (6,), (*so101.JOINTS, "gripper"), ("rad",) * 5 + ("m",), "joint"),
    "cube": Stream("cube", "state", (5,), ("x", "y", "z", "cos4yaw", "sin4yaw"), ("m", "m", "m", "1", "1"), "base"),
    "target": Stream("target", "state", (2,), ("x", "y"), ("m", "m"), "base"),
}
CAMERAS = ("front", "wrist")


@lru_cache(maxsize=8)
def _model(front_orbit_deg: float, table_rgb: tuple[float, ...]) -> mujoco.MjModel:
    """Shared by all worlds of the process that look alike; nothing writes to it."""
    return mujoco.MjModel.from_xml_string(so101.scene(PROPS, TIMESTEP_S, front_orbit_deg, table_rgb))


class PickPlace(gym.Env):
    """Cube and target lie at random on a fan before the arm; success is the cube on the target, released, the hand clear.

    Streams `joint_pos` [6] (five joints rad, finger opening m), `cube` [5] (x y z m, cos and sin of four times the yaw:
    the cube looks the same every 90 degrees), `target` [2] (x y m), and an image for each of `cameras`.
    Action [6]: absolute joint targets rad and finger opening m, clipped to the limits. Reward 1 at success, which ends
    the episode. `image_size` and `render_size` are (height, width).

    `front_orbit_deg` carries the front camera round the workspace, `table_rgb` (each 0 to 1) paints the table: what a policy
    of pictures was not trained on.
    """

    observation_space: spaces.Dict
    action_space: spaces.Box
    metadata = {"render_modes": ["rgb_array"], "render_fps": RATE_HZ}  # noqa: RUF012  as gymnasium declares it
    look = True

    def __init__(
        self,
        cameras: Sequence[str] = (),
        image_size: Sequence[int] = (96, 96),
        shadows: bool = False,
        front_orbit_deg: float = 0,
        table_rgb: Sequence[float] | None = None,
        max_steps: int = 160,
        render_size: Sequence[int] = (240, 320),
        render_mode: str = "rgb_array",
    ) -> None:
        self.cameras = choose(tuple(cameras), dict.fromkeys(CAMERAS), "camera")
        self.image_size, self.render_size = _size(image_size), _size(render_size)
        self.shadows, self.max_steps, self.render_mode = shadows, max_steps, render_mode
        images = tuple(Stream(c, "image", (*self.image_size, 3), frame=c) for c in self.cameras)
        obs = ObsSpace((*STREAMS.values(), *images), RATE_HZ)
        action = ActionSpace((*so101.JOINTS, "gripper"), ("rad",) * 5 + ("m",), "joint", RATE_HZ)
        self._spec = Spec(obs, action, {"mujoco": mujoco.__version__, "env": VERSION})
        self.observation_space = observation_space(obs)
        low, high = np.concatenate([so101.LIMITS_RAD, [so101.OPENING_M]]).astype(np.float32).T
        self.action_space = spaces.Box(low, high, dtype=np.float32)
        self.model = _model(float(front_orbit_deg), _colour(table_rgb))
        self.data = mujoco.MjData(self.model)
        self._tip = self.model.site("tip").id

    @property
    def world_spec(self) -> Spec:
        return self._spec

    @property
    def time_s(self) -> float:
        return self.data.time

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        rng = self.np_random
        cube = _place(rng)
        target = _place(rng)
        while np.linalg.norm(target - cube) < APART_M:
            target = _place(rng)
        yaw = rng.uniform(-YAW_RAD, YAW_RAD)
        home = so101.top_down(*(HOME_M + rng.uniform(-1, 1, 3) * HOME_SPREAD_M))
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:5] = self.data.ctrl[:5] = home
        self.data.qpos[5:7] = self.data.ctrl[5] = OPEN_M
        self.data.qpos[7:14] = [*cube, CUBE_M, np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)]
        self.data.mocap_pos[0, :2] = target
        self._refresh()
        return self._obs(), {"is_success": self.is_success}

    def step(self, action: np.ndarray):
        self.data.ctrl[:] = command(action, self.action_space, "PickPlace")
        mujoco.mj_step(self.model, self.data, nstep=round(1 / (RATE_HZ * TIMESTEP_S)))
        self._refresh()
        success = self.is_success
        truncated = round(self.time_s * RATE_HZ) >= self.max_steps
        return self._obs(self.look), float(success), success, truncated, {"is_success": success}

    def render(self) -> np.ndarray:
        return picture(self.model, self.data, "front", self.render_size, self.shadows)

    def get_state(self) -> Float[np.ndarray, "s"]:
        """Everything the next step depends on. After `set_state` of it the world goes on to the bit as it did."""
        state = np.empty(mujoco.mj_stateSize(self.model, mujoco.mjtState.mjSTATE_INTEGRATION))
        mujoco.mj_getState(self.model, self.data, state, mujoco.mjtState.mjSTATE_INTEGRATION)
        return state

    def set_state(self, state: Float[np.ndarray, "s"]) -> dict[str, np.ndarray]:
        """Goes to a state of `get_state` and returns what is seen there."""
        mujoco.mj_setState(self.model, self.data, state, mujoco.mjtState.mjSTATE_INTEGRATION)
        self._refresh()
        return self._obs()

    def goal(self) -> dict[str, np.ndarray]:
        """What is seen once done: the cube lies on the target (as it is turned now), the arm is back at its home pose, open."""
        yaw = 4 * self.cube_yaw
        seen = {
            "joint_pos": [*so101.top_down(*HOME_M), OPEN_M],
            "cube": [*self.target_pos, CUBE_M, np.cos(yaw), np.sin(yaw)],
            "target": self.target_pos,
        }
        return {name: np.asarray(value, np.float32) for name, value in seen.items()}

    @property
    def joints(self) -> Float[np.ndarray, "5"]:
        return self.data.qpos[:5].copy()

    @property
    def opening(self) -> float:
        """Distance of a finger pad from the tool axis, m."""
        return float(self.data.qpos[5:7].mean())

    @property
    def cube_pos(self) -> Float[np.ndarray, "3"]:
        return self.data.qpos[7:10].copy()

    @property
    def cube_yaw(self) -> float:
        w, x, y, z = self.data.qpos[10:14]
        return float(np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z)))

    @property
    def target_pos(self) -> Float[np.ndarray, "2"]:
        return self.data.mocap_pos[0, :2].copy()

    @property
    def tip_pos(self) -> Float[np.ndarray, "3"]:
        return self.data.site_xpos[self._tip].copy()

    @property
    def tip_yaw(self) -> float:
        """Heading of the slides' axis in the base frame, rad."""
        return float(np.arctan2(self.data.site_xmat[self._tip, 3], self.data.site_xmat[self._tip, 0]))

    @property
    def is_success(self) -> bool:
        cube = self.cube_pos
        on_target = np.linalg.norm(cube[:2] - self.target_pos) < ON_TARGET_M
        return bool(on_target and cube[2] < LOW_M and self.opening > RELEASED_M and self.tip_pos[2] > CLEAR_M)

    def _refresh(self) -> None:
        # mj_step leaves positions of bodies one substep behind the joints. These three touch no integration state.
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_comPos(self.model, self.data)
        mujoco.mj_camlight(self.model, self.data)

    def _obs(self, look: bool = True) -> dict[str, np.ndarray]:
        yaw = 4 * self.cube_yaw
        low_dim = {
            "joint_pos": [*self.joints, self.opening],
            "cube": [*self.cube_pos, np.cos(yaw), np.sin(yaw)],
            "target": self.target_pos,
        }
        obs = {name: np.asarray(value, np.float32) for name, value in low_dim.items()}
        if look:
            self._pictures = {c: picture(self.model, self.data, c, self.image_size, self.shadows) for c in self.cameras}
        return obs | self._pictures


def _colour(rgb: Sequence[float] | None) -> tuple[float, ...]:
    if rgb is None:
        return so101.TABLE_RGB
    if len(rgb) != 3 or not all(0 <= x <= 1 for x in rgb):
        raise UserError(f"table_rgb={list(rgb)}: give red, green and blue from 0 to 1, or null for the table as it is")
    return tuple(map(float, rgb))


def _size(size: Sequence[int]) -> tuple[int, int]:
    height, width = size
    return int(height), int(width)


def _place(rng: np.random.Generator) -> np.ndarray:
    """A point of the fan before the arm, uniform in area."""
    radius = np.sqrt(rng.uniform(REACH_M[0] ** 2, REACH_M[1] ** 2))
    angle = rng.uniform(-FAN_RAD, FAN_RAD)
    return radius * np.array([np.cos(angle), np.sin(angle)])
