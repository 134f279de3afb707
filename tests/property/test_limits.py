"""Actions are clipped only where that cuts nothing the demonstrations hold, whatever setting led there.

Mutations that turn this red: the check asks the setting task.action_scale; it forgets a solver that clips by itself, or one
that a policy wrapped; checkpoints are loaded without it; `reach` is of the rows before they are scaled.
"""

import json
from dataclasses import replace

import numpy as np
import pytest

from polyarm.config import build, compose, override
from polyarm.datasets.scale import fit
from polyarm.policies import checkpoint
from polyarm.policies.policy import require_limit
from polyarm.spec import Scale, Spec, UserError
from tests.property.test_mixture import ACTION, OBS

ROWS = np.random.default_rng(0).normal(size=(200, 2)).astype("f4")


def made(kind, *words, rows=ROWS):
    action = replace(ACTION, scale=fit(kind, rows, ACTION.names, "the action"))
    config = compose(["policy=diffusion", "policy.body.width=16", "policy.body.blocks=1", *words])
    return build(config.policy, Spec(OBS, action)), config


@pytest.mark.parametrize(
    ("kind", "words", "cut"),
    [
        ("limits", [], False),
        ("limits", ["sampler=ddim_released"], False),
        ("limits", ["policy.sampler.limit=0.5"], True),
        ("gaussian", [], True),
        ("gaussian", ["sampler=heun"], True),
        ("gaussian", ["sampler=ddim_released"], True),  # no limit, but a solver that clips
        ("gaussian", ["policy.sampler.limit=null"], False),
        ("gaussian", ["policy.sampler.limit=9.0"], False),  # beyond all that was demonstrated
        ("identity", [], True),
        ("identity", ["policy.sampler.limit=null"], False),
    ],
)
def test_a_limit_inside_what_was_demonstrated_is_refused(kind, words, cut):
    policy, _ = made(kind, *words)
    if not cut:
        return require_limit(policy)
    with pytest.raises(UserError, match=r"clips scaled actions at .*reach .*policy\.sampler\.limit=null"):
        require_limit(policy)


def test_numbers_that_are_small_as_they_are_may_be_clipped():
    require_limit(made("identity", rows=ROWS / 10)[0])


def test_a_wrapped_solver_that_clips_is_seen():
    """BESO starts its solver with past actions; what it wraps still clips."""
    words = ["policy=beso", "policy.horizon=2", "policy.n_action_steps=1", "sampler=sigma"]
    policy, _ = made("gaussian", *words, "policy.sampler.limit=null")
    require_limit(policy)
    released = compose(["policy=diffusion", "sampler=ddim_released"]).policy.sampler.solver._target_
    policy, _ = made("gaussian", *words, "policy.sampler.limit=null", f"policy.sampler.solver._target_={released}")
    assert policy.past_rows and policy.sampler.bound == 1
    with pytest.raises(UserError, match="clips scaled actions at 1"):
        require_limit(policy)


def test_a_checkpoint_is_held_to_it_under_any_setting(tmp_path):
    policy, config = made("gaussian", "policy.sampler.limit=null")
    spec = Spec(OBS, policy.action_space)
    checkpoint.save(tmp_path / "c", config, spec, policy.state_dict())
    assert checkpoint.load(tmp_path / "c").sampler.bound is None
    for word in ("sampler=heun", "sampler=ddim_released", "policy.sampler.limit=1.0"):
        with pytest.raises(UserError, match="clips scaled actions at 1"):
            checkpoint.load(tmp_path / "c", override(config, [word]))


def test_reach_is_saved_and_older_scales_stay_what_they_were(tmp_path):
    scale = made("gaussian", "policy.sampler.limit=null")[0].action_space.scale
    assert scale.reach == pytest.approx(np.abs(scale.do(ROWS)).max(), rel=1e-5)
    spec = Spec(OBS, replace(ACTION, scale=scale))
    saved = json.loads(json.dumps(spec.to_json()))
    assert Spec.from_json(saved).action.scale.reach == scale.reach
    del saved["action"]["scale"]["reach"]  # as it was before
    old = Spec.from_json(saved)
    assert old.action.scale == scale and old.action.scale.reach is None
    assert old.action.scale.hash == scale.hash == Scale(scale.gain, scale.offset).hash
    assert json.loads(json.dumps(old.to_json()))["action"]["scale"] == saved["action"]["scale"]
