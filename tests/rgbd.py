"""A table with boxes on it, seen by two cameras: pictures and depth by `depth_world`, and stores of them."""

import numpy as np

from polyarm.camera import from_row, lift, to_row
from polyarm.cloud import Cloud
from polyarm.datasets.store import Store
from polyarm.spec import ActionSpace, ObsSpace, Spec, Stream
from polyarm.streams import points
from tests import depth_world
from tests.depth_world import looking

SIZE = 60, 80
K = np.array([[70.0, 0, 40.0], [0, 70.0, 30.0], [0, 0, 1]])
BOXES = (
    ((0.55, -0.16, 0.0), (0.65, -0.06, 0.10), (200, 40, 40)),
    ((0.60, 0.08, 0.0), (0.66, 0.18, 0.20), (40, 150, 60)),
    ((-0.08, -0.08, 0.0), (0.08, 0.08, 0.25), (150, 150, 155)),  # where the robot stands
)
EYES = {"front": ((1.15, 0.35, 0.65), (0.5, 0, 0.05)), "side": ((0.35, -0.85, 0.55), (0.55, 0, 0.05))}
"""Where each camera stands and what it looks at."""
LOW, HIGH = (0.40, -0.25, 0.004), (0.85, 0.25, 0.45)


def rendered(pose, boxes=BOXES):
    """(picture uint8 [h w 3], depth uint16 [h w] mm) of `camera_from_base`; 0 where nothing is within 4 m."""
    depths = [depth_world.rendered(pose, K, SIZE, np.array(corners)) for *corners, _ in boxes]
    depth = np.min([np.where(d > 0, d, np.inf) for d in depths], 0)
    depth = np.where(depth < 4, depth, 0)
    xyz = lift(depth, "m", K, pose)
    tiles = np.floor(np.nan_to_num(xyz[..., :2]) * 10).sum(-1) % 2
    rgb = np.where(tiles[..., None] > 0, (205, 190, 160), (180, 165, 135))
    for low, high, colour in boxes:
        inside = ((xyz > np.array(low) - 1e-6) & (xyz < np.array(high) + 1e-6) & (xyz[..., 2:] > 1e-6)).all(-1)
        shade = np.where(xyz[..., 2] > high[2] - 1e-6, 1.0, 0.8)[..., None]
        rgb = np.where(inside[..., None], colour * shade, rgb)
    return rgb.astype(np.uint8), (depth * 1000).round().astype(np.uint16)


def turned(row, degrees):
    """A camera's row that says it looks so much further up than it does."""
    k, pose = from_row(row)
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return to_row(k, np.array([[1, 0, 0], [0, c, s], [0, -s, c]]) @ pose)


def streams(names=tuple(EYES), h=SIZE[0], w=SIZE[1]):
    for c in names:
        yield Stream(c, "image", (h, w, 3))
        yield Stream(f"{c}_depth", "depth", (h, w))
        yield Stream(f"{c}_camera", "camera", (16,))


def steps(t, names=tuple(EYES), said=lambda row: row):
    """Streams of an episode of t rows in which the red box rises and the tip with it. `said`: of a camera's row, what is stored."""
    poses = {c: looking(*EYES[c], roll=0) for c in names}
    rise = np.linspace(0, 0.2, t)
    found = {f"{c}_camera": np.stack([said(to_row(K, pose))] * t) for c, pose in poses.items()}
    (low, high, red), *others = BOXES
    for c, pose in poses.items():
        up = lambda corner, z: (corner[0], corner[1], corner[2] + z)
        shots = [rendered(pose, ((up(low, z), up(high, z), red), *others)) for z in rise]
        found[c], found[f"{c}_depth"] = (np.stack(part) for part in zip(*shots, strict=True))
    where = np.column_stack([np.linspace(0.3, 0.6, t), np.linspace(0.1, -0.11, t), 0.3 - rise])
    return found, where.astype("f4")


POSE = (*"xyz", "qw", "qx", "qy", "qz", "opening")


def clouds(found, t, n, names=tuple(EYES)):
    """float32 [t n 6] of what was stored, cropped to LOW and HIGH."""
    how = Cloud(names, LOW, HIGH, n, colours=True)
    return np.stack([how.make({name: x[i] for name, x in found.items()}) for i in range(t)])


def write(path, episodes=1, t=5, only=None, said=lambda row: row, names=tuple(EYES), tip=True, n=0):
    """A store of them; `only`: the kinds of streams that are kept beside the tip; `n`: points of a cloud."""
    kept = [s for s in streams(names) if only is None or s.kind in only]
    found, where = steps(t, names, said)
    seen = [*kept, *([Stream("tip", "state", (3,), tuple("xyz"), ("m",) * 3, "base")] if tip else [])]
    if n:
        found["cloud"] = clouds(found, t, n, names)
        kept.append(points("cloud", n, colours=True, frame="base"))
        seen.append(kept[-1])
    action = ActionSpace(POSE, ("m", "m", "m", "1", "1", "1", "1", "m"), "base", 20.0)
    pose = np.concatenate([where, np.tile([0, 1, 0, 0, 0.04], (t, 1))], 1)
    with Store.create(path, Spec(ObsSpace(tuple(seen), 20.0), action)) as store:
        for seed in range(episodes):
            rows = {s.name: found[s.name] for s in kept} | ({"tip": where} if tip else {})
            store.append(rows | {"action": pose, "time_s": np.arange(t) / 20}, seed)
    return path
