"""Theorems of depth to points: the inverse of the camera, the workspace, the farthest points; and what is refused.

Mutations that turn it red: pixels counted from their corner; camera_from_world used as its inverse; depth taken along the ray; millimetres
divided by 1024; z and ray swapped; nan points kept; a colour moved to the next point; the nearest in place of the farthest; the last of
equals; any check left out; the corner kept among the points.
"""

import numpy as np
import pytest

from polyarm.cloud import View, cloud, crop, farthest, lift, metres, project, thin
from polyarm.spec import UserError
from tests.depth_world import BOX, H, K, W, looking, rendered

FRONT, SIDE = looking((0.9, 0.1, 0.7), (0, 0, 0.1)), looking((-0.1, -0.8, 0.9), (0, 0, 0.1), -0.5)


def off_the_scene(points):
    """How far points lie from the plane or the box's faces, whichever is nearer."""
    inside = np.maximum(BOX[0] - points, points - BOX[1])
    on_box = np.abs(inside.max(-1)) + np.maximum(np.sort(inside, -1)[..., :2], 0).sum(-1)
    return np.minimum(np.abs(points[..., 2]), on_box)


@pytest.mark.parametrize("pose", [FRONT, SIDE], ids=["front", "side"])
def test_points_of_a_rendered_scene_lie_on_it(pose):
    depth = rendered(pose)
    xyz = lift(depth, "m", K, pose)
    assert xyz.dtype == np.float64 and np.isnan(xyz).any(-1).sum() == (depth == 0).sum()
    seen = xyz[depth > 0]
    assert off_the_scene(seen).max() < 1e-9 and (seen[:, 2] > 0.05).sum() > 50
    coarse = lift(np.rint(depth * 1000).astype(np.uint16), "mm", K, pose[:3])
    assert coarse.dtype == np.float32 and np.abs(coarse - xyz)[depth > 0].max() < 0.0012
    assert np.abs(lift(depth.astype("f4"), "m", K, pose) - xyz)[depth > 0].max() < 2e-6


def test_a_pixel_goes_to_its_point_and_back():
    """The inverse of K [R | t], skew included."""
    k = K + np.array([[0, 3.0, 0], [0, 0, 0], [0, 0, 0]])
    depth = np.random.default_rng(0).uniform(0.3, 2, (H, W))
    pixels, z = project(lift(depth, "m", k, FRONT), k, FRONT)
    u, v = np.meshgrid(np.arange(W) + 0.5, np.arange(H) + 0.5)
    assert np.abs(pixels - np.stack([u, v], -1)).max() < 1e-9 and np.abs(z - depth).max() < 1e-12


def test_a_known_point_comes_back():
    """A mark in the middle of a pixel, its depth rendered from its place."""
    for pose in (FRONT, SIDE):
        centre = (-pose[:3, :3].T @ pose[:3, 3]) + pose[:3, :3].T @ np.linalg.inv(K) @ [37.5, 22.5, 1] * 0.8
        pixel, z = project(centre, K, pose)
        assert pixel == pytest.approx((37.5, 22.5)) and z == pytest.approx(0.8)
        depth = np.zeros((H, W))
        depth[22, 37] = z
        assert np.abs(lift(depth, "m", K, pose)[22, 37] - centre).max() < 1e-12


def test_two_cameras_agree():
    """Points that one sees on the box's top, the other sees there at their depth: between pixels of one plane 1 / depth is linear.
    With a pose that is off by a degree it does not."""
    depth = rendered(SIDE)
    top = lambda xyz: np.abs(xyz[..., 2] - BOX[1][2]) < 1e-9
    one = lift(rendered(FRONT), "m", K, FRONT)
    one, on_top = one[top(one)], top(lift(depth, "m", K, SIDE))

    def off(pose):
        pixel, z = project(one, K, pose)
        (i, j), (y, x) = np.floor(pixel.T[::-1] - 0.5).astype(int), np.modf(pixel.T[::-1] - 0.5)[0]
        whole = on_top[i, j] & on_top[i + 1, j] & on_top[i, j + 1] & on_top[i + 1, j + 1]
        assert whole.sum() > 50
        seen = sum(
            w / depth[i + a, j + c]
            for a, c, w in ((0, 0, (1 - y) * (1 - x)), (0, 1, (1 - y) * x), (1, 0, y * (1 - x)), (1, 1, y * x))
        )
        return np.abs(1 / seen - z)[whole].max()

    assert off(SIDE) < 1e-9
    assert off(looking((-0.1, -0.8, 0.9), (0.02, 0, 0.1), -0.5)) > 1e-3


def test_colours_stay_with_their_points():
    """A picture painted by where its points are is read off a cloud of two cameras, cropped and thinned."""
    paint = lambda xyz: np.rint(np.clip(np.nan_to_num(xyz) + 0.5, 0, 1) * 255).astype(np.uint8)
    views = []
    for pose in (FRONT, SIDE):
        depth = rendered(pose)
        views.append(View(depth, "m", K, pose, paint(lift(depth, "m", K, pose))))
    low, high = (-0.3, -0.3, 0.001), (0.3, 0.3, 0.5)
    got = cloud(views, low, high, 300)
    assert got.shape == (300, 6) and got.dtype == np.float32
    assert (got[:, :3] >= low).all() and (got[:, :3] <= high).all()
    assert np.abs(got[:, 3:] - (got[:, :3] + 0.5)).max() < 0.51 / 255
    bare = cloud([v._replace(rgb=None) for v in views], low, high, 300)
    assert np.array_equal(bare, got[:, :3])


def brute_force(points, n, start):
    chosen = [start]
    for _ in range(n - 1):
        near = ((points[:, None].astype(np.float64) - points[chosen]) ** 2).sum(-1).min(1)
        chosen.append(int(near.argmax()))
    return chosen


@pytest.mark.parametrize("start", [0, 17])
def test_farthest_points_are_those_of_brute_force(start):
    points = np.random.default_rng(start).normal(size=(400, 3))
    assert farthest(points, 60, start).tolist() == brute_force(points, 60, start)
    whole = np.stack(np.meshgrid(*[np.arange(4.0)] * 3), -1).reshape(-1, 3)  # full of equals: the first of them
    assert farthest(whole, 64, start).tolist() == brute_force(whole, 64, start)
    assert sorted(farthest(whole, 64, start)) == list(range(64))


def test_the_first_point_may_be_drawn():
    points = np.random.default_rng(0).normal(size=(50, 3))
    drawn = {tuple(farthest(points, 5, np.random.default_rng(seed))) for seed in (1, 1, 2, 3)}
    assert len(drawn) == 3 and all(list(d) == brute_force(points, 5, d[0]) for d in drawn)


def test_few_points_repeat_and_many_are_chosen_by_place_alone():
    points = np.random.default_rng(0).normal(size=(40, 6))
    assert np.array_equal(thin(points, 100)[:80], np.concatenate([points, points]))
    points[:, 3:] *= 1000
    assert np.array_equal(thin(points, 9, 0), points[brute_force(points[:, :3], 9, 0)])


def from_the_corner(points, n):
    return [i - 1 for i in brute_force(np.concatenate([points.min(0)[None], points]), n + 1, 0)[1:]]


@pytest.mark.parametrize("library", [True, False], ids=["fpsample", "numpy"])
def test_points_are_those_of_brute_force_from_the_lowest_corner_with_and_without_a_library(library, monkeypatch):
    """Both ways give the same points, so that a cloud does not tell which machine made it; NaN, which fpsample passes, is refused."""
    if library:
        pytest.importorskip("fpsample")
    else:
        monkeypatch.setattr("polyarm.cloud._fpsample", lambda: None)
    rng = np.random.default_rng(0)
    table = rng.uniform(0, 0.5, (300, 3)) * [1, 1, 0]
    for points in (rng.normal(size=(400, 3)), np.concatenate([table, rng.uniform(0, 0.1, (90, 3))]), -table, table[:3]):
        points = points.astype(np.float32)
        for n in (1, 2, len(points) - 1, min(64, len(points) - 1)):
            assert thin(points, n).tolist() == points[from_the_corner(points, n)].tolist()
    whole = np.stack(np.meshgrid(*[np.arange(4.0, dtype="f4")] * 3), -1).reshape(-1, 3)  # full of equals
    assert len({tuple(p) for p in thin(whole, 63)}) == 63
    with pytest.raises(UserError, match="not finite"):
        thin(np.where(np.arange(3) == 1, np.nan, table), 9)
    with pytest.raises(UserError, match="give a number from 1"):
        thin(table, 0)


def test_the_workspace_has_its_faces_and_leaves_out_what_is_not_known():
    points = np.array([[0, 0, 0], [1, 1, 1], [0.5, 0.5, 1.01], [np.nan, 0, 0], [0.2, np.inf, 0]])
    assert np.array_equal(crop(points, (0, 0, 0), (1, 1, 1)), points[:2])


DEPTH = rendered(FRONT)
MM = np.rint(DEPTH * 1000).astype(np.uint16)
LIFT = {"depth": MM, "unit": "mm", "intrinsics": K, "camera_from_world": FRONT}


def pose(**change):
    found = FRONT.copy()
    for name, value in change.items():
        found[{"r": np.s_[:3, :3], "t": np.s_[:3, 3], "last": 3}[name]] = value
    return found


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"unit": "cm"}, "unknown unit of depth 'cm'.*known are m, mm"),
        ({"depth": DEPTH}, "float64 and said to be millimetres"),
        ({"depth": MM.astype("i4")}, "int32 and said to be millimetres"),
        ({"unit": "m"}, "uint16 and said to be metres"),
        ({"depth": DEPTH * 1000, "unit": "m"}, "beyond .* m: it is millimetres"),
        ({"depth": MM.astype("f2"), "unit": "m"}, "beyond .* m: it is millimetres"),
        ({"depth": (DEPTH + 0.5).astype(np.uint16)}, "nearer than [12] mm: say its true unit"),
        ({"depth": DEPTH / 1000, "unit": "m"}, "say its true unit"),
        ({"depth": -DEPTH, "unit": "m"}, "goes down to -.*give -depth"),
        ({"depth": MM[..., None]}, r"shape \(80, 140, 1\)"),
        ({"depth": MM[:0]}, r"shape \(0, 140\)"),
        ({"intrinsics": None}, "without intrinsics"),
        ({"intrinsics": K[:2]}, r"intrinsics have shape \(2, 3\)"),
        ({"intrinsics": K * np.nan}, "intrinsics.*not finite"),
        ({"intrinsics": np.zeros((3, 3))}, "focal lengths above 0"),
        ({"intrinsics": K.T}, "intrinsics are"),
        ({"camera_from_world": None}, "without extrinsics"),
        ({"camera_from_world": FRONT[:3, :3]}, r"extrinsics have shape \(3, 3\)"),
        ({"camera_from_world": pose(r=0)}, "determinant 0, it is singular"),
        ({"camera_from_world": pose(r=np.diag([1, 1, -1]))}, "determinant -1, it is singular or a mirror"),
        ({"camera_from_world": pose(r=2 * np.eye(3))}, "stretches by 2"),
        ({"camera_from_world": FRONT.T}, "last row of the extrinsics"),
        ({"camera_from_world": pose(t=np.nan)}, "not finite"),
    ],
)  # fmt: skip
def test_what_cannot_be_lifted_is_refused(change, said):
    with pytest.raises(UserError, match=said) as e:
        lift(**LIFT | change)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"low": (5, 5, 5), "high": (6, 6, 6)}, r"no point lies within \(5, 5, 5\) to \(6, 6, 6\) m, they span"),
        ({"low": (1, 0, 0), "high": (0, 1, 1)}, "give low below high"),
        ({"low": (0, 0)}, "three numbers"),
        ({"views": []}, "at least one View"),
        ({"views": [View(MM * 0, "mm", K, FRONT)]}, "none of the 11200 points is known"),
        ({"views": [View(DEPTH * np.nan, "m", K, FRONT)]}, "none of the 11200 points is known"),
        ({"views": [View(MM, "mm", K, FRONT, np.zeros((H, W, 3)))]}, "picture of a depth map is float64"),
        ({"views": [View(MM, "mm", K, FRONT, np.zeros((H, 9, 3), "u1"))]}, r"picture of a depth map is uint8 \(80, 9, 3\)"),
        ({"views": [View(MM, "mm", K, FRONT), View(MM, "mm", K, FRONT, np.zeros((H, W, 3), "u1"))]}, "give rgb of all"),
        ({"n": 0}, "give a number from 1"),
    ],
)  # fmt: skip
def test_what_makes_no_cloud_is_refused(change, said):
    with pytest.raises(UserError, match=said):
        cloud(**{"views": [View(MM, "mm", K, FRONT)], "low": (-1, -1, -1), "high": (1, 1, 1), "n": 10} | change)


def test_points_that_are_not_finite_are_not_chosen_from():
    points = np.full((9, 3), np.nan)
    with pytest.raises(UserError, match="not finite: crop them first"):
        farthest(points, 3)
    with pytest.raises(UserError, match="count from 0"):
        farthest(np.zeros((9, 3)), 3, 9)


def test_depth_that_is_not_known_is_nan_and_far_planes_are_let_be():
    depth = np.array([[0.5, 0.0, np.nan, np.inf, 100.0, 0.7]])
    assert np.array_equal(metres(depth, "m"), [[0.5, np.nan, np.nan, np.nan, 100.0, 0.7]], equal_nan=True)
