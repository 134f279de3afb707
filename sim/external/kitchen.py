"""Kitchen: a Franka arm does several things in a kitchen in one episode, 12.5 Hz (Franka Kitchen of relay policy learning, Gupta
et al., 2019), on the model that gymnasium-robotics carries. To the bit its FrankaKitchen-v1, without importing it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from jaxtyping import Float

from polyarm.sim.mujoco import mujoco
from polyarm.sim.mujoco.render import picture
from polyarm.sim.world import Missing, choose, command, observation_space
from polyarm.spec import ActionSpace, ObsSpace, Spec, Stream, UserError

VERSION = "Kitchen-v0.1"
TIMESTEP_S, SUBSTEPS, RATE_HZ = 0.002, 40, 12.5
SPEED = 2.0
"""Of an action of 1: rad/s, for the fingers m/s."""
REACHED = 0.3
"""A subtask is done once what it moves is nearer to its goal than this (Euclidean, metres, radians and quaternions alike)."""

SUBTASKS: dict[str, tuple[tuple[int, ...], tuple[float, ...]]] = {
    "bottom burner": ((11, 12), (-0.88, -0.01)),
    "top burner": ((15, 16), (-0.92, -0.01)),
    "light switch": ((17, 18), (-0.69, -0.05)),
    "slide cabinet": ((19,), (0.37,)),
    "hinge cabinet": ((20, 21), (0.0, 1.45)),
    "microwave": ((22,), (-0.75,)),
    "kettle": ((23, 24, 25, 26, 27, 28, 29), (-0.23, 0.75, 1.62, 0.99, 0.0, 0.0, -0.06)),
}
"""Which joint coordinates a subtask moves, and where to: the benchmark's."""
DEMONSTRATED = ("microwave", "kettle", "light switch", "slide cabinet")

HOME = np.array(
    [
        *(1.48388023e-01, -1.76848573e00, 1.84390296e00, -2.47685760e00, 2.60252026e-01, 7.12533105e-01, 1.59515394e00),
        *(4.79267505e-02, 3.71350919e-02),
        *(-2.66279850e-04, -5.18043486e-05, 3.12877220e-05, -4.51199853e-05),
        *(-3.90842156e-06, -4.22629655e-05, 6.28065475e-05, 4.04984708e-05),
        *(4.62730939e-04, -2.26906415e-04, -4.65501369e-04, -6.44129196e-03, -1.77048263e-03, 1.08009684e-03),
        *(
            -2.69397440e-01,
            3.50383255e-01,
            1.61944683e00,
            1.00618764e00,
            4.06395120e-03,
            -6.62095997e-03,
            -2.68278933e-04,
        ),
    ]
)
"""Joint coordinates [30] that every episode starts from, at rest: the benchmark's."""

ARM = {f"joint{i}": "rad" for i in range(1, 8)} | {"finger1": "m", "finger2": "m"}
FITTINGS = {f"{what}_{at}": unit for at in ("br", "bl", "tr", "tl") for what, unit in (("knob", "rad"), ("burner", "m"))} | {
    "light_switch": "rad", "light": "m", "slide_cabinet": "m",
    "hinge_cabinet_left": "rad", "hinge_cabinet_right": "rad", "microwave": "rad",
}  # fmt: skip
"""Channels and units, in the model's order. Knobs and burners: bottom and top, right and left."""
KETTLE = {f"kettle_{axis}": "m" for axis in "xyz"} | {f"kettle_q{part}": "1" for part in "wxyz"}
KETTLE_SPEED = {f"kettle_v{axis}": "m/s" for axis in "xyz"} | {f"kettle_w{axis}": "rad/s" for axis in "xyz"}


def _stream(name: str, units: Mapping[str, str], frame: str) -> Stream:
    return Stream(name, "state", (len(units),), tuple(units), tuple(units.values()), frame)


def _speeds(units: Mapping[str, str]) -> dict[str, str]:
    return {name: f"{unit}/s" for name, unit in units.items()}


STREAMS = {
    "joint_pos": _stream("joint_pos", ARM, "joint"),
    "joint_vel": _stream("joint_vel", _speeds(ARM), "joint"),
    "object_pos": _stream("object_pos", FITTINGS | KETTLE, "world"),
    "object_vel": _stream("object_vel", _speeds(FITTINGS) | KETTLE_SPEED, "world"),
}
"""Side by side, in this order, they are the benchmark's 59 numbers, which its recordings hold."""
CUTS = np.cumsum([s.shape[0] for s in STREAMS.values()])[:-1]


class _Kitchen(NamedTuple):
    """What all worlds of the process share; nothing writes to it. `noise`: amplitudes [59] at ratio 1; `limits`: [9 2]."""

    model: mujoco.MjModel
    limits: np.ndarray
    noise: np.ndarray


@lru_cache(maxsize=1)
def _kitchen() -> _Kitchen:
    found = find_spec("gymnasium_robotics")  # importing it takes two seconds and is not needed
    if found is None or not found.submodule_search_locations:
        raise Missing(
            "Kitchen needs gymnasium-robotics, which is not installed: install the extra, pip install 'polyarm[kitchen]'"
        )
    assets = Path(found.submodule_search_locations[0]) / "envs" / "assets" / "kitchen_franka"
    model = mujoco.MjModel.from_xml_path(str(assets / "kitchen_assets" / "kitchen_env_model.xml"))
    model.vis.global_.offwidth, model.vis.global_.offheight, model.vis.quality.offsamples = 1280, 960, 0
    config = ElementTree.parse(assets / "franka_assets" / "franka_config.xml").getroot()
    bounds, pos, vel = (
        np.array([config.findall(f"qpos{i}")[0].attrib[key].split() for i in range(model.nv)]).astype(np.float64)
        for key in ("pos_bound", "pos_noise_amp", "vel_noise_amp")
    )
    # objects take the position amplitudes from one joint too early: the benchmark does
    noise = np.concatenate([pos[:9], vel[:9], pos[8:], vel[9:]])[:, 0]
    return _Kitchen(model, bounds[:9], noise)


class Kitchen(gym.Env):
    """`tasks` are to be done in one episode, in any order unless `in_order`; each counts from when it is first reached, even
    if it is undone later. The reward is the share done so far; all done is success and ends the episode.

    `streams` chooses from `joint_pos` [9] (rad, fingers m), `object_pos` [21] (rad, m; the kettle's pose with wxyz) and
    their velocities `joint_vel` [9] and `object_vel` [20] (the kettle's turning in its own frame). Action [9] in [-1, 1]:
    joint velocities in units of 2 rad/s (fingers 2 m/s), which set position targets 0.08 s ahead of the joints *as read*.

    Every episode starts from the same pose. Only the uniform noise of the readings follows from the seed:
    `robot_noise` 0.01 is 0.001 rad, m, rad/s and m/s, and moves the targets with it; `object_noise` 0.0005 is at most
    5e-5. 0 switches either off. `reset(options={"state": [59]})` starts from a row of the benchmark's recordings.
    """

    observation_space: spaces.Dict
    action_space: spaces.Box
    metadata = {"render_modes": ["rgb_array"], "render_fps": RATE_HZ}  # noqa: RUF012  as gymnasium declares it

    def __init__(
        self,
        streams: Sequence[str] = ("joint_pos", "object_pos"),
        tasks: Sequence[str] = DEMONSTRATED,
        in_order: bool = False,
        robot_noise: float = 0.01,
        object_noise: float = 0.0005,
        max_steps: int = 280,
        render_size: Sequence[int] = (360, 480),
        render_mode: str = "rgb_array",
    ) -> None:
        self.streams = choose(tuple(streams), STREAMS, "Kitchen stream")
        self.tasks, self.in_order = choose(tuple(tasks), SUBTASKS, "Kitchen subtask"), in_order
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise UserError(f"Kitchen was given the subtasks {list(self.tasks)}: give one or more, each once")
        self.max_steps, self.render_mode = max_steps, render_mode
        self.render_size = (int(render_size[0]), int(render_size[1]))
        self.model, self._limits, noise = _kitchen()
        self._noise = np.repeat([robot_noise, object_noise], [18, 41]) * noise
        obs = ObsSpace(tuple(STREAMS[s] for s in self.streams), RATE_HZ)
        action = ActionSpace(tuple(ARM), tuple(f"{SPEED:g} {unit}/s" for unit in ARM.values()), "joint", RATE_HZ)
        versions = {"mujoco": mujoco.__version__, "gymnasium-robotics": version("gymnasium-robotics"), "env": VERSION}
        self._spec = Spec(obs, action, versions)
        self.observation_space = observation_space(obs)
        self.action_space = spaces.Box(-1, 1, (9,), np.float32)
        self.data = mujoco.MjData(self.model)
        self.completed: list[str] = []
        """Subtasks done in this episode, in the order in which they were."""

    @property
    def world_spec(self) -> Spec:
        return self._spec

    @property
    def stages(self) -> tuple[str, ...]:
        """What is to be done; the reward is the share of it that was."""
        return self.tasks

    @property
    def time_s(self) -> float:
        return self.data.time

    @property
    def state(self) -> Float[np.ndarray, "59"]:
        """All streams side by side, without noise."""
        qpos, qvel = self.data.qpos, self.data.qvel
        return np.concatenate([qpos[:9], qvel[:9], qpos[9:], qvel[9:]])

    def goal(self) -> dict[str, np.ndarray]:
        """What is seen once done: the subtasks' joints at their goals, all else as at the start, at rest.

        No subtask says where the arm is to end, so it is back at its start; people ended with the hand where the last
        subtask was.
        """
        qpos = HOME.copy()
        for name in self.tasks:
            where, values = SUBTASKS[name]
            qpos[list(where)] = values
        seen = _named(np.concatenate([qpos[:9], np.zeros(9), qpos[9:], np.zeros(20)]))
        return {name: seen[name] for name in self.streams}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:] = HOME
        if (state := (options or {}).get("state")) is not None:
            joint_pos, joint_vel, object_pos, object_vel = np.split(_checked(state), CUTS)
            self.data.qpos[:], self.data.qvel[:] = np.append(joint_pos, object_pos), np.append(joint_vel, object_vel)
        mujoco.mj_forward(self.model, self.data)
        self._steps, self.completed = 0, []
        return self._read(), {"is_success": False, "completed": 0}

    def step(self, action: np.ndarray):
        speed = SPEED * command(action, self.action_space, "Kitchen")
        self.data.ctrl[:] = np.clip(self._seen[:9] + speed * (TIMESTEP_S * SUBSTEPS), *self._limits.T)
        mujoco.mj_step(self.model, self.data, nstep=SUBSTEPS)
        self._steps += 1
        self._count()
        done = len(self.completed)
        info = {"is_success": done == len(self.tasks), "completed": done}
        return self._read(), done / len(self.tasks), info["is_success"], self._steps >= self.max_steps, info

    def render(self) -> np.ndarray:
        """From behind the arm, without shadows."""
        # a step leaves poses of bodies one substep behind the joints; these three touch no integration state
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_comPos(self.model, self.data)
        mujoco.mj_camlight(self.model, self.data)
        return picture(self.model, self.data, _view(), self.render_size)

    def _count(self) -> None:
        for name in self.tasks:
            if name in self.completed:
                continue
            if reached(self.data.qpos, name):
                self.completed.append(name)
            elif self.in_order:
                break

    def _read(self) -> dict[str, np.ndarray]:
        self._seen = self.state + self._noise * self.np_random.uniform(-1.0, 1.0, len(self._noise))
        seen = _named(self._seen)
        return {name: seen[name] for name in self.streams}


def reached(qpos: Float[np.ndarray, "30"], task: str) -> bool:
    """Whether the joints of this subtask are at its goal."""
    where, values = SUBTASKS[task]
    return bool(np.linalg.norm(qpos[list(where)] - np.array(values)) < REACHED)


def _named(state: Float[np.ndarray, "59"]) -> dict[str, np.ndarray]:
    """{stream: float32} of all streams side by side."""
    return dict(zip(STREAMS, np.split(state.astype(np.float32), CUTS), strict=True))


def _checked(state: Any) -> np.ndarray:
    state = np.asarray(state, np.float64)
    if state.shape != (59,) or not np.isfinite(state).all():
        raise UserError(
            f"Kitchen was asked to start from a state of shape {state.shape}: give the 59 finite numbers of a recorded row, "
            f"{', '.join(STREAMS)}"
        )
    return state


def _view() -> mujoco.MjvCamera:
    """The benchmark's camera."""
    view = mujoco.MjvCamera()
    view.distance, view.azimuth, view.elevation, view.lookat[:] = 2.2, 70.0, -35.0, (-0.2, 0.5, 2.0)
    return view
