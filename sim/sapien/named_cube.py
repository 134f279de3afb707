"""A task of our own for ManiSkill: three cubes that differ in colour alone, one of which is named and is to be lifted.

Importing this registers it, and needs ManiSkill (`vulkan.prepare`).
"""

from __future__ import annotations

from typing import Any

import sapien
from mani_skill.envs.sapien_env import BaseEnv
from mani_skill.envs.utils.randomization import random_quaternions
from mani_skill.sensors.camera import CameraConfig
from mani_skill.utils.building.actors import build_cube
from mani_skill.utils.common import to_tensor
from mani_skill.utils.registration import register_env
from mani_skill.utils.sapien_utils import look_at
from mani_skill.utils.scene_builder.table import TableSceneBuilder
from mani_skill.utils.structs.pose import Pose

from polyarm.sim.sapien.tasks import COLOURS

HALF_M, APART_M, LIFT_M = 0.02, 0.1, 0.08
REACH_M = (0.1, 0.15)
"""Cubes lie so far from the middle of the table, along x and y."""
DRAWS = 256
"""Of three places at once; of these about one in five are far enough apart."""


@register_env("LiftNamedCube-v1", max_episode_steps=100)
class LiftNamedCube(BaseEnv):
    """`named` [b] is which of `COLOURS` counts: that of the reset's option "named", otherwise drawn. Success: it is held `LIFT_M`
    above the table. Another that is lifted so far is a failure."""

    SUPPORTED_ROBOTS = ["panda", "panda_wristcam"]  # noqa: RUF012  as ManiSkill declares it

    def __init__(self, *args: Any, robot_uids: str = "panda", **kwargs: Any) -> None:
        super().__init__(*args, robot_uids=robot_uids, **kwargs)

    @property
    def _default_sensor_configs(self) -> list[CameraConfig]:
        return [CameraConfig("base_camera", look_at([0.3, 0, 0.6], [-0.1, 0, 0.1]), 128, 128, 1, 0.01, 100)]

    @property
    def _default_human_render_camera_configs(self) -> CameraConfig:
        return CameraConfig("render_camera", look_at([0.6, 0.7, 0.6], [0, 0, 0.35]), 512, 512, 1, 0.01, 100)

    def _load_agent(self, options: dict, *args: Any, **kwargs: Any) -> None:
        super()._load_agent(options, sapien.Pose(p=[-0.615, 0, 0]))

    def _load_scene(self, options: dict) -> None:
        self.table_scene = TableSceneBuilder(self, robot_init_qpos_noise=0.02)
        self.table_scene.build()
        self.cubes = [
            build_cube(self.scene, HALF_M, [*rgb, 1], colour, initial_pose=sapien.Pose(p=[i, 0, HALF_M]))
            for i, (colour, rgb) in enumerate(COLOURS.items())
        ]
        self.red_cube, self.green_cube, self.blue_cube = self.cubes
        self.named = to_tensor([0] * self.num_envs, device=self.device)

    def _initialize_episode(self, env_idx: Any, options: dict) -> None:
        import torch

        with torch.device(self.device):
            n = len(env_idx)
            self.table_scene.initialize(env_idx)
            places, drawn = _apart(n), torch.randint(len(COLOURS), (n,))
            for i, cube in enumerate(self.cubes):
                turn = random_quaternions(n, lock_x=True, lock_y=True)
                cube.set_pose(Pose.create_from_pq(torch.nn.functional.pad(places[:, i], (0, 1), value=HALF_M), turn))
            named = options.get("named")
            self.named[env_idx] = drawn if named is None else list(COLOURS).index(named)

    @property
    def cube(self) -> Any:
        """The one that counts, of the first environment."""
        return self.cubes[int(self.named[0])]

    def evaluate(self) -> dict[str, Any]:
        success = fail = self.named < 0  # none
        for i, cube in enumerate(self.cubes):
            counts, high = self.named == i, cube.pose.p[:, 2] > HALF_M + LIFT_M
            success = success | (counts & high & self.agent.is_grasping(cube))
            fail = fail | (~counts & high)
        return {"success": success & ~fail, "fail": fail}

    def _get_obs_extra(self, info: dict) -> dict[str, Any]:
        return {}


def _apart(n: int) -> Any:
    """Middles of three cubes on the table [n 3 2], m, `APART_M` from each other, uniform over all such: the first of `DRAWS` that are."""
    import torch

    places = (2 * torch.rand(n, DRAWS, len(COLOURS), 2) - 1) * torch.tensor(REACH_M)
    between = torch.cdist(places, places) + APART_M * torch.eye(len(COLOURS))
    first = (between >= APART_M).all(-1).all(-1).int().argmax(1)
    return places[torch.arange(n), first]
