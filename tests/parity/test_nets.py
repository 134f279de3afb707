"""Bodies against the numbers of the published networks (Diffusion Policy, sections 4, 5 and 11 of the published reference)."""

import numpy as np
import pytest
import torch
from torch import nn

from polyarm.policies.nets.clock import sinusoidal
from polyarm.policies.nets.unet import Film
from polyarm.spec import UserError
from tests.from_yaml import ChunkTransformer, ResidualMlp, Unet1d

WIDE = (512, 1024, 2048)
SMALL_UNET = {"down_dims": (16, 32, 64), "clock_dim": 16}
SMALL_TRANSFORMER = {"layers": 2, "heads": 2, "width": 16, "p_drop_attn": 0.0}
CLOCK = torch.tensor([3.0, 77.0])


def count(parameters):
    return sum(p.numel() for p in parameters)


def angles(rates, sizes):
    """[b t d]: each index times its rate, summed, in float32."""
    b, t, d = torch.meshgrid(*(torch.arange(n).float() for n in sizes), indexing="ij")
    return rates[1] * t + rates[2] * d + rates[0] * b


def rows(horizon):
    return angles((1, 0.3, 1), (2, horizon, 2)).sin()


@torch.no_grad()
def fill(net):
    """Section 11's rule by rank and index, so that neither names nor order matter."""
    norms = {id(p) for m in net.modules() if isinstance(m, nn.GroupNorm | nn.LayerNorm) for p in m.parameters()}
    places = {id(p) for name, p in net.named_parameters() if name.endswith("_place")}
    for p in net.parameters():
        index = np.indices(p.shape).astype(float)
        if id(p) in norms:
            continue
        if id(p) in places:
            value = 0.02 * np.cos(index[1] + 0.5 * index[2])
        elif p.ndim == 1:
            value = 0.01 * np.cos(index[0])
        else:
            value = 0.05 * np.cos(sum(rate * i for rate, i in zip((0.7, 1.3, 2.1), index, strict=False)))
        p.copy_(torch.tensor(value))
    return net.eval()


@torch.no_grad()
def shake(net):
    """Break every zero initialisation."""
    generator = torch.Generator().manual_seed(0)
    for p in net.parameters():
        p += 0.1 * torch.randn(p.shape, generator=generator)
    return net


def some(body, **sizes):
    return shake(body(2, 8, 3, 5, **sizes)).eval()


BODIES = [
    lambda: some(Unet1d, **SMALL_UNET),
    lambda: some(ChunkTransformer, **SMALL_TRANSFORMER),
    lambda: some(ChunkTransformer, cond_layers=1, **SMALL_TRANSFORMER),
    lambda: some(ResidualMlp, width=16),
]


def inputs(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator)
    return draw(n, 8, 2), 50 + 20 * draw(n), draw(n, 3, 5)


def test_clock_embedding_has_the_published_digits():
    """Section 4. Mutations: cos before sin, half in place of half - 1."""
    printed = [-0.958924, 0.230002, 0.010772, 0.0005, 0.283662, 0.973190, 0.999942, 1.0]
    assert sinusoidal(8)(torch.tensor([5.0]))[0].tolist() == pytest.approx(printed, abs=6e-7)


@pytest.mark.parametrize(
    ("action_dim", "g_obs", "clock_dim", "down_dims", "parameters"),
    [
        (2, 40, 256, (256, 512, 1024), 65_783_298),
        (10, 46, 256, (256, 512, 1024), 65_883_658),
        (9, 120, 256, (256, 512, 1024), 66_942_729),
        (2, 48, 256, (256, 512, 1024), 65_897_986),
        (22, 0, 256, (256, 512, 1024), 65_245_718),
        (2, 132, 128, WIDE, 251_511_938),
        (10, 274, 128, WIDE, 255_612_042),
        (20, 548, 128, WIDE, 263_504_020),
        (2, 260, 128, (256, 512, 1024), 66_708_354),
        (14, 1578, 128, (256, 512, 1024), 85_624_718),
    ],
)
def test_unet_has_the_published_parameters(action_dim, g_obs, clock_dim, down_dims, parameters):
    """Section 4. Mutations: a d1 skip, an unused block, a 1x1 carry where widths agree."""
    with torch.device("meta"):
        net = Unet1d(action_dim, 16, g_obs and 2, g_obs // 2, clock_dim=clock_dim, down_dims=down_dims)
    assert count(net.parameters()) == parameters


def test_unet_defaults_are_the_state_sizes():
    """Section 4. Mutation: any default."""
    with torch.device("meta"):
        assert count(Unet1d(2, 16, 2, 20).parameters()) == 65_783_298


# With the scale all printed digits hold. Without it a group norm over nearly constant channels amplifies float32
# rounding: inputs that differ in their last bit move the sums by 1e-3 and single values by 1e-4.
@pytest.mark.parametrize(
    ("scale", "parameters", "total", "total_abs", "first", "slack"),
    [
        (True, 263_138, 0.625244, 1.683243, [0.036764, 0.032709, 0.011226, -0.032307, -0.088809, -0.044308], 1.5e-6),
        (False, 253_282, 0.630263, 2.063412, [-0.083330, -0.082944, 0.151470, 0.139712, 0.029555, 0.048176], 1.5e-3),
    ],
)
def test_unet_computes_the_published_function(scale, parameters, total, total_abs, first, slack):
    """Section 11. Mutations: bias before scale, scale + 1, skip after the downsampling, order of skip and x, kernel 3."""
    net = fill(Unet1d(2, 8, 1, 5, predict_scale=scale, **SMALL_UNET))
    with torch.no_grad():
        y = net(rows(8), CLOCK, angles((1, 0, 0.2), (2, 1, 5)).cos())
    assert count(net.parameters()) == parameters
    assert y.flatten()[:6].tolist() == pytest.approx(first, abs=slack)
    assert y.double().sum().item() == pytest.approx(total, abs=slack)
    assert y.double().abs().sum().item() == pytest.approx(total_abs, abs=slack)


@pytest.mark.parametrize("horizon", [4, 8, 12, 16, 20])
def test_unet_takes_horizons_of_whole_quarters(horizon):
    """Section 1. Mutation: a downsampling at the last level."""
    net = Unet1d(2, horizon, 0, 0, **SMALL_UNET)
    assert net(rows(horizon), CLOCK, torch.zeros(2, 0, 0)).shape[1] == horizon


@pytest.mark.parametrize(("horizon", "near"), [(9, "8 or 12"), (10, "8 or 12"), (2, "4 or 8"), (0, "4 or 8")])
def test_unet_refuses_other_horizons_before_training(horizon, near):
    with pytest.raises(UserError, match=f"horizon {horizon} cannot be halved 2 times .* multiple of 4: choose {near}"):
        Unet1d(2, horizon, 2, 5)


def test_unet_refuses_widths_that_groups_do_not_divide():
    with pytest.raises(UserError, match="down_dims 36 is no multiple of groups 8"):
        Unet1d(2, 8, 2, 5, down_dims=(16, 36))
    with pytest.raises(UserError, match="down_dims 12 is no multiple of 8, the groups of the last block"):
        Unet1d(2, 8, 2, 5, down_dims=(12, 24), groups=4)


@pytest.mark.parametrize("groups", [2, 4, 8, 16])
def test_the_last_block_of_the_unet_has_eight_groups_whatever_the_others_have(groups):
    """The published code makes its last block without its number of groups. The same tensors, and the answer of a network whose
    last norm is put in by hand. Mutation: `groups` in the last block."""
    net = some(Unet1d, **SMALL_UNET, groups=groups)
    norms = [m for m in net.modules() if isinstance(m, nn.GroupNorm)]
    assert {n.num_groups for n in norms if n is not net.leave[0][1]} == {groups}
    shapes = lambda of: {name: p.shape for name, p in of.named_parameters()}
    assert shapes(net) == shapes(some(Unet1d, **SMALL_UNET))
    x, clock, cond = inputs(2)
    kept: list[torch.Tensor] = []
    net.leave[0][0].register_forward_hook(lambda module, given, out: kept.append(out))
    with torch.no_grad():
        got = net(x, clock, cond)
        norm = net.leave[0][1]
        eight = nn.functional.group_norm(kept[0], 8, norm.weight, norm.bias)
        want = net.leave[1](nn.functional.mish(eight)).transpose(1, 2)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("predict_scale", [True, False])
def test_film_scales_then_shifts(predict_scale):
    """Section 4: FIRST half scale, second bias, no + 1. Mutations: halves exchanged, 1 + scale."""
    x, g = torch.randn(2, 4, 6), torch.randn(2, 3)
    film = Film(3, 4, predict_scale)
    scale, bias = torch.tensor([2.0, 0.0, -1.0, 0.5]), torch.tensor([1.0, 3.0, 0.0, -2.0])
    nn.init.zeros_(film.linear.weight)
    film.linear.bias.data = torch.cat((scale, bias)) if predict_scale else bias
    want = x * scale[:, None] + bias[:, None] if predict_scale else x + bias[:, None]
    torch.testing.assert_close(film(x, g), want)


@pytest.mark.parametrize(
    ("sizes", "parameters"),
    [
        ({"action_dim": 10, "horizon": 10, "n_obs_steps": 2, "cond_dim": 137}, 8_997_642),
        ({"action_dim": 2, "horizon": 5, "n_obs_steps": 3, "cond_dim": 16}, 8_961_538),
        ({"action_dim": 2, "horizon": 10, "n_obs_steps": 2, "cond_dim": 20}, 8_963_586),
        ({"action_dim": 9, "horizon": 16, "n_obs_steps": 4, "cond_dim": 60, "width": 768}, 80_415_753),
    ],
)
def test_transformer_has_the_published_parameters(sizes, parameters):
    """Section 5. Mutations: a final norm of the memory, places of one row too few."""
    with torch.device("meta"):
        assert count(ChunkTransformer(**sizes).parameters()) == parameters


def test_transformer_decays_linear_weights_only():
    """Section 5. Mutation: decay the places, a LayerNorm or a bias."""
    with torch.device("meta"):
        net = ChunkTransformer(10, 10, 2, 137)
    decay, no_decay = net.decay_groups()
    assert (count(decay), count(no_decay)) == (8_953_088, 8_997_642 - 8_953_088)
    assert {id(p) for p in decay} == {id(m.weight) for m in net.modules() if isinstance(m, nn.Linear)}


@pytest.mark.parametrize(
    ("cross_mask", "total", "total_abs", "first"),
    [
        (True, -1.326164, 1.438092, [-0.008266, -0.071919, 0.002814, -0.072709]),
        (False, -1.326168, 1.438102, [-0.008264, -0.071925]),
    ],
)
def test_transformer_computes_the_published_function(cross_mask, total, total_abs, first):
    """Section 11. Mutations: post-norm, ReLU, observations before the clock, no place added, cross mask one off."""
    net = fill(ChunkTransformer(2, 6, 2, 5, cross_mask=cross_mask, **SMALL_TRANSFORMER))
    with torch.no_grad():
        y = net(rows(6), CLOCK, angles((1, 1, 0.2), (2, 2, 5)).cos())
    assert count(net.parameters()) == 11_282
    assert y.flatten()[: len(first)].tolist() == pytest.approx(first, abs=6e-7)
    assert y.double().sum().item() == pytest.approx(total, abs=1.5e-6)
    assert y.double().abs().sum().item() == pytest.approx(total_abs, abs=1.5e-6)


def test_cross_mask_is_the_published_one():
    """Section 5, To = 3. Mutation: t >= s."""
    net = ChunkTransformer(2, 4, 3, 5, **SMALL_TRANSFORMER)
    assert net.sees_memory.int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1]]


def test_transformer_starts_as_published():
    """Section 5. Mutation: leave out the places, or torch's own initialisation of a map."""
    net = ChunkTransformer(2, 64, 63, 64, width=64, layers=1)
    for name, p in net.named_parameters():
        if name.endswith("_place") or p.ndim == 2:
            assert p.std().item() == pytest.approx(0.02, rel=0.25), name
        else:
            assert p.unique().tolist() in ([0.0], [1.0]), name
    assert {m.weight.unique().item() for m in net.modules() if isinstance(m, nn.LayerNorm)} == {1.0}


def test_encoded_memory_is_torchs_transformer_encoder():
    """Oracle: `nn.TransformerEncoder`, pre-norm with GELU. Mutations: post-norm, a mask, k and v exchanged."""
    memory = some(ChunkTransformer, cond_layers=2, **SMALL_TRANSFORMER).memory
    layer = nn.TransformerEncoderLayer(16, 2, 64, 0.0, "gelu", batch_first=True, norm_first=True)
    oracle = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    for ours, theirs in zip(memory, oracle.layers, strict=True):
        theirs.norm1, theirs.norm2, theirs.linear1, theirs.linear2 = ours.norm, ours.feed[0], ours.feed[1], ours.feed[4]
        theirs.self_attn.in_proj_weight, theirs.self_attn.in_proj_bias = ours.attend.qkv.weight, ours.attend.qkv.bias
        theirs.self_attn.out_proj.weight, theirs.self_attn.out_proj.bias = ours.attend.out.weight, ours.attend.out.bias
    x = torch.randn(3, 4, 16)
    torch.testing.assert_close(memory(x), oracle(x))


@pytest.mark.parametrize("causal", [True, False])
def test_causal_rows_do_not_see_later_rows(causal):
    """Section 5. Mutation: no mask, or its transpose."""
    net = some(ChunkTransformer, causal=causal, **SMALL_TRANSFORMER)
    x, clock, cond = inputs(1)
    other = x.clone()
    other[:, 4] += 1
    changed = (net(x, clock, cond) != net(other, clock, cond)).any(-1)[0].tolist()
    assert changed == ([False] * 4 + [True] * 4 if causal else [True] * 8)


@pytest.mark.parametrize("cross_mask", [True, False])
def test_cross_masked_rows_do_not_see_later_observations(cross_mask):
    """Section 5. Mutation: mask one off."""
    net = some(ChunkTransformer, cross_mask=cross_mask, **SMALL_TRANSFORMER)
    x, clock, cond = inputs(1)
    other = cond.clone()
    other[:, 2] += 1
    changed = (net(x, clock, cond) != net(x, clock, other)).any(-1)[0].tolist()
    assert changed == ([False] * 2 + [True] * 6 if cross_mask else [True] * 8)


def test_transformer_refuses_widths_that_heads_do_not_divide():
    with pytest.raises(UserError, match="width 10 is no multiple of heads 4"):
        ChunkTransformer(2, 8, 2, 5, width=10)


def test_mlp_answers_zero_until_trained():
    """Mutation: torch's own initialisation of the head."""
    assert (ResidualMlp(2, 8, 3, 5)(*inputs(4)) == 0).all()


def test_mlp_is_small():
    """Mutation: any default size."""
    assert count(ResidualMlp(6, 16, 2, 13).parameters()) == 855_648


def test_mlp_blocks_start_as_the_identity():
    """Mutation: no residual, or no zero initialisation of a block: then the head sees another sum."""
    net = ResidualMlp(2, 8, 3, 5, width=16)
    x, clock, cond = inputs(4)
    nn.init.normal_(net.head[-1].weight)
    want = net.head(net.chunk(x.flatten(1)) + net.cond(cond.flatten(1)) + net.clock(clock))
    assert torch.equal(net(x, clock, cond).flatten(1), want)


def test_mlp_clock_turns_1_to_200_radians_over_the_schedule():
    """Mutations: clock in fractions, rates not over 100."""
    waves = ResidualMlp(2, 8, 3, 5).clock[0](torch.tensor([100.0]))[0].double()
    want = torch.linspace(0, 1, 16).double().mul(np.log(200)).exp()
    torch.testing.assert_close(waves, torch.cat((want.sin(), want.cos())), atol=1e-4, rtol=0)


@pytest.mark.parametrize("make", BODIES)
def test_gradient_reaches_every_parameter(make):
    """Mutations: a branch not used, a detached clock, an observation that is dropped."""
    net = make()
    net(*inputs(4)).square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("make", BODIES)
def test_batch_rows_do_not_see_one_another(make):
    """Mutations: batch norm, axes of batch and rows exchanged."""
    net = make()
    order = torch.tensor([2, 0, 1])
    x, clock, cond = inputs(3)
    torch.testing.assert_close(net(x[order], clock[order], cond[order]), net(x, clock, cond)[order])


@pytest.mark.parametrize("make", BODIES)
def test_acting_and_training_compute_the_same_bits(make):
    """Without dropout. Mutation: `nn.TransformerEncoderLayer`, which takes another kernel when it acts."""
    net, args = make(), inputs(4)
    trained = net.train()(*args)
    with torch.no_grad():
        assert torch.equal(net.eval()(*args), trained)
