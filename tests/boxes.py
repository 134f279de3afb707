"""A small world of one camera, for policies that see in space: a coloured box lies on a table and the gripper goes to it."""

import numpy as np

from polyarm.datasets.store import Store
from polyarm.rotation import CHANNELS
from polyarm.spec import ActionSpace, ObsSpace, Spec, Stream

XYZ, SIX = ("x", "y", "z"), CHANNELS["rot6d_columns"]
CAMERA = np.array([0.6, 0.0, 0.7])
"""It looks straight down: columns along x, rows along -y."""
TOP = 0.04


def spec(size):
    tip = Stream("tip", "state", (9,), (*XYZ, *SIX), ("m",) * 3 + ("1",) * 6, "base")
    streams = (
        Stream("front", "image", (size, size, 3), frame="front"),
        Stream("front_points", "points", (size, size, 3), frame="base"),
        tip,
        Stream("cloud", "points", (64, 3), XYZ, ("m",) * 3, "base"),
        Stream("goal", "state", (3,), XYZ, ("m",) * 3, "base"),
    )
    action = ActionSpace(
        (*XYZ, *SIX, "opening"),
        ("m",) * 3 + ("1",) * 6 + ("m",),
        "base",
        10.0,
        rotation="rot6d_columns",
        rotations=(3,),
    )
    return Spec(ObsSpace(streams, 10.0), action)


def seen(box, size):
    """(picture, point map) of a box of 8 cm at `box` (x, y)."""
    ray = (np.arange(size) + 0.5) / size - 0.5
    across, down = np.meshgrid(ray * 0.8, -ray * 0.8)
    at = lambda z: np.stack(
        (CAMERA[0] + across * (CAMERA[2] - z), CAMERA[1] + down * (CAMERA[2] - z), 0 * across + z), -1
    )
    on_top = (np.abs(at(TOP)[..., :2] - box) < 0.04).all(-1)
    picture = np.where(on_top[..., None], np.array([220, 30, 30], "u1"), np.array([120, 130, 120], "u1"))
    return picture, np.where(on_top[..., None], at(TOP), at(0.0)).astype("f4")


def turned(angle):
    """A rotation about the vertical as six numbers, [... 6]."""
    cos, sin, none = np.cos(angle), np.sin(angle), np.zeros_like(angle)
    return np.stack((cos, sin, none, -sin, cos, none), -1)


def episode(random, size, t=12):
    box = random.uniform((0.48, -0.12), (0.72, 0.12))
    start = random.uniform((0.45, -0.15, 0.15), (0.75, 0.15, 0.3))
    share = np.linspace(0, 1, t + 1)[:, None]
    way = start + (np.array([*box, TOP]) - start) * np.minimum(1.3 * share, 1)
    turn = turned(np.linspace(0.0, 0.6, t + 1) * random.uniform(0.5, 1))
    pose = np.concatenate((way, turn), 1).astype("f4")
    opening = np.where(share[1:] > 0.8, 0.0, 0.08)
    picture, points = seen(box, size)
    every = lambda x: np.repeat(np.asarray(x)[None], t, 0)
    goal = random.uniform((0.45, -0.15, 0.1), (0.75, 0.15, 0.3)).astype("f4")
    return {
        "cloud": every(points.reshape(-1, 3)[random.permutation(size * size)[:64]]), "front": every(picture), "front_points": every(points), "tip": pose[:-1], "goal": every(goal),
        "action": np.concatenate((pose[1:], opening), 1).astype("f4"), "time_s": np.arange(t) / 10.0,
    }  # fmt: skip


def store(path, n=6, size=32, seed=0, changed=lambda e: e):
    random = np.random.default_rng(seed)
    with Store.create(path, spec(size)) as made:
        for i in range(n):
            made.append(changed(episode(random, size)), i)
    return path
