"""Relative actions: what is learnt, scaled and executed; nothing changes where they are off.

Mutations that turn it red: the oldest observation for the base, another row's base, the base added before the scale is undone,
a scale fitted on absolute rows, past actions left absolute.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polyarm.config import compose
from polyarm.datasets.relative import RelativeRows
from polyarm.datasets.scale import fit_spec
from polyarm.datasets.windows import Windows
from polyarm.policies.generate.angle import linear_flow
from polyarm.policies.generate.sample import Sampler, euler
from polyarm.policies.mixture import Mixture
from polyarm.policies.policy import Plain, clip_loss, plan
from polyarm.relative import base, choose
from polyarm.spec import ActionSpace, Clip, ObsSpace, Scale, Spec, Stream, UserError

ONE = Scale.identity
OBS = ObsSpace(
    (
        Stream("cube", "state", (1,), ("x",), ("m",), scale=ONE(1)),
        Stream("joint_pos", "state", (3,), ("elbow", "shoulder", "wrist"), ("rad",) * 3, scale=ONE(3)),
        Stream("front", "image", (4, 4, 3)),
    ),
    10.0,
)
ACTION = ActionSpace(("shoulder", "elbow", "grip"), ("rad", "rad", "m"), "joint", 10.0)
WHERE = ("joint_pos.shoulder", "joint_pos.elbow", "")
generator = lambda: torch.Generator().manual_seed(0)


def test_a_stream_stands_for_its_channels_of_the_same_name():
    """Names, not places; what the stream lacks stays absolute."""
    assert choose(None, ACTION, OBS) is None
    assert choose("joint_pos", ACTION, OBS) == WHERE
    assert choose({"grip": "cube.x"}, ACTION, OBS) == ("", "", "cube.x")
    newest = {"joint_pos": np.array([[1.0, 2.0, 3.0]]), "cube": np.array([[9.0]])}
    assert base(replace(ACTION, relative=WHERE), OBS, newest).tolist() == [[2.0, 1.0, 0.0]]
    assert base(ACTION, OBS, newest) is None


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("joints", "unknown observation stream 'joints': did you mean 'joint_pos'"),
        ("front", "names no channel of the action, which are shoulder, elbow, grip"),
        ({}, "names no channel of the action"),
        ({"should": "joint_pos.shoulder"}, "unknown action channel 'should': did you mean 'shoulder'"),
        ({"shoulder": "joint_pos.should"}, "unknown channel of stream 'joint_pos' 'should': did you mean 'shoulder'"),
        ({"shoulder": ""}, "'shoulder' relative to nothing"),
        ({"grip": "joint_pos.wrist"}, "'grip' is in m, joint_pos.wrist in rad: name a channel of the same unit"),
    ],
)
def test_what_cannot_be_a_base_is_refused(setting, message):
    with pytest.raises(UserError, match=message):
        choose(setting, ACTION, OBS)


def test_a_rotation_is_no_difference():
    turned = replace(ACTION, rotation="rotvec", rotations=(0,))
    with pytest.raises(
        UserError, match="'shoulder' is part of a rotation, which no difference describes: leave it out"
    ):
        choose("joint_pos", turned, OBS)


class Demos:
    """Two episodes of random walks."""

    def __init__(self, lengths=(11, 4), seed=0):
        rng = np.random.default_rng(seed)
        self.spec = Spec(OBS.pick(("cube", "joint_pos")), ACTION)
        self.episode_ends = np.cumsum(lengths)
        n = sum(lengths)
        self.rows = {
            "cube": rng.normal(size=(n, 1)).astype(np.float32),
            "joint_pos": rng.normal(size=(n, 3)).cumsum(0).astype(np.float32),
            "action": rng.normal(size=(n, 3)).cumsum(0).astype(np.float32),
        }

    def stream(self, name):
        return self.rows[name]


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4), n_obs_steps=st.integers(1, 3), more=st.integers(0, 6)
)
def test_the_scale_is_fitted_on_what_training_learns(lengths, n_obs_steps, more):
    """The rows are those of the training windows less their bases, to the bit and in order; limits reach exactly -1 and 1."""
    demos, horizon = Demos(lengths), n_obs_steps + more
    spec = replace(demos.spec, action=replace(ACTION, relative=WHERE))
    episodes = range(0, len(lengths), 2)
    rows = RelativeRows(demos, spec, episodes, horizon=horizon, n_obs_steps=n_obs_steps)
    windows = Windows(
        demos, spec, list(episodes), horizon=horizon, n_obs_steps=n_obs_steps, n_action_steps=1, pad_after=horizon - n_obs_steps
    )  # fmt: skip
    clip = windows.__getitems__(np.arange(len(windows)))
    newest = {name: x[:, 0, -1] for name, x in clip.obs.items()}
    want = clip.action[:, 0] - base(spec.action, spec.obs, newest)[:, None]
    np.testing.assert_array_equal(rows[:], want.reshape(-1, 3).numpy())
    np.testing.assert_array_equal(np.concatenate([rows[i : i + 7] for i in range(0, len(rows), 7)]), rows[:])
    if lengths[0] > 1:
        fitted = fit_spec(demos, spec, "limits", "limits", episodes, "centre", actions=rows).action.scale
        scaled = fitted.do(rows[:].astype(np.float64))
        np.testing.assert_allclose([scaled.min(0), scaled.max(0)], [[-1] * 3, [1] * 3], atol=1e-5)


class Perfect(Plain):
    """Knows the scaled chunk it is to answer; keeps what it was trained on and what it was shown."""

    name, n_obs_steps, n_action_steps = "perfect", 2, 2
    sampler = Sampler(euler, linear_flow(1), None)

    def __init__(self, space, answer=None):
        self.obs_space, self.action_space, self.answer = OBS.pick(("cube", "joint_pos")), space, answer
        self.learnt, self.shown = [], []

    def start(self, b):
        return ()

    def encode(self, obs, state, generator=None):
        self.shown.append(obs)
        return (), ()

    def denoise(self, x, phi, cond):
        return self.answer

    def loss(self, action, cond, generator):
        self.learnt.append(action)
        return action.sum()


def a_clip(b=3, k=2, h=4):
    draw = generator()
    obs = {"cube": torch.randn(b, k, 2, 1, generator=draw), "joint_pos": torch.randn(b, k, 2, 3, generator=draw)}
    return Clip(obs, torch.randn(b, k, h, 3, generator=draw), torch.zeros(b, k, dtype=torch.bool))


SPACE = replace(ACTION, horizon=4, scale=Scale((2.0, 0.5, 4.0), (0.1, -0.2, 0.3)))


def test_what_was_learnt_is_executed_as_it_was_shown():
    """A policy that answers with what it learnt gives the demonstrated chunk back, in every window its own base."""
    clip, policy = a_clip(), Perfect(replace(SPACE, relative=WHERE))
    clip_loss(policy, clip, generator())
    for k, learnt in enumerate(policy.learnt):
        newest = clip.obs["joint_pos"][:, k, -1]
        torch.testing.assert_close(learnt[..., 0], 2 * (clip.action[:, k, :, 0] - newest[:, None, 1]) + 0.1)
        torch.testing.assert_close(learnt[..., 2], 4 * clip.action[:, k, :, 2] + 0.3)
        policy.answer = learnt
        obs = {name: x[:, k] for name, x in clip.obs.items()}
        torch.testing.assert_close(plan(policy, obs, (), generator()).action, clip.action[:, k], atol=1e-6, rtol=1e-6)


def test_past_actions_are_shown_as_what_is_learnt():
    """Less the same base, so that scaled they are rows of the chunk; NaN stays NaN."""
    clip, policy = a_clip(k=1), Perfect(replace(SPACE, relative=WHERE), torch.zeros(3, 4, 3))
    obs = {name: x[:, 0] for name, x in clip.obs.items()} | {"action": clip.action[:, 0, :1].clone()}
    obs["action"][0] = torch.nan
    before = obs["action"].clone()
    plan(policy, obs, (), generator())
    want = before - base(policy.action_space, policy.obs_space, {n: x[:, -1] for n, x in obs.items()})[:, None]
    torch.testing.assert_close(policy.shown[0]["action"], want, equal_nan=True)
    torch.testing.assert_close(obs["action"], before, equal_nan=True)


def test_where_it_is_off_nothing_changes():
    """Scaled once, unscaled once, to the bit."""
    clip, policy = a_clip(), Perfect(SPACE)
    clip_loss(policy, clip, generator())
    assert all(torch.equal(x, SPACE.scale.do(clip.action[:, k])) for k, x in enumerate(policy.learnt))
    policy.answer = policy.learnt[0]
    obs = {name: x[:, 0] for name, x in clip.obs.items()}
    assert torch.equal(plan(policy, obs, (), generator()).action, SPACE.scale.undo(policy.learnt[0]))
    assert policy.shown[-1] is obs


def test_a_mixture_of_relative_and_absolute_is_refused():
    relative, absolute = Perfect(replace(SPACE, relative=WHERE)), Perfect(SPACE)
    message = (
        "'shoulder' is relative to joint_pos.shoulder in policy perfect, as it is in policy perfect: train both with"
    )
    with pytest.raises(UserError, match=message):
        Mixture([relative, absolute], [0.5, 0.5])
    clip = a_clip(k=1)
    relative.answer = torch.zeros(3, 4, 3)
    obs = {name: x[:, 0] for name, x in clip.obs.items()}
    mixed = plan(Mixture([relative, relative], [0.5, 0.5]), obs, (), generator()).action
    torch.testing.assert_close(mixed, plan(relative, obs, (), generator()).action)


def test_the_checkpoint_remembers_it_and_the_command_line_takes_it():
    spec = Spec(OBS, replace(SPACE, relative=WHERE))
    assert Spec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    assert compose(["task.action_relative=joint_pos"]).task.action_relative == "joint_pos"
    chosen = compose(["task.action_relative={gripper: joint_pos.gripper}"]).task.action_relative
    assert dict(chosen) == {"gripper": "joint_pos.gripper"}
