"""`polyarm data check`: calibrations that are right pass, whatever cameras there are, and a wrong extrinsic is seen.

Mutations that turn it red: any of the measures left out of what is wrong, a plane of any slope, all of the table asked whether it is
looked through, a camera on the hand asked whether it looks past the tip, points of the table taken for the gripper.
"""

import numpy as np
import pytest

from polyarm.camera import from_row, to_row
from polyarm.cli import main
from polyarm.datasets.calibration import _plane, check, said
from polyarm.datasets.store import Store
from polyarm.spec import ActionSpace, ObsSpace, Spec, Stream, UserError
from tests.depth_world import looking, rendered

SIZE = 48, 64
K = np.array([[55.0, 0, 32], [0, 55.0, 24], [0, 0, 1]])
EYES = {"front": (0.9, 0.1, 0.7), "side": (-0.1, -0.8, 0.9)}
CUBE = np.array([[-0.05, 0.12, 0], [0.05, 0.2, 0.08]])
BAR = np.array([[-0.025, -0.025, -0.01], [0.025, 0.025, 0.3]])
"""The gripper, round its tip."""
T = 6


def depths(pose, tip, rng):
    found = [rendered(pose, K, SIZE, box) for box in (CUBE, BAR + tip)]
    depth = np.min([np.where(d > 0, d, 9) for d in found], 0)
    return np.rint(1000 * np.where(depth < 5, depth + rng.normal(0, 0.001, SIZE), 0)).astype(np.uint16)


def wrong(degrees=(0, 0, 0), shift=(0, 0, 0)):
    """A camera's row as it would be stored with an extrinsic turned about the camera's axes, and moved in the base frame."""
    (x, y, z) = np.radians(degrees)
    c, s = np.cos, np.sin
    turn = [[1, 0, 0], [0, c(x), -s(x)], [0, s(x), c(x)]] @ np.array([[c(y), 0, s(y)], [0, 1, 0], [-s(y), 0, c(y)]])
    turn = turn @ [[c(z), -s(z), 0], [s(z), c(z), 0], [0, 0, 1]]

    def change(row):
        pose = row[4:].reshape(3, 4).astype(float)
        return np.concatenate([row[:4], np.column_stack([pose[:, :3] @ turn, pose[:, 3] + shift]).ravel()]).astype("f4")

    return change


def written(path, cameras=("front",), said=lambda row: row, tip=True, frame="base"):
    """Three episodes of a gripper that comes down on the table. `said`: what is stored as the calibration of "front"."""
    rng, streams = np.random.default_rng(0), []
    for c in cameras:
        streams += [Stream(f"{c}_depth", "depth", SIZE), Stream(f"{c}_camera", "camera", (16,), frame=frame)]
    if tip:
        streams.append(Stream("tip", "state", (4,), ("x", "y", "z", "qw"), ("m", "m", "m", "1"), "base"))
    with Store.create(path, Spec(ObsSpace(tuple(streams), 10.0), ActionSpace(("x",), ("m",), "base", 10.0))) as store:
        for seed in range(3):
            tips = np.linspace(
                rng.uniform(-0.2, 0.1, 3) + [0, 0, 0.3], rng.uniform(-0.1, 0.1, 3) * [1, 1, 0] + [0, -0.1, 0.015], T
            )
            found = {"tip": np.column_stack([tips, np.ones(T)])} if tip else {}
            for c in cameras:
                poses = [
                    looking(EYES[c] if c in EYES else at + (0.09, 0, 0.12), (0, 0, 0.1) if c in EYES else at)
                    for at in tips
                ]
                found[f"{c}_depth"] = np.stack([depths(p, at, rng) for p, at in zip(poses, tips, strict=True)])
                rows = [to_row(K, p) for p in poses]
                found[f"{c}_camera"] = np.stack([said(r) if c == "front" else r for r in rows])
            store.append({**found, "action": rng.normal(size=(T, 1)), "time_s": np.arange(T) / 10}, seed)
    return path


@pytest.mark.parametrize(
    "cameras", [("front",), ("side",), ("front", "side"), ("wrist",), ("front", "wrist")], ids="-".join
)
def test_right_calibrations_pass(tmp_path, cameras):
    found = check(written(tmp_path / "s.zarr", cameras))
    assert found["wrong"] == [] and len(found["pairs"]) == len(cameras) * (len(cameras) - 1)
    for c in found["cameras"]:
        assert c["camera"] == "wrist" or (c["tilt_deg"] < 0.5 and abs(c["height_m"]) < 0.002 and c["past"] < 0.2)
        assert c["camera"] != "wrist" or c["past"] is None
    assert found["tip"]["off_mm"] < 30 and (found["tip"]["below_mm"] or 0) < 5
    assert all(p["off_mm"] < 8 and (p["through"] or 0) < 0.03 for p in found["pairs"])


TURNS = [tuple((g * np.eye(3, dtype=int)[axis]).tolist()) for axis in range(3) for g in (10, -10)]
SHIFTS = [tuple((g * np.eye(3)[axis]).tolist()) for axis in range(3) for g in (0.05, -0.05)]


@pytest.mark.parametrize("degrees", TURNS, ids=str)
def test_one_camera_that_is_turned_is_seen(tmp_path, degrees):
    """By the table; about the camera's x axis the table is tilted by as much."""
    said = wrong(degrees)
    found = check(written(tmp_path / "s.zarr", said=said))
    assert "the table that front sees is tilted by" in found["wrong"][0]
    if degrees[0]:
        assert found["cameras"][0]["tilt_deg"] == pytest.approx(10, abs=0.5)


@pytest.mark.parametrize("change", [*((t, (0, 0, 0)) for t in TURNS), *(((0, 0, 0), s) for s in SHIFTS)], ids=str)
def test_one_of_two_cameras_that_is_off_is_seen_by_the_other(tmp_path, change):
    found = check(written(tmp_path / "s.zarr", ("front", "side"), wrong(*change), tip=False))
    assert any("looks through" in w and "front" in w and "side" in w for w in found["wrong"]), found
    assert found["tip"] is None and found["cameras"][0]["past"] is None


@pytest.mark.parametrize(
    ("shift", "said"),
    [
        ((0, 0, 0.05), "tip goes .* mm below the table"),
        ((0, 0.12, 0), "front looks past the place of the arm's tip at"),
        ((0.12, 0, 0), "nothing is seen within .* mm of the arm's tip"),
    ],
)
def test_one_camera_that_is_moved_is_seen_by_the_tip(tmp_path, shift, said):
    import re

    found = check(written(tmp_path / "s.zarr", said=wrong(shift=shift)))
    assert any(re.search(said, w) for w in found["wrong"]), found


def test_how_high_the_table_stands_is_shown_where_one_camera_cannot_judge_it(tmp_path):
    """Mutation: the table's height in the camera's frame, or left out of what is said."""
    found = check(written(tmp_path / "s.zarr", said=wrong(shift=(0, 0, -0.05))))
    assert found["cameras"][0]["height_m"] == pytest.approx(-0.05, abs=0.003)
    assert "at z = -0.05" in said(found)


def test_a_wall_is_no_table():
    rng = np.random.default_rng(0)
    wall = rng.uniform(-1, 1, (700, 3)) @ [[1, 0, 0], [0, 0, 0], [0, 0.2, 1]] + [0, 1, 1]
    table = rng.uniform(-1, 1, (300, 3)) * [1, 1, 0]
    plane = _plane(np.concatenate([wall, table]))
    assert plane.normal == pytest.approx([0, 0, 1], abs=0.01) and plane.offset == pytest.approx(0, abs=0.005)
    assert _plane(wall) is None and _plane(table[:40]) is None


def test_intrinsics_of_larger_pictures_are_seen(tmp_path):
    large = lambda row: np.concatenate([row[:4] * 5, row[4:]])
    found = check(written(tmp_path / "s.zarr", said=large))
    assert "the principal point of front, (160, 120), lies outside its picture, 64 x 48" in found["wrong"][0]
    assert from_row(large(to_row(K, looking((1, 0, 1), (0, 0, 0)))))[0][0, 2] == 160


def test_a_tip_in_another_frame_is_no_tip(tmp_path):
    assert check(written(tmp_path / "s.zarr", frame="world"))["tip"] is None


def test_the_command_prints_figures_and_fails_with_a_sentence(tmp_path, capsys):
    assert main(["data", "check", str(written(tmp_path / "right.zarr"))]) == 0
    assert "the table is tilted by 0." in "".join(capsys.readouterr())
    assert main(["data", "check", str(written(tmp_path / "wrong.zarr", said=wrong((10, 0, 0))))]) != 0
    err = capsys.readouterr().err.splitlines()
    assert "tilted by 10.0 degrees against the robot's base: calibrate its extrinsic again" in err[-1]
    assert "polyarm data show" in err[-1] and any(line.startswith("front: depth in") for line in err)


def test_what_cannot_be_checked_is_a_sentence(tmp_path):
    action = ActionSpace(("x",), ("m",), "base", 10.0)
    depth = (Stream("front_depth", "depth", SIZE),)
    Store.create(tmp_path / "a.zarr", Spec(ObsSpace(depth, 10.0), action)).close()
    with pytest.raises(UserError, match="holds front_depth, no depth with its calibration: record"):
        check(tmp_path / "a.zarr")
    both = (*depth, Stream("front_camera", "camera", (16,), frame="base"))
    Store.create(tmp_path / "b.zarr", Spec(ObsSpace(both, 10.0), action)).close()
    with pytest.raises(UserError, match="no episode to look at"):
        check(tmp_path / "b.zarr")
