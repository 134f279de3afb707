"""Recall: visit pad A, then B, then A. The same place needs another action, depending on what happened before, 20 Hz.

Every visit starts from the dock and runs down one lane to the junction; nothing that is seen there says which pad is
next. Without memory the best is to choose A with probability p each time: p^2 (1 - p), at most 0.148.
"""

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
from polyarm.sim.world import command, observation_space
from polyarm.spec import ActionSpace, ObsSpace, Spec, Stream, UserError

VERSION = "Recall-v0.1"
RATE_HZ, TIMESTEP_S = 20.0, 0.005
ORDER = "ABA"
DOCK_M, JUNCTION_M = np.array([0.11, 0.0, 0.13]), np.array([0.19, 0.0, 0.05])
REACH_M, FAN_DEG = (0.15, 0.22), {"A": (22, 40), "B": (-40, -22)}
TOUCH_M, ARM_M, NOISE_RAD, FINGERS_M = 0.025, 0.03, 0.005, 0.01
DRIVEN = so101.JOINTS[:4]
"""The roll has nothing to do, and a channel that never varies cannot be scaled."""


def _disc(name: str, rgba: str) -> str:
    return f"""
<body name="{name}" mocap="true" pos="0.18 0 0.001">
  <geom type="cylinder" size="{TOUCH_M} 0.0008" contype="0" conaffinity="0" rgba="{rgba}"/>
</body>"""


PROPS = _disc("A", ".86 .18 .20 1") + _disc("B", ".18 .36 .80 1")

STREAMS = (
    Stream("joint_pos", "state", (5,), so101.JOINTS, ("rad",) * 5, "joint"),
    Stream("pad_a", "state", (2,), ("x", "y"), ("m", "m"), "base"),
    Stream("pad_b", "state", (2,), ("x", "y"), ("m", "m"), "base"),
)


@lru_cache(maxsize=1)
def _model() -> mujoco.MjModel:
    """Shared by all worlds of the process; nothing writes to it."""
    return mujoco.MjModel.from_xml_string(so101.scene(PROPS, TIMESTEP_S))


class Recall(gym.Env):
    """The tip must touch (pass over within 2.5 cm of) pad A, then B, then A, and pass the dock before each touch.

    Streams `joint_pos` [5] (rad, with noise of 0.005), `pad_a` and `pad_b` [2] (x y m). Action [4]: absolute targets
    rad of all joints but the roll, clipped to the limits; roll and fingers are held. A touch counts only when armed, by
    having been within 3 cm of the dock since the last one; the wrong pad ends the episode without success, the third
    right one with it, reward 1.

    `seen_steps`: the pads' streams are zeros from this observation on, so that where they lie is to be remembered as well.
    `pause_steps`: for up to so many steps at the start, drawn by the seed, the arm takes no command and time stands still.
    """

    observation_space: spaces.Dict
    action_space: spaces.Box
    metadata = {"render_modes": ["rgb_array"], "render_fps": RATE_HZ}  # noqa: RUF012  as gymnasium declares it

    def __init__(
        self,
        max_steps: int = 200,
        seen_steps: int | None = None,
        pause_steps: int = 0,
        render_size: Sequence[int] = (240, 320),
        render_mode: str = "rgb_array",
    ) -> None:
        if (seen_steps is not None and seen_steps < 1) or pause_steps < 0:
            raise UserError(
                f"seen_steps={seen_steps}, pause_steps={pause_steps}: give 1 or more (null: always), and 0 or more"
            )
        self.seen_steps, self.pause_steps = seen_steps, pause_steps
        self.max_steps, self.render_mode = max_steps, render_mode
        self.render_size = (int(render_size[0]), int(render_size[1]))
        obs = ObsSpace(STREAMS, RATE_HZ)
        action = ActionSpace(DRIVEN, ("rad",) * 4, "joint", RATE_HZ)
        self._spec = Spec(obs, action, {"mujoco": mujoco.__version__, "env": VERSION})
        self.observation_space = observation_space(obs)
        low, high = so101.LIMITS_RAD[:4].astype(np.float32).T
        self.action_space = spaces.Box(low, high, dtype=np.float32)
        self.model, self.data = _model(), mujoco.MjData(_model())
        self._tip = self.model.site("tip").id

    @property
    def world_spec(self) -> Spec:
        return self._spec

    @property
    def time_s(self) -> float:
        return self.data.time

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.pads = {name: _place(self.np_random, fan) for name, fan in FAN_DEG.items()}
        self.touched, self.armed, self.wrong = 0, True, False
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:5] = self.data.ctrl[:5] = so101.top_down(*DOCK_M)
        self.data.qpos[5:7] = self.data.ctrl[5] = FINGERS_M
        self.data.mocap_pos[:, :2] = [self.pads["A"], self.pads["B"]]
        self._refresh()
        # the last draw of the reset: a pause leaves the places as they are without
        self._pause = int(self.np_random.integers(self.pause_steps + 1)) if self.pause_steps else 0
        return self._obs(), {"is_success": False}

    def step(self, action: np.ndarray):
        wanted = command(action, self.action_space, "Recall")
        if self._pause:
            self._pause -= 1
            return self._obs(), 0.0, False, False, {"is_success": False}
        self.data.ctrl[:4] = wanted
        mujoco.mj_step(self.model, self.data, nstep=round(1 / (RATE_HZ * TIMESTEP_S)))
        self._refresh()
        self._touch()
        success = self.is_success
        truncated = round(self.time_s * RATE_HZ) >= self.max_steps
        return self._obs(), float(success), success or self.wrong, truncated, {"is_success": success}

    def render(self) -> np.ndarray:
        return picture(self.model, self.data, "front", self.render_size)

    @property
    def joints(self) -> Float[np.ndarray, "5"]:
        return self.data.qpos[:5].copy()

    @property
    def tip_pos(self) -> Float[np.ndarray, "3"]:
        return self.data.site_xpos[self._tip].copy()

    @property
    def wanted(self) -> str:
        """Name of the pad to touch next; the last one when all were touched."""
        return ORDER[min(self.touched, len(ORDER) - 1)]

    @property
    def is_success(self) -> bool:
        return self.touched == len(ORDER) and not self.wrong

    def _touch(self) -> None:
        tip = self.tip_pos
        self.armed |= bool(np.linalg.norm(tip - DOCK_M) < ARM_M)
        for name, pad in self.pads.items():
            if self.armed and np.linalg.norm(tip[:2] - pad) < TOUCH_M and not self.is_success:
                self.wrong |= name != self.wanted
                self.touched += name == self.wanted
                self.armed = False

    def _refresh(self) -> None:
        # mj_step leaves positions of bodies one substep behind the joints. These three touch no integration state.
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_comPos(self.model, self.data)
        mujoco.mj_camlight(self.model, self.data)

    def _obs(self) -> dict[str, np.ndarray]:
        noisy = self.joints + NOISE_RAD * self.np_random.standard_normal(5)
        seen = self.seen_steps is None or round(self.time_s * RATE_HZ) < self.seen_steps
        obs = {"joint_pos": noisy, "pad_a": self.pads["A"] * seen, "pad_b": self.pads["B"] * seen}
        return {name: np.asarray(value, np.float32) for name, value in obs.items()}


def _place(rng: np.random.Generator, fan_deg: tuple[int, int]) -> np.ndarray:
    radius, angle = rng.uniform(*REACH_M), np.deg2rad(rng.uniform(*fan_deg))
    return radius * np.array([np.cos(angle), np.sin(angle)])
