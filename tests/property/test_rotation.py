"""Rotations: both published 6D conventions, round trips everywhere, and actions that are learnt in another layout."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from polyarm.datasets.rotated import Rotated
from polyarm.datasets.scale import check, fit_spec
from polyarm.eval.rollout import require_world, rollout
from polyarm.policies.generate.angle import linear_flow
from polyarm.policies.generate.sample import Sampler, euler
from polyarm.policies.policy import Plain
from polyarm.rotation import CHANNELS, convert, rows_as, space_as
from polyarm.spec import ActionSpace, ObsSpace, Scale, Spec, Stream, UserError, require_actions

quick = settings(max_examples=200, deadline=None)
PART = st.floats(-1, 1, width=64)
AXES = st.tuples(PART, PART, PART).filter(lambda v: np.linalg.norm(v) > 0.1)
ANGLES = st.one_of(
    st.floats(0, np.pi), st.floats(0, 0.02), st.floats(np.pi - 1e-3, np.pi), st.sampled_from([0.0, 1e-9])
)
NAMES = ("x", "y", "z", "rx", "ry", "rz", "grip")
POSE = ActionSpace(NAMES, ("m",) * 3 + ("rad",) * 3 + ("1",), "base", 20.0, rotation="rotvec", rotations=(3,))


def turned(axis, angle):
    return np.asarray(axis) / np.linalg.norm(axis) * angle


def test_the_published_numbers():
    """Diffusion Policy: a quarter turn about z is [0, -1, 0, 1, 0, 0], rows. 3D Diffuser Actor: 45 degrees are
    [.7071, .7071, 0, -.7071, .7071, 0], columns. Mutations: the conventions exchanged, entries interleaved."""
    rows = convert(np.array([0, 0, np.pi / 2]), "rotvec", "rot6d_rows")
    np.testing.assert_allclose(rows, [0, -1, 0, 1, 0, 0], atol=1e-12)
    columns = convert(np.array([0, 0, np.pi / 4]), "rotvec", "rot6d_columns")
    np.testing.assert_allclose(columns, [0.70710678, 0.70710678, 0, -0.70710678, 0.70710678, 0], atol=1e-8)
    back = convert(np.array([0, 0, -np.pi / 4]), "rotvec", "rot6d_rows")
    np.testing.assert_allclose(back, columns, atol=1e-12)


@quick
@given(axis=AXES, angle=ANGLES)
def test_every_layout_is_scipys(axis, angle):
    """Mutations: xyzw for wxyz, the matrix transposed, degrees; a series for a quotient with a wrong term."""
    v = turned(axis, angle)
    oracle = Rotation.from_rotvec(v)
    matrix = oracle.as_matrix()
    np.testing.assert_allclose(convert(v, "rotvec", "matrix"), matrix, atol=1e-12)
    if angle < np.pi - 1e-6:  # beyond, either sign is right
        quat = oracle.as_quat(canonical=True, scalar_first=True)
        np.testing.assert_allclose(convert(matrix, "matrix", "quat_wxyz"), quat, atol=1e-9)
    for layout in CHANNELS:
        np.testing.assert_allclose(convert(convert(matrix, "matrix", layout), layout, "matrix"), matrix, atol=1e-9)


@quick
@given(axis=AXES, angle=ANGLES)
def test_a_rotation_vector_comes_back(axis, angle):
    """Near 0 and near pi as well, where the axis may turn around. Mutations: acos of the real part, the series left out."""
    v = turned(axis, angle)
    for layout in CHANNELS:
        again = convert(convert(v, "rotvec", layout), layout, "rotvec")
        near = v if angle < np.pi - 1e-6 or again @ v > 0 else -v
        np.testing.assert_allclose(again, near, atol=3e-7 if angle > 3 else 1e-9)


@quick
@given(axis=AXES, angle=ANGLES, many=st.integers(1, 3))
def test_torch_and_numpy_agree_and_gradients_are_finite(axis, angle, many):
    """At 0 too. Mutation: a plain norm, whose gradient at 0 is no number."""
    v = np.stack([turned(axis, angle)] * many)
    x = torch.tensor(v, requires_grad=True)
    for layout in CHANNELS:
        there = convert(x, "rotvec", layout)
        np.testing.assert_allclose(there.detach().numpy(), convert(v, "rotvec", layout), atol=1e-12)
        back = convert(there, layout, "rotvec")
        (gradient,) = torch.autograd.grad(back.sum() + there.sum(), x, retain_graph=True)
        assert angle > 3 or torch.isfinite(gradient).all()
    single = convert(convert(x.detach().float(), "rotvec", "rot6d_rows"), "rot6d_rows", "matrix")
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single.numpy(), convert(v, "rotvec", "matrix"), atol=1e-6)


@quick
@given(numbers=st.lists(PART, min_size=6, max_size=6))
def test_any_six_numbers_are_a_rotation(numbers):
    """Gram-Schmidt: orthonormal, right-handed, the first vector kept in direction. Mutations: no projection, z = y x x."""
    x = np.array(numbers)
    if np.linalg.norm(np.cross(x[:3], x[3:])) < 1e-3:
        return
    m = convert(x, "rot6d_columns", "matrix")
    np.testing.assert_allclose(m.T @ m, np.eye(3), atol=1e-9)
    assert np.linalg.det(m) == pytest.approx(1)
    np.testing.assert_allclose(m[:, 0], x[:3] / np.linalg.norm(x[:3]), atol=1e-9)
    assert m[:, 1] @ x[3:] > 0
    np.testing.assert_allclose(convert(x, "rot6d_rows", "matrix"), m.T)


def test_a_row_of_two_arms_is_turned_in_place_and_back():
    """Mutations: the second rotation read after the first one has grown, names that two arms share."""
    names = tuple(f"{arm}_{n}" for arm in "lr" for n in NAMES)
    space = replace(POSE, names=names, units=POSE.units * 2, rotations=(3, 10))
    rows = np.random.default_rng(0).normal(size=(4, 2, 14))
    six = space_as(space, "rot6d_rows")
    assert six.width == 20 and six.rotations == (3, 13) and len(set(six.names)) == 20 and len(six.units) == 20
    there = rows_as(rows, space, "rot6d_rows")
    np.testing.assert_allclose(there[..., [0, 1, 2, 9, 10, 11, 12, 19]], rows[..., [0, 1, 2, 6, 7, 8, 9, 13]])
    np.testing.assert_allclose(there[..., 13:19], convert(rows[..., 10:13], "rotvec", "rot6d_rows"))
    np.testing.assert_allclose(rows_as(there, six, "rotvec"), rows, atol=1e-12)
    assert space_as(space, None) is space and rows_as(rows, space, None) is rows


def test_nothing_that_was_fitted_in_another_layout_stays():
    """A scale has one gain a channel, and channels of another layout have other ranges. Mutations: the scale kept, also where
    both layouts are as wide; what is relative kept by the old channels' places."""
    fitted = replace(
        POSE, scale=Scale(tuple(map(float, range(1, 8))), (0.0,) * 7), relative=("t.x", "", "", "", "", "", "t.g")
    )
    six = space_as(fitted, "rot6d_rows")
    assert six.scale is None and six.relative == ("t.x", *[""] * 8, "t.g") and len(six.relative) == six.width
    columns = space_as(replace(six, scale=Scale.identity(10)), "rot6d_columns")
    assert columns.scale is None and columns.relative == six.relative
    for same in (None, "none", POSE.rotation):  # as it is, scale and all
        assert space_as(fitted, same) is fitted
    demos = Poses()
    demos.spec = Spec(demos.spec.obs, fitted)
    seen = Rotated(demos, "rot6d_rows")
    with pytest.raises(UserError, match="the action has no scale"):
        check(seen.spec)
    assert fit_spec(seen, seen.spec, "limits", "limits", [0, 1]).action.scale.gain[0] != 1.0
    assert Rotated(demos, POSE.rotation).spec.action.scale == fitted.scale


def test_what_has_no_rotation_is_not_turned():
    flat = replace(POSE, rotation="none", rotations=())
    with pytest.raises(UserError, match="layout is 'none' at channels .* task.action_rotation=null"):
        space_as(flat, "rot6d_rows")
    with pytest.raises(UserError, match="unknown rotation layout 'rot6d': did you mean 'rot6d_rows'"):
        space_as(POSE, "rot6d")
    with pytest.raises(UserError, match="has rotation rot6d_columns in a, rot6d_rows in b"):
        columns, rows = space_as(POSE, "rot6d_columns"), space_as(POSE, "rot6d_rows")
        require_actions(columns, replace(rows, names=columns.names), "a", "b")


class Poses:
    """Two episodes of poses that turn, close to half a turn, about a tilted axis."""

    def __init__(self):
        self.spec = Spec(ObsSpace((), 20.0), POSE)
        self.episode_ends = np.array([5, 9])
        axis = turned((1, 2, 3), 1.0)
        self.rows = np.zeros((9, 7), np.float32)
        self.rows[:, :3] = np.random.default_rng(0).uniform(-1, 1, (9, 3))
        self.rows[:, 3:6] = np.linspace(2.9, 3.1, 9)[:, None] * axis
        self.rows[:, 6] = np.arange(9) % 2

    def stream(self, name):
        return self.rows


def test_demonstrations_are_read_in_the_layout_and_scaled_as_published():
    """Section 2 of Diffusion Policy's reference: limits on positions, identity on rotations. Mutations: limits on all,
    rotations fitted and found constant."""
    demos = Rotated(Poses(), "rot6d_rows")
    assert demos.spec.action.rotation == "rot6d_rows" and demos.spec.action.width == 10
    rows = demos.stream("action")
    assert rows.dtype == np.float32 and rows.shape == (9, 10)
    np.testing.assert_allclose(rows_as(rows, demos.spec.action, "rotvec"), Poses().rows, atol=2e-6)
    scale = fit_spec(demos, demos.spec, "limits", "limits", [0, 1]).action.scale
    assert scale.gain[3:9] == (1.0,) * 6 and scale.offset[3:9] == (0.0,) * 6
    np.testing.assert_allclose(scale.do(rows)[:, [0, 1, 2, 9]].min(0), -1, atol=1e-6)
    np.testing.assert_allclose(scale.do(rows)[:, [0, 1, 2, 9]].max(0), 1, atol=1e-6)


class Pose(Plain):
    """Answers with a 6D action whatever it sees."""

    name, n_obs_steps, n_action_steps = "pose", 1, 1
    sampler = Sampler(euler, linear_flow(1), None)

    def __init__(self, row):
        self.row = torch.from_numpy(row)
        self.obs_space = ObsSpace((Stream("t", "state", (1,), ("t",), ("1",), scale=Scale.identity(1)),), 20.0)
        self.action_space = replace(space_as(POSE, "rot6d_columns"), scale=Scale.identity(10))

    def start(self, b):
        return ()

    def encode(self, obs, state, generator=None):
        return (), ()

    def denoise(self, x, phi, cond):
        return self.row.expand_as(x)


class PoseWorld:
    """Takes rotation vectors and keeps them; one step an episode."""

    num_envs, look = 1, True

    def __init__(self):
        obs = ObsSpace((Stream("t", "state", (1,), ("t",), ("1",)),), 20.0)
        self.world_spec, self.taken = Spec(obs, POSE), []

    def reset(self, seed, options):
        return {"t": np.zeros((1, 1), np.float32)}, {}

    def step(self, actions):
        self.taken.append(actions)
        yes = np.array([True])
        return {"t": np.zeros((1, 1), np.float32)}, np.ones(1), yes, yes, {"is_success": yes}


def test_a_world_gets_its_own_layout():
    """What was demonstrated as a rotation vector and learnt as 6D reaches the world as a rotation vector, and is recorded
    so. Mutations: no way back, the other 6D convention."""
    row = Poses().rows[3]
    policy, world = Pose(rows_as(row, POSE, "rot6d_columns")), PoseWorld()
    played = rollout(policy, world, [0])
    np.testing.assert_allclose(world.taken[0], row[None], atol=2e-6)
    np.testing.assert_allclose(played[0].actions, row[None], atol=2e-6)
    world.world_spec = Spec(world.world_spec.obs, replace(POSE, rotation="none", rotations=()))
    with pytest.raises(UserError, match="layout is 'none'"):
        require_world(policy, world)


def test_the_checkpoint_remembers_where_the_rotations_are():
    spec = Spec(ObsSpace((), 20.0), space_as(POSE, "rot6d_rows"))
    assert Spec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
