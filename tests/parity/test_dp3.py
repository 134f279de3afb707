"""DP3 and Simple DP3 against the published sizes and schedule (Ze et al. 2024, section 4 of the published reference).

Mutations that turn it red: a layer without norm; a norm behind the bare layer; a ReLU behind a state's last layer; colours by
default; two blocks a level in Simple DP3; another spacing; actions clipped and their noise with them.
"""

import pytest
import torch
from diffusers import DDIMScheduler

from polyarm.config import build, compose
from polyarm.spec import ActionSpace, ObsSpace, Scale, Spec, Stream
from polyarm.streams import points
from tests.from_yaml import ColourPointNet, PointNet


def count(module):
    return sum(p.numel() for p in module.parameters())


def cloud(colours=False):
    return Stream(
        "cloud",
        "points",
        (512, 6 if colours else 3),
        points("cloud", 1, colours).names,
        scale=Scale.identity(6 if colours else 3),
    )


def named(prefix, n):
    return tuple(f"{prefix}{i}" for i in range(n))


SPEC = Spec(
    ObsSpace((cloud(), Stream("joints", "state", (24,), named("q", 24), scale=Scale.identity(24))), 10.0),
    ActionSpace(named("a", 26), named("rad", 26), "joint", 10.0, scale=Scale.identity(26)),
)


def built(*words):
    with torch.device("meta"):
        return build(compose(["policy=dp3", "encoder=points", *words]).policy, SPEC)


def test_the_encoders_have_the_published_parameters():
    assert count(PointNet(cloud())) == count(PointNet(cloud(True))) == 59_072
    assert count(ColourPointNet(cloud(True))) == 207_232
    encoder = built("body=mlp").encoder
    assert [count(e) for e in encoder.encoders] == [59_072, 5_760] and encoder.width == 128


@pytest.mark.parametrize(("body", "parameters"), [("unet_large", 255_153_306), ("unet_simple", 7_394_970)])
def test_the_bodies_have_the_published_parameters(body, parameters):
    """255.15 M and 7.39 M at 26 actions."""
    assert count(built(f"body={body}").body) == parameters


def test_ten_steps_are_those_of_ddim():
    """Timesteps 90, 80, ..., 0 with their alpha bars, and a chunk step by step as diffusers makes it of the same answers."""
    policy = build(compose(["policy=dp3", "encoder=points", "body=mlp"]).policy, SPEC)
    printed = [0.019544, 0.085146, 0.190727, 0.326115, 0.478265, 0.632516, 0.774006, 0.889103, 0.966717, 0.999369]
    angles = policy.sampler.angles
    assert angles[:-1].cos().square().tolist() == pytest.approx(printed, abs=1e-6) and angles[-1] == 0
    scheduler = DDIMScheduler(
        100, beta_schedule="squaredcos_cap_v2", clip_sample=True, set_alpha_to_one=True, prediction_type="sample"
    )
    scheduler.set_timesteps(10)
    assert scheduler.timesteps.tolist() == list(range(90, -1, -10))
    x = start = torch.randn(2, 16, 26, generator=torch.Generator().manual_seed(0))
    answer = lambda x: 1.5 * x.tanh().flip(1)  # beyond 1 at times
    for t in scheduler.timesteps:
        x = scheduler.step(answer(x), t, x).prev_sample
    got = policy.sampler(lambda x, phi, cond: answer(x), start, None, torch.Generator())
    torch.testing.assert_close(got, x, atol=2e-5, rtol=1e-4)


def test_the_recipe_is_the_published_one():
    config = compose(["experiment=dp3"])
    policy, train = config.policy, config.train
    assert (policy.horizon, policy.n_obs_steps, policy.n_action_steps, policy.form.predict) == (16, 2, 8, "actions")
    assert (train.lr, list(train.betas), train.weight_decay, train.warmup_steps) == (1e-4, [0.95, 0.999], 1e-6, 500)
    assert (train.batch_size, train.ema_power, train.ema_decay) == (128, 0.75, 0.9999)
    assert config.task.obs_scale == config.task.action_scale == "limits"
    assert policy.encoder.points.colours is False and list(policy.body.down_dims) == [512, 1024, 2048]
