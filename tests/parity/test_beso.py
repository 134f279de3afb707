"""BESO's network and its sampling with executed actions, against plain code written from the published reference."""

import math
from functools import partial

import pytest
import torch
from torch.nn.functional import gelu, layer_norm

from polyarm.encoders.fuse import Fuse
from polyarm.encoders.state import State
from polyarm.policies.generate.angle import exponential, linear_sigma
from polyarm.policies.generate.forms import Karras, LogLogistic
from polyarm.policies.generate.sample import Sampler, euler
from polyarm.policies.policy import chunk
from polyarm.spec import ActionSpace, ObsSpace, Scale, Stream, UserError
from tests.from_yaml import BesoPolicy, DiffusionGpt

KITCHEN = {"cond_dim": 30, "action_dim": 9, "goals": 2, "horizon": 4, "n_obs_steps": 6}
KITCHEN_SIZE = {"width": 360, "layers": 6, "heads": 6, "p_drop_attn": 0.3, "p_drop_resid": 0.0}
PUSH = {"cond_dim": 10, "action_dim": 2, "goals": 1, "horizon": 5, "n_obs_steps": 6}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    return DiffusionGpt(**KITCHEN, width=24, layers=2, heads=3).double().eval()


@pytest.mark.parametrize(
    ("net", "parameters", "tokens", "place"),
    [
        (partial(DiffusionGpt, **KITCHEN, **KITCHEN_SIZE), 9_381_249, 11, (1, 7, 360)),
        (partial(DiffusionGpt, **PUSH), 2_783_762, 12, (1, 7, 240)),
    ],
)
def test_sizes_are_the_published_ones(net, parameters, tokens, place):
    """BESO, section 11.1, and weights N(0, 0.02), biases 0 (section 3)."""
    net = net()
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert net.before.shape == (tokens, tokens) and net.place.shape == place
    for module in net.modules():
        if isinstance(module, torch.nn.Linear):
            assert not module.bias.any()
            assert module.weight.std().item() == pytest.approx(0.02, rel=5 / math.sqrt(module.weight.numel()))


def reference(net, x, clock, goals, states):
    """Section 3 token by token, head by head."""
    w = dict(net.named_parameters())
    linear = lambda name, y: y @ w[f"{name}.weight"].T + w[f"{name}.bias"]
    norm = lambda name, y: layer_norm(y, y.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])
    tokens = [linear("clock", clock[:, None] / 100)]
    tokens += [linear("seen", goals[:, i]) + w["place"][0, i] for i in range(goals.shape[1])]
    at = []
    for t in range(x.shape[1]):
        place = w["place"][0, goals.shape[1] + t]
        if t < states.shape[1]:
            tokens.append(linear("seen", states[:, t]) + place)
        at.append(len(tokens))
        tokens.append(linear("rows", x[:, t]) + place)
    y = torch.stack(tokens, 1)
    for i, block in enumerate(net.blocks):
        q, k, v = linear(f"blocks.{i}.attend.qkv", norm(f"blocks.{i}.norm", y)).chunk(3, -1)
        heads = []
        for one in range(block.attend.heads):
            width = q.shape[-1] // block.attend.heads
            mine = slice(one * width, (one + 1) * width)
            logits = q[..., mine] @ k[..., mine].transpose(1, 2) / math.sqrt(width)
            later = torch.ones(logits.shape[1:], dtype=torch.bool).triu(1)
            heads.append(logits.masked_fill(later, -math.inf).softmax(-1) @ v[..., mine])
        y = y + linear(f"blocks.{i}.attend.out", torch.cat(heads, -1))
        hidden = gelu(linear(f"blocks.{i}.feed.1", norm(f"blocks.{i}.feed.0", y)))
        y = y + linear(f"blocks.{i}.feed.3", hidden)
    return linear("head.1", norm("head.0", y)[:, at])


@pytest.mark.parametrize("horizon", [4, 7])
def test_network_is_the_published_one(horizon):
    """BESO, section 3: tokens sigma, goals, s_1, a_1, ...; a state and its action share a place, sigma has none. A longer
    chunk goes on with actions alone."""
    torch.manual_seed(0)
    net = DiffusionGpt(**KITCHEN | {"horizon": horizon}, width=24, layers=2, heads=3).double().eval()
    for p in net.parameters():  # far from the start, where 0.02 would hide a slip
        torch.nn.init.normal_(p, std=0.3)
    x, clock, cond = normal(5, horizon, 9), normal(5, seed=1), normal(5, 6, 30, seed=2)
    want = reference(net, x, clock, cond[:, :2], cond[:, 2:])
    torch.testing.assert_close(net(x, clock, cond), want, rtol=1e-10, atol=1e-10)


def test_a_row_sees_goals_noise_level_and_what_came_before(tiny):
    """BESO, section 11.8: another s_t or a_t changes no earlier row and row t; another goal or sigma changes all."""
    x, clock, cond = normal(3, 4, 9), normal(3, seed=1), normal(3, 6, 30, seed=2)
    before = tiny(x, clock, cond)
    for t in range(4):
        other_x, other_cond = x.clone(), cond.clone()
        other_x[:, t] += 1
        other_cond[:, 2 + t] += 1
        for after in (tiny(other_x, clock, cond), tiny(x, clock, other_cond)):
            changed = (after - before).abs().amax((0, 2)) > 1e-12
            assert changed.tolist() == [row >= t for row in range(4)]
    for g in range(2):
        other_cond = cond.clone()
        other_cond[:, g] += 1
        assert ((tiny(x, clock, other_cond) - before).abs().amax((0, 2)) > 1e-12).all()
    assert ((tiny(x, clock + 10, cond) - before).abs().amax((0, 2)) > 1e-12).all()


def test_without_the_mask_every_row_sees_every_row():
    """What a chunk needs to agree on one of several ways: the last row reaches the first."""
    torch.manual_seed(0)
    net = DiffusionGpt(**KITCHEN, width=24, layers=2, heads=3, causal=False).double().eval()
    x, clock, cond = normal(3, 4, 9), normal(3, seed=1), normal(3, 6, 30, seed=2)
    other = x.clone()
    other[:, -1] += 1
    assert ((net(other, clock, cond) - net(x, clock, cond)).abs().amax((0, 2)) > 1e-12).all()


def test_the_network_hears_log_sigma_over_4():
    """BESO, section 2: the noise token is a plain linear map of ln(sigma) / 4."""
    torch.manual_seed(0)
    policy, seen = windowed(exponential(3)).float(), []
    policy.body.clock.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].flatten().tolist()))
    phi = torch.tensor([0.005, 0.05, 1.0]).atan()
    cond, _ = policy.encode({"arm": normal(3, 4, 3).float()}, ())
    policy.denoise(normal(3, 4, 2).float(), phi, cond)
    assert seen[0] == pytest.approx([-1.3245793, -0.7489331, 0.0], abs=1e-6)


def windowed(angles, guidance=1.0, n_action_steps=1):
    """Published shape, W = 4, G = 2, with weights large enough to matter."""
    arm = Stream("arm", "state", (3,), ("a", "b", "c"), scale=Scale((2.0, 1.0, 0.5), (0.1, 0.0, -0.3)))
    action = ActionSpace(("x", "y"), ("m", "m"), "base", 10.0, scale=Scale((4.0, 3.0), (0.2, -0.1)))
    policy = BesoPolicy(
        "beso", ObsSpace((arm,), 10.0), action, horizon=4, n_obs_steps=4, n_action_steps=n_action_steps,
        encoder=partial(Fuse, state=State), body=partial(DiffusionGpt, goals=2, width=24, layers=2, heads=3),
        form=Karras(law=LogLogistic(), sigma_min=0.005, sigma_max=1.0),
        sampler=Sampler(euler, angles, limit=None, shrink=True), goal_steps=2, guidance=guidance,
    )  # fmt: skip
    for p in policy.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return policy.double().eval()


@pytest.mark.parametrize("angles", [exponential(3), linear_sigma(3, 0.05, 1.0)])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_executed_actions_enter_clean_and_are_rewritten(angles, guidance):
    """BESO, sections 1, 2, 5 and the trap of section 2, in the released code's own coordinates: z starts as the scaled
    executed actions and, for the last row, sigma_max * noise; every step rewrites all rows. One row was never executed
    (the episode is young): it starts as noise."""
    policy = windowed(angles, guidance)
    arm, goal, past = normal(5, 4, 3), normal(5, 2, 3, seed=1), normal(5, 3, 2, seed=2)
    past[0, 0] = math.nan
    obs = {"arm": arm, "goal.arm": goal, "action": past}

    scale, z = policy.action_space.scale, float(angles[0].tan()) * normal(5, 4, 2, seed=3)
    z[:, :3] = torch.where(past.isnan(), z[:, :3], scale.do(past))
    states, goals = (policy.obs_space["arm"].scale.do(y) for y in (arm, goal))

    def network(z, sigma, goals):
        skip, out, enter = 0.25 / (sigma**2 + 0.25), sigma * 0.5 / (sigma**2 + 0.25) ** 0.5, (sigma**2 + 0.25) ** -0.5
        clock = torch.full((5,), 25 * math.log(sigma), dtype=torch.float64)
        return skip * z + out * policy.body(enter * z, clock, torch.cat((goals, states), 1))

    for sigma, after in zip(angles.tan().tolist(), angles.tan().tolist()[1:], strict=False):
        free, bound = network(z, sigma, 0 * goals), network(z, sigma, goals)
        z = z + (after - sigma) * (z - (free + guidance * (bound - free))) / sigma
    got = policy.sampler(policy.denoise, normal(5, 4, 2, seed=3), policy.encode(obs, ())[0], generator())
    torch.testing.assert_close(got, z, rtol=1e-5, atol=1e-5)  # observations are scaled in float32


def test_one_action_is_executed_a_chunk():
    """BESO, section 1: receding by one; and without executed actions the chunk is sampled as in training."""
    policy = windowed(exponential(3)).float()
    with pytest.raises(UserError, match="n_action_steps=2 rows are more than"):
        windowed(exponential(3), n_action_steps=2)
    obs = {"arm": normal(5, 4, 3).float()}
    unknown = obs | {"action": torch.full((5, 3, 2), math.nan)}
    first, second = (chunk(policy, seen, (), generator())[0] for seen in (obs, unknown))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
