"""ManiSkill's table-top tasks in SAPIEN, 20 Hz: state, colours, depth, objects and calibrated cameras, all in the robot's base frame."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from jaxtyping import Float

from polyarm.sim.sapien.robots import RATE_HZ, ROBOTS
from polyarm.sim.sapien.said import LENGTH, Said
from polyarm.sim.sapien.tasks import POSE, TASKS, Shape
from polyarm.sim.world import choose, command, observation_space
from polyarm.spec import ObsSpace, Spec, Stream, UserError, unknown

VERSION = "ManiSkill-v0.2"
CAMERAS = {"front": "base_camera", "wrist": "hand_camera"}
SEE = ("rgb", "depth", "segmentation")


class ManiSkill(gym.Env):
    """`task` is one of `tasks.TASKS`. Streams: `joint_pos` (rad, finger m), `tip` [10] (x y z m, the first two columns of its
    rotation, how far the hand is open), the task's objects, and for each of `cameras` what is in `see`: the colours `c`, `c_depth` [h w] (uint16 mm, 0:
    nothing), `c_segmentation` [h w] (the number of the object), and always `c_camera` [16] (see `polyarm.camera`).

    Actions: see `robots`. Reward 1 at success, which ends the episode. `front_orbit_deg` carries the front camera round the
    vertical through what it looks at. `rebuild`: every reset makes the scene anew, without which PhysX remembers the contacts
    of the episode before. A task with instructions shows one as `instruction`; `which`, `say`: see `said`. To lift another thing
    than the one that counts is a failure, which ends the episode too. Pictures are taken while `look` is true, and those of
    before shown again otherwise.
    """

    observation_space: spaces.Dict
    action_space: spaces.Box
    metadata = {"render_modes": ["rgb_array"], "render_fps": RATE_HZ}  # noqa: RUF012  as gymnasium declares it
    look = True

    def __init__(
        self,
        task: str = "PickCube-v1",
        cameras: Sequence[str] = (),
        see: Sequence[str] = ("rgb", "depth"),
        image_size: Sequence[int] = (128, 128),
        fov_deg: float = 57.0,
        front_orbit_deg: float = 0.0,
        rebuild: bool = True,
        which: str | None = None,
        say: str = "right",
        max_steps: int | None = None,
        render_size: Sequence[int] = (240, 320),
        render_mode: str = "rgb_array",
    ) -> None:
        if task not in TASKS:
            raise unknown("ManiSkill task", task, TASKS)
        self.task = TASKS[task]
        self.cameras = choose(tuple(cameras), CAMERAS, "camera")
        self.see = choose(tuple(see), dict.fromkeys(SEE), "thing to see")
        self._said, self._told = Said(self.task.says, which, say, task), dict[str, np.ndarray]()
        self.image_size = (int(image_size[0]), int(image_size[1]))
        self.max_steps = self.task.steps if max_steps is None else max_steps
        self._rebuild, self.render_mode = rebuild, render_mode
        uid = _robot(self.task.robot, self.cameras)
        self._env: Any = _make(self, uid, fov_deg, front_orbit_deg, render_size)
        self.robot = ROBOTS[uid](self._env.agent)
        self._steps, self._pictures = 0, dict[str, np.ndarray]()
        obs = ObsSpace(tuple(self._streams()), RATE_HZ)
        versions = {"sapien": version("sapien"), "mani-skill": version("mani-skill"), "env": f"{task} {VERSION}"}
        self._spec = Spec(obs, self.robot.action, versions)
        self.observation_space = observation_space(obs)
        low, high = (np.array(ends, np.float32) for ends in (self.robot.low, self.robot.high))
        self.action_space = spaces.Box(low, high, dtype=np.float32)

    @property
    def world_spec(self) -> Spec:
        return self._spec

    @property
    def time_s(self) -> float:
        return self._steps / RATE_HZ

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        # without a seed the next one follows from the last
        seed = int(self.np_random.integers(2**31)) if seed is None else seed
        told: dict[str, Any] = {"reconfigure": self._rebuild}
        if self._said:
            told["named"], self._told["instruction"] = self._said.draw(np.random.default_rng(seed))
        self._env.reset(seed=seed, options=told)
        for other in set(CAMERAS.values()) - {CAMERAS[c] for c in self.cameras}:  # it would be drawn all the same
            self._env._sensors.pop(other, None)
        _hide_camera(self._env.agent.robot)
        self.robot = type(self.robot)(self._env.agent)  # a scene made anew has another
        self._steps = 0
        return self._obs(look=True), self._judged()

    def step(self, action: np.ndarray):
        told = self.robot.told(command(action, self.action_space, self.task.id), self.qpos)
        self._env._step_action(np.float32(told))
        self._steps += 1
        info = self._judged()
        success = info["is_success"]
        return self._obs(self.look), float(success), any(info.values()), self._steps >= self.max_steps, info

    def render(self) -> np.ndarray:
        return self._env.render_rgb_array()[0].cpu().numpy()

    def close(self) -> None:
        self._env.close()

    @property
    def qpos(self) -> Float[np.ndarray, "q"]:
        return self._env.agent.robot._objs[0].get_qpos().astype(np.float64)

    @property
    def tip(self) -> Float[np.ndarray, "4 4"]:
        """base_from_tip."""
        return self.base_from(self.robot.tip())

    def _judged(self) -> dict[str, bool]:
        """Whether it is done; and whether it is spoilt, where a task can be."""
        found = self._env.evaluate()
        judged = {"is_success": bool(found["success"])}
        return judged | {"is_failure": bool(found["fail"])} if "fail" in found else judged

    def pose(self, name: str) -> Float[np.ndarray, "4 4"]:
        """base_from_object, of an attribute of ManiSkill's environment."""
        found = getattr(self._env, name)
        return self.base_from(getattr(found, "pose", found))

    def sizes(self, name: str) -> list[float]:
        """A stream of sizes, m."""
        return self.task.sizes[name][1](self._env)

    def base_from(self, pose: Any) -> Float[np.ndarray, "4 4"]:
        return _rigid_inverse(_matrix(self._env.agent.robot.pose)) @ _matrix(pose)

    def _streams(self) -> Iterator[Stream]:
        robot = self.robot
        yield Stream("joint_pos", "state", (len(robot.joints),), robot.joints, robot.units, "joint")
        yield Shape((*POSE.names, robot.joints[-1]), (*POSE.units, robot.units[-1]), POSE.read).stream("tip")
        for name, (_, shape) in self.task.shows.items():
            yield shape.stream(name)
        for name, (channels, _) in self.task.sizes.items():
            yield Stream(name, "state", (len(channels),), channels, ("m",) * len(channels), "base")
        if self._said:
            yield Stream("instruction", "text", (LENGTH,))
        for c in self.cameras:
            if "rgb" in self.see:
                yield Stream(c, "image", (*self.image_size, 3), frame=c)
            if "depth" in self.see:
                yield Stream(f"{c}_depth", "depth", self.image_size, units=("mm",), frame=c)
            if "segmentation" in self.see:
                yield Stream(f"{c}_segmentation", "segmentation", self.image_size, frame=c)
            yield Stream(f"{c}_camera", "camera", (16,), frame="base")

    def _obs(self, look: bool) -> dict[str, np.ndarray]:
        joints = self.robot.shown(self.qpos)
        seen: dict[str, Any] = {"joint_pos": joints, "tip": [*POSE.read(self.tip), joints[-1]]}
        seen |= {name: shape.read(self.pose(thing)) for name, (thing, shape) in self.task.shows.items()}
        seen |= {name: self.sizes(name) for name in self.task.sizes}
        if self.cameras and look:
            self._pictures = self._looked()
        return {name: np.asarray(value, np.float32) for name, value in seen.items()} | self._told | self._pictures

    def _looked(self) -> dict[str, np.ndarray]:
        shots, seen = self._env._get_obs_sensor_data(), {}
        for c in self.cameras:
            shot = {kind: image[0].cpu().numpy() for kind, image in shots[CAMERAS[c]].items()}
            if "rgb" in self.see:
                seen[c] = shot["rgb"]
            if "depth" in self.see:
                seen[f"{c}_depth"] = shot["depth"][..., 0].clip(0).astype(np.uint16)
            if "segmentation" in self.see:
                seen[f"{c}_segmentation"] = shot["segmentation"][..., 0].astype(np.uint16)
            seen[f"{c}_camera"] = self._calibration(CAMERAS[c])
        return seen

    def _calibration(self, camera: str) -> Float[np.ndarray, "16"]:
        params = self._env._sensors[camera].get_params()
        k = params["intrinsic_cv"][0].cpu().numpy()
        camera_from_world = np.eye(4)
        camera_from_world[:3] = params["extrinsic_cv"][0].cpu().numpy()
        base_from_world = _rigid_inverse(_matrix(self._env.agent.robot.pose))
        base_from_camera = base_from_world @ _rigid_inverse(camera_from_world)
        return np.array([k[0, 0], k[1, 1], k[0, 2], k[1, 2], *base_from_camera[:3].ravel()], np.float32)


def _robot(named: str, cameras: Sequence[str]) -> str:
    if "wrist" not in cameras:
        return named
    if named != "panda" and named != "panda_wristcam":
        raise UserError(f"robot {named} has no wrist camera: give task.env_kwargs.cameras=[front]")
    return "panda_wristcam"


def _make(world: ManiSkill, robot: str, fov_deg: float, orbit_deg: float, render_size: Sequence[int]) -> Any:
    from polyarm.sim.sapien.vulkan import device, prepare

    prepare()
    import polyarm.sim.sapien.named_cube  # noqa: F401  registers it

    size = {"width": world.image_size[1], "height": world.image_size[0]}
    front = {**size, "fov": math.radians(fov_deg), "pose": _orbit(world.task.eye, world.task.look, orbit_deg)}
    named: dict[str, Any] = {} if robot == "so100" else {"robot_uids": robot}  # PickCubeSO100 names its own
    sensors = {CAMERAS[c]: front if c == "front" else size for c in world.cameras}
    return gym.make(
        world.task.id, obs_mode="+".join(world.see) if world.cameras else "state", control_mode="pd_joint_pos",
        **named, reward_mode="none", num_envs=1, render_mode="rgb_array", render_backend=device(),
        sensor_configs=sensors,
        human_render_camera_configs={"width": int(render_size[1]), "height": int(render_size[0])},
    ).unwrapped  # fmt: skip


def _orbit(eye: Sequence[float], look: Sequence[float], turn_deg: float) -> Any:
    from mani_skill.utils import sapien_utils

    (x, y, _), turn = np.subtract(eye, look), math.radians(turn_deg)
    cos, sin = math.cos(turn), math.sin(turn)
    return sapien_utils.look_at(eye=(look[0] + cos * x - sin * y, look[1] + sin * x + cos * y, eye[2]), target=look)


def _hide_camera(robot: Any) -> None:
    """The wrist camera's own mesh has three times the triangles of all else, and it is not in its own picture."""
    import sapien.render

    for link in robot.links:
        if link.name == "camera_link":
            for part in link._objs:
                body = part.entity.find_component_by_type(sapien.render.RenderBodyComponent)
                if body is not None:
                    body.visibility = 0.0


def _matrix(pose: Any) -> Float[np.ndarray, "4 4"]:
    return pose.sp.to_transformation_matrix().astype(np.float64)


def _rigid_inverse(pose: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "4 4"]:
    inverse = np.eye(4)
    inverse[:3, :3] = pose[:3, :3].T
    inverse[:3, 3] = -pose[:3, :3].T @ pose[:3, 3]
    return inverse
