"""A table with boxes on it, seen by two cameras: pictures and depth by meeting each pixel's ray with planes, and stores of them."""

import numpy as np

from polyarm.cloud import View, cloud
from polyarm.datasets.store import Store
from polyarm.spec import ActionSpace, ObsSpace, Spec, Stream
from polyarm.streams import points

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


def looking(eye, at):
    """base_from_camera [3 4]: x right, y down, z ahead, the horizon level."""
    z = np.subtract(at, eye) / np.linalg.norm(np.subtract(at, eye))
    x = np.cross(z, [0, 0, 1])
    x /= np.linalg.norm(x)
    return np.column_stack([x, np.cross(z, x), z, eye])


def rendered(pose, boxes=BOXES):
    """(picture uint8 [h w 3], depth uint16 [h w] mm) from `base_from_camera`; 0 where nothing is within 4 m."""
    eye, (h, w) = pose[:, 3], SIZE
    u, v = np.meshgrid(np.arange(w) + 0.5, np.arange(h) + 0.5)
    ray = np.stack([(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1], np.ones_like(u)], -1) @ pose[:, :3].T
    with np.errstate(divide="ignore"):
        depth = np.where(ray[..., 2] < 0, -eye[2] / ray[..., 2], np.inf)
        x, y, _ = np.moveaxis(eye + np.minimum(depth, 99)[..., None] * ray, -1, 0)
        tiles = (np.floor(x * 10) + np.floor(y * 10)) % 2
        rgb = np.where(tiles[..., None] > 0, (205, 190, 160), (180, 165, 135))
        for low, high, colour in boxes:
            one, two = (np.array(low) - eye) / ray, (np.array(high) - eye) / ray
            enters, leaves = np.minimum(one, two).max(-1), np.maximum(one, two).min(-1)
            hit = (enters < leaves) & (enters > 0) & (enters < depth)
            side = np.minimum(one, two).argmax(-1)
            shade = np.array([0.75, 0.9, 1.0])[side]
            depth = np.where(hit, enters, depth)
            rgb = np.where(hit[..., None], np.array(colour) * shade[..., None], rgb)
    known = depth < 4
    return np.where(known[..., None], rgb, 90).astype(np.uint8), np.where(known, depth * 1000, 0).round().astype("u2")


def camera_row(pose):
    """What a camera stream holds of it, [16]."""
    return np.concatenate([[K[0, 0], K[1, 1], K[0, 2], K[1, 2]], pose.reshape(-1)]).astype("f4")


def turned(pose, degrees):
    """The same camera, said to look so much further up than it does."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.column_stack([pose[:, :3] @ [[1, 0, 0], [0, c, -s], [0, s, c]], pose[:, 3]])


def streams(names=tuple(EYES), h=SIZE[0], w=SIZE[1]):
    for c in names:
        yield Stream(c, "image", (h, w, 3))
        yield Stream(f"{c}_depth", "depth", (h, w))
        yield Stream(f"{c}_camera", "camera", (16,))


def steps(t, names=tuple(EYES), said=lambda pose: pose):
    """Streams of an episode of t rows in which the red box rises and the tip with it. `said`: the pose that is stored."""
    poses = {c: looking(*EYES[c]) for c in names}
    rise = np.linspace(0, 0.2, t)
    found = {f"{c}_camera": np.stack([camera_row(said(pose))] * t) for c, pose in poses.items()}
    (low, high, red), *others = BOXES
    for c, pose in poses.items():
        up = lambda corner, z: (corner[0], corner[1], corner[2] + z)
        shots = [rendered(pose, ((up(low, z), up(high, z), red), *others)) for z in rise]
        found[c], found[f"{c}_depth"] = (np.stack(part) for part in zip(*shots, strict=True))
    where = np.column_stack([np.linspace(0.3, 0.6, t), np.linspace(0.1, -0.11, t), 0.3 - rise])
    return found, where.astype("f4")


POSE = (*"xyz", "qw", "qx", "qy", "qz", "opening")


def inverse(pose):
    return np.column_stack([pose[:, :3].T, -pose[:, :3].T @ pose[:, 3]])


def clouds(found, t, n, names=tuple(EYES)):
    """float32 [t n 6] of what was stored, cropped to LOW and HIGH."""
    pose = lambda c, i: inverse(found[f"{c}_camera"][i, 4:].reshape(3, 4))
    views = lambda i: [View(found[f"{c}_depth"][i], "mm", K, pose(c, i), found[c][i]) for c in names]
    return np.stack([cloud(views(i), LOW, HIGH, n) for i in range(t)])


def write(path, episodes=1, t=5, only=None, said=lambda pose: pose, names=tuple(EYES), tip=True, n=0):
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
