"""A table with a box on it, seen by depth cameras: depth by meeting each pixel's ray with planes, and a world of it, registered
by name so that worker processes can make it too."""

import gymnasium as gym
import numpy as np

from polyarm.camera import to_row
from polyarm.sim.world import observation_space
from polyarm.spec import ActionSpace, ObsSpace, Spec, Stream

K = np.array([[110.0, 0, 70.5], [0, 120.0, 41.0], [0, 0, 1]])
H, W = 80, 140
BOX = np.array([-0.15, -0.1, 0.0]), np.array([0.1, 0.12, 0.2])


def looking(eye, at, roll=0.3):
    """camera_from_world [4 4] of a camera at `eye` that looks at `at`, a little turned about its axis."""
    eye, z = np.asarray(eye, float), np.subtract(at, eye).astype(float)
    z /= np.linalg.norm(z)
    x = np.cross(z, [np.sin(roll), 0, np.cos(roll)])
    x /= np.linalg.norm(x)
    r = np.stack([x, np.cross(z, x), z])
    return np.block([[r, (-r @ eye)[:, None]], [np.zeros((1, 3)), 1]])


def rendered(pose, k=K, size=(H, W), box=BOX):
    """Depth of the plane z = 0 with a box on it, by intersecting each pixel's ray; float64, 0 where nothing is hit."""
    r, t = pose[:3, :3], pose[:3, 3]
    eye = -r.T @ t
    u, v = np.meshgrid(np.arange(size[1]) + 0.5, np.arange(size[0]) + 0.5)
    ray = np.stack([(u - k[0, 2]) / k[0, 0], (v - k[1, 2]) / k[1, 1], np.ones_like(u)], -1) @ r  # of depth 1
    with np.errstate(divide="ignore"):
        plane = -eye[2] / ray[..., 2]
        one, two = (box[0] - eye) / ray, (box[1] - eye) / ray
    enters, leaves = np.minimum(one, two).max(-1), np.maximum(one, two).min(-1)
    plane = np.where(plane > 0, plane, np.inf)
    depth = np.where((enters < leaves) & (enters > 0), np.minimum(enters, plane), plane)
    return np.where(np.isfinite(depth) & (depth < 10), depth, 0.0)


SIZE = 20, 28
LENS = np.array([[25.0, 0, 14], [0, 25.0, 10], [0, 0, 1]])
EYES = {"front": (0.9, 0.1, 0.7), "side": (-0.1, -0.8, 0.9)}


class Depth(gym.Env):
    """The box is pushed to the origin, six steps an episode. `moved_m`: how much higher the cameras stand; `blind`: the step from
    which on they measure nothing."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10.0}  # noqa: RUF012
    look = True
    shots = 0
    """Of all of the process."""

    def __init__(self, cameras=("front",), moved_m=0.0, blind=99, frame="base", render_mode="rgb_array"):
        self.render_mode, self.blind = render_mode, blind
        self.poses = {c: looking(np.add(EYES[c], (0, 0, moved_m)), (0, 0, 0.1)) for c in cameras}
        streams = [Stream("at", "state", (2,), ("x", "y"), ("m", "m"), frame)]
        for c in cameras:
            streams += [Stream(c, "image", (*SIZE, 3)), Stream(f"{c}_depth", "depth", SIZE), Stream(f"{c}_camera", "camera", (16,), frame=frame)]  # fmt: skip
        self.world_spec = Spec(
            ObsSpace(tuple(streams), 10.0), ActionSpace(("x", "y"), ("m", "m"), "base", 10.0), {"env": "Depth-v0.1"}
        )
        self.observation_space = observation_space(self.world_spec.obs)
        self.action_space = gym.spaces.Box(-0.1, 0.1, (2,), np.float32)

    def _obs(self, look=True):
        obs = {"at": self.at.astype(np.float32)}
        if not look:
            return obs | self.pictures
        Depth.shots += 1
        for c, pose in self.poses.items():
            depth = rendered(pose, LENS, SIZE, np.array(BOX) * 0.5 + [*self.at, 0]) * (self.t < self.blind)
            obs[f"{c}_depth"] = np.rint(depth * 1000).astype(np.uint16)
            obs[f"{c}_camera"] = to_row(LENS, pose)
            obs[c] = np.repeat(np.rint(depth * 100)[..., None], 3, -1).astype(np.uint8)
        self.pictures = {name: x for name, x in obs.items() if name != "at"}
        return obs

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at, self.t = self.np_random.uniform(-0.2, 0.2, 2), 0
        return self._obs(), {"is_success": False}

    def step(self, action):
        self.at, self.t = self.at + np.clip(action, -0.1, 0.1), self.t + 1
        near = bool(np.linalg.norm(self.at) < 0.05)
        return self._obs(self.look), float(near), False, self.t == 6, {"is_success": near}

    def goal(self):
        return self._obs()

    def render(self):
        return np.zeros((16, 16, 3), np.uint8)


gym.register("test/Depth-v0", "tests.depth_world:Depth", disable_env_checker=True)
NAME = "tests.depth_world:test/Depth-v0"


def played(world, seed):
    """One episode of the world, as a store takes it: the box goes to the origin."""
    obs, rows, actions = world.reset(seed=seed)[0], [], []
    for _ in range(6):
        actions.append(np.clip(-obs["at"], -0.1, 0.1))
        rows.append(obs)
        obs = world.step(actions[-1])[0]
    found = {name: np.stack([row[name] for row in rows]) for name in obs}
    return {**found, "action": np.stack(actions), "time_s": np.arange(6) / 10}
