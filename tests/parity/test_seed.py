"""SeedPolicy and SEGA against the published numbers (Gui et al. 2026; sections 3 to 12 of the published reference)."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from polyarm.datasets.chains import split_chains, walk
from polyarm.datasets.windows import window_table
from polyarm.encoders.fuse import Fuse
from polyarm.encoders.state import State
from polyarm.encoders.temporal import diversity
from polyarm.policies.generate.angle import Schedule, ddpm
from polyarm.policies.generate.forms import Diffusion
from polyarm.policies.generate.sample import Sampler, ancestral
from polyarm.policies.policy import clip_loss
from polyarm.spec import ActionSpace, Clip, ObsSpace, Scale, Stream
from tests.from_yaml import ChunkTransformer, ResidualMlp, ResNetPooled, SeedPolicy, Sega, Unet1d

JOINTS = tuple(f"joint_{i}" for i in range(14))
ARM = Stream("arm", "state", (14,), JOINTS, ("rad",) * 14, scale=Scale.identity(14))
ALOHA = ObsSpace((Stream("head", "image", (240, 320, 3)), ARM), 10.0)
ACTION = ActionSpace(JOINTS, ("rad",) * 14, "joint", 10.0, scale=Scale.identity(14))


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("width", "depth", "layers", "tokens"),
    [(256, 6, 12_648_448, 30_720), (256, 4, 8_432_640, 30_720), (512, 6, 50_462_720, 61_440)],
)
def test_sega_has_the_published_parameters(width, depth, layers, tokens):
    """Section 9; S0 and P are counted apart. Mutations: one norm for stream and memory, shared streams, no qkv bias."""
    with torch.device("meta"):
        sega = Sega(width, depth=depth)
    assert sega.first.numel() + sega.place.numel() == tokens
    assert count(sega) == layers + tokens


def published(**sizes):
    form = Diffusion(Schedule(100, "squaredcos_cap_v2"), "noise")
    return SeedPolicy(
        "seed", ALOHA, ACTION, n_chunks=1, reset_interval=40, hidden=512, dropout=0.1, frozen=False, n_obs_steps=3, n_action_steps=6, encoder=partial(Fuse, image=ResNetPooled, state=State),
        memory=Sega, form=form, sampler=Sampler(ancestral, ddpm(Schedule(100, "squaredcos_cap_v2"))), **sizes,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("sizes", "seen", "body", "total"),
    [
        ({"horizon": 9, "token_width": 256, "body": partial(ChunkTransformer, cross_mask=False)},
         11_578_176, 9_030_158, 33_287_502),
        ({"horizon": 8, "token_width": 512, "body": partial(Unet1d, clock_dim=128)},
         11_710_016, 85_022_606, 147_256_782),
    ],
    ids=["transformer", "unet"],
)  # fmt: skip
def test_the_policy_has_the_published_parameters(sizes, seen, body, total):
    """Sections 4, 5 and 9: features to tokens through 512, the body conditioned on three enriched tokens and nothing else.
    Mutations: no norm behind the tokens, raw features beside them in the condition."""
    with torch.device("meta"):
        policy = published(**sizes)
    assert count(policy.encoder) + count(policy.token) == seen
    assert count(policy.body) == body
    assert count(policy) == total


@torch.no_grad()
def filled(sega):
    """The rule of the order-free parity: by rank and index, norms untouched, places 0."""
    norms = {id(p) for m in sega.modules() if isinstance(m, nn.LayerNorm) for p in m.parameters()}
    for p in sega.parameters():
        index = np.indices(p.shape).astype(float)
        if id(p) not in norms and p.ndim < 3:
            p.copy_(
                torch.tensor(0.01 * np.cos(index[0]) if p.ndim == 1 else 0.05 * np.cos(0.7 * index[0] + 1.3 * index[1]))
            )
    return sega


def grid(*sizes):
    return torch.meshgrid(*(torch.arange(float(n)) for n in sizes), indexing="ij")


@torch.no_grad()
def test_sega_computes_the_published_function():
    """Section 12. Mutations: memory from this layer's other stream (sequential), softmax before the mean, unscaled logits,
    one memory norm less, gate and 1 - gate exchanged."""
    sega = filled(Sega(16, tokens=4, depth=2, heads=4))
    b, t, d = grid(2, 4, 16)
    state = (0.3 * t + 0.1 * d + b).sin()
    b, t, d = grid(2, 3, 16)
    seen = (0.2 * d + t + b).cos()
    assert count(sega) - sega.first.numel() - sega.place.numel() == 17_792
    inter, enriched, logit = sega.streams(state, seen)
    _, after = sega(state, torch.zeros(2, dtype=torch.bool), seen)
    near = partial(pytest.approx, abs=1.5e-6)
    assert inter.abs().sum().item() == near(108.934668, abs=1e-4)
    assert inter.flatten()[:5].tolist() == near([-1.644186, -1.471833, -1.409456, -1.263000, -0.913130])
    assert enriched.abs().sum().item() == near(83.618958, abs=1e-4)
    assert enriched.flatten()[:4].tolist() == near([1.380076, 1.331578, 1.197141, 1.040516])
    assert logit.flatten()[:4].tolist() == near([-0.003292, -0.004656, -0.007417, -0.007489])
    assert logit.sum().item() == near(-0.045061)
    assert after.flatten()[:4].tolist() == near([-0.820740, -0.684706, -0.604070, -0.482457])
    assert (after.sum().item(), after.abs().sum().item()) == near((47.339835, 81.780836), abs=1e-4)


def small_policy(width, depth, heads, **sizes):
    """At SEGA's size, with a body that costs nothing; its head is not 0, so that gradients arrive."""
    torch.manual_seed(0)
    policy = SeedPolicy(
        "seed", ObsSpace((ARM,), 10.0), ACTION, 9, 3, 6, partial(Fuse, state=State),
        partial(Sega, depth=depth, heads=heads, **sizes), partial(ResidualMlp, width=8, blocks=1), Diffusion(),
        Sampler(ancestral, ddpm(Schedule())), token_width=width, hidden=16, dropout=0.0, n_chunks=1, reset_interval=40, frozen=False,
    )  # fmt: skip
    nn.init.normal_(policy.body.head[-1].weight, std=0.1)
    return policy


@pytest.mark.parametrize("k", [1, 2])
def test_gradients_reach_the_states_own_update_only_through_a_second_window(k):
    """Section 8, finding 2: with one window a clip and the state cut between clips 26 tensors have no gradient: the last
    state block and the state's norm. With two, none. The biases of keys, which no softmax sees, get theirs as zeros.
    Mutations: the condition read from S_t, the state detached within a clip, sequential streams."""
    policy = small_policy(256, 6, 8)
    generator = torch.Generator().manual_seed(0)
    carried = None
    for first in (True, False):
        clip = Clip({"arm": torch.randn(2, k, 3, 14, generator=generator)},
                    torch.randn(2, k, 9, 14, generator=generator), torch.tensor([[first] + [False] * (k - 1)] * 2))  # fmt: skip
        policy.zero_grad(set_to_none=True)
        loss, state = clip_loss(policy, clip, generator, carried)
        loss.backward()
        carried = tuple(x.detach() for x in state)
    without = {name for name, p in policy.named_parameters() if p.grad is None}
    own = {f"memory.state_blocks.5.{name}" for name, _ in policy.memory.state_blocks[5].named_parameters()}
    assert len(own) + 2 == 26
    assert without == (own | {"memory.state_norm.weight", "memory.state_norm.bias"} if k == 1 else set())
    if k == 2:
        assert all(p.grad.abs().max() > 0 for p in policy.memory.state_norm.parameters())


@torch.no_grad()
def spreads(sega, calls=39, seed=0):
    """Diversity of the state after each call on random observations, and the gate's values of the last."""
    generator = torch.Generator().manual_seed(seed)
    content, fresh, found = sega.start(1), torch.tensor([True]), []
    for _ in range(calls):
        seen = torch.randn(1, 3, content.shape[-1], generator=generator)
        gate = sega.gate(sega.streams(content + sega.place, seen)[2])
        _, content = sega(content, fresh, seen)
        fresh = torch.tensor([False])
        found.append(diversity(content).item())
    return found, gate


def test_untrained_tokens_collapse_as_published():
    """Section 8, finding 3: inter-token spread 0.056 after the first update, 0.010 after 10, 0.0001 after 39; a gate of
    0.49 to 0.52 that hardly tells tokens apart. Mutations: gate 0 or 1, a start larger than 0.02."""
    torch.manual_seed(0)
    found, gate = spreads(Sega(256))
    assert 0.04 < found[0] < 0.07
    assert 0.005 < found[9] < 0.015
    assert found[38] < 2e-4
    assert 0.48 < gate.min() and gate.max() < 0.52 and gate.std() < 2e-3


def test_the_staggered_chains_are_the_published_batches():
    """Section 12: episodes of 10 and 7 windows, step 3, two slots, seed 0. Mutations: offset-major chains, the queue read
    from its end, a slot kept for the longest chain, the interval counted over chains."""
    chains = split_chains(np.repeat([0, 1], [10, 7]), 3)
    flagged = lambda interval: [
        [(int(i), bool(r)) for i, r in zip(*row, strict=True)]
        for row in zip(*walk(chains, 2, 8, np.random.default_rng(0), interval), strict=True)
    ]
    batches = [
        [(10, True), (2, True)], [(13, False), (5, False)], [(16, False), (8, False)], [(12, True), (11, True)],
        [(15, False), (14, False)], [(0, True), (1, True)], [(3, False), (4, False)], [(6, False), (7, False)],
    ]  # fmt: skip
    assert flagged(40) == batches
    batches[2], batches[7] = [(16, True), (8, True)], [(6, True), (7, True)]
    assert flagged(2) == batches


def test_the_windows_are_the_published_ones():
    """Section 12: 20 steps, Tp 9, pads To - 1 = 2 and Ta - 1 = 5."""
    table = window_table(np.array([20]), 9, 2, 5)
    assert len(table) == 19
    assert (table[0].tolist(), table[-1].tolist()) == ([0, 7, 2, 9], [16, 20, 0, 4])
