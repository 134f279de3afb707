"""3D Diffuser Actor's and 3D FlowMatch Actor's denoisers against their released code (snapshots 4faf00b and 30bcf1a): numbers
are what it answers for the same weights, which legacy numpy draws, or were computed from its formulas."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from polyarm.encoders.pyramid import Pyramid
from polyarm.policies.nets.actor import ActorHead, Scene, farthest, sparsest
from polyarm.policies.nets.clock import sinusoidal
from polyarm.policies.nets.rotary import Turn, turn_at, turned
from polyarm.policies.nets.scene import SceneEncoder
from polyarm.spec import ObsSpace, Stream, UserError

DIFFUSER = {
    "cross_layers": 2, "shared_layers": 4, "branch_layers": 2, "dropout": 0.0, "words_dropout": 0.1, "words": True,
    "words_feed": False, "shared_words": 0, "branch_words": 0, "whole": False,
}  # fmt: skip
CALVIN = DIFFUSER | {"shared_words": 3, "branch_words": 1}
FLOWMATCH = DIFFUSER | {"dropout": 0.1, "words_feed": True, "whole": True}


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_rotary_vectors():
    """Mutations: halves in place of neighbouring pairs, the other sign, rates by the whole width."""
    turn = turn_at(torch.tensor([[[0.5, -1.0, 2.0]]]), 12)
    each = lambda *x: torch.tensor(x).repeat_interleave(2)
    assert torch.allclose(turn.cos[0, 0], each(0.877583, 0.999987, 0.540302, 0.99995, -0.416147, 0.9998), atol=1e-6)
    assert torch.allclose(turn.sin[0, 0], each(0.479426, 0.005, -0.841471, -0.01, 0.909297, 0.019999), atol=1e-6)
    expected = [
        -0.081269, 2.234591, 2.979962, 4.014950, 7.750338, -0.965540,
        7.079648, 7.929601, -12.838295, 4.022208, 10.757816, 12.217586,
    ]  # fmt: skip
    assert torch.allclose(turned(torch.arange(1.0, 13)[None, None], turn)[0, 0], torch.tensor(expected), atol=2e-6)
    wide = turn_at(torch.tensor([[[0.1, 0.2, 0.3]]]), 120)
    assert (float(wide.cos.sum()), float(wide.sin.sum())) == pytest.approx((119.768368, 3.235357), abs=1e-4)


def test_a_third_that_is_odd_leaves_more_for_z():
    """The successor's rule: 64 channels are 20, 20 and 24. Mutation: round the third up."""
    turn = turn_at(torch.tensor([[[1.0, 2.0, 3.0]]]), 64)
    assert torch.allclose(turn.sin[0, 0, [0, 20, 40]], torch.tensor([1.0, 2.0, 3.0]).sin(), atol=1e-6)
    assert float(turn.sin[0, 0, -1]) == pytest.approx(np.sin(3 * 10_000 ** (-22 / 24)), abs=1e-6)


def test_sinusoids():
    expected = [0.841471, 0.046399, 0.002154, 0.0001, 0.540302, 0.998923, 0.999998, 1.0]
    assert torch.allclose(sinusoidal(8)(torch.tensor([1.0]))[0], torch.tensor(expected), atol=1e-6)


def test_logits_depend_on_where_tokens_lie_to_each_other_unless_a_head_is_odd():
    """Published: 120 channels in 8 heads, where a pair of channels lies across two heads. Mutation: turn queries alone."""
    change = {}
    for width in (120, 144, 192):
        random = torch.Generator().manual_seed(0)
        q, k, xyz = (torch.randn(1, 64, n, generator=random) for n in (width, width, 3))
        q, k = (nn.functional.normalize(x, dim=-1) * width**0.5 for x in (q, k))
        logits = []
        for shift in (torch.zeros(3), torch.tensor([0.7, -0.4, 0.9])):
            at = turn_at(xyz + shift, width)
            heads = [turned(x, at).unflatten(-1, (8, -1))[0] for x in (q, k)]
            logits.append(torch.einsum("tnc,snc->nts", *heads) * (width / 8) ** -0.5)
        change[width] = (logits[0] - logits[1]).abs().amax((1, 2))
    assert change[144].max() < 1e-5 and change[192].max() < 1e-5
    assert (change[120][2:4] > 0.3).all() and (change[120][[0, 1]] > 0.01).all() and (change[120][[6, 7]] > 0.001).all()


def filled(head, random):
    with torch.no_grad():
        for name, p in head.named_parameters():
            p.copy_(0.3 * random(*p.shape) + name.endswith("norm.weight"))
    return head.eval()


def seen(random, width):
    """(rows [1 3 9], what was seen): an instruction of 7 tokens, 12 tokens of the scene, of which 4 are thought with."""
    rows, tokens, xyz, words, gripper = (
        random(1, *shape) for shape in ((3, 9), (12, width), (12, 3), (7, width), (3, width))
    )
    at = turn_at(xyz, width)
    few = Turn(at.cos[:, :4], at.sin[:, :4])
    return rows, Scene(tokens, at, tokens[:, :4], few, gripper, words, torch.ones(1, 7, dtype=torch.bool))


ANSWERS = {
    "calvin": (CALVIN, [
        [1.751951, 8.707651, 0.641495, 3.272347, 0.308659, -1.982778, 0.950836, -2.853618, 1.691454, -2.381385],
        [1.750890, 8.710968, 0.640564, 3.272688, 0.310217, -1.983930, 0.950401, -2.850509, 1.691706, -2.380431],
        [1.752026, 8.709979, 0.641127, 3.273157, 0.309185, -1.982839, 0.950122, -2.851469, 1.693091, -2.381099],
    ]),
    "flowmatch": (FLOWMATCH, [
        [-1.697614, 0.114348, -2.825941, 0.410625, -0.248825, 2.221104, 1.632839, 3.715333, -0.507424, -0.405380],
        [-1.698258, 0.112876, -2.825172, 0.357547, -0.198714, 2.165024, 1.599825, 3.579852, -0.467156, -0.408071],
        [-1.697529, 0.120636, -2.828453, 0.403392, -0.237129, 2.204560, 1.637187, 3.727974, -0.505974, -0.396794],
    ]),
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
def test_the_head_answers_as_the_released_one(name):
    """Mutations: modulate keys in the published one or not in the successor, the step's place on the residual before the
    instruction is read, the branches exchanged, opening from the rotation's branch."""
    settings, expected = ANSWERS[name]
    draws = np.random.RandomState(0)
    random = lambda *shape: torch.from_numpy(draws.randn(*shape)).float()
    head = filled(ActorHead(6, 1, 3, width=24, heads=2, **settings), random)
    rows, scene = seen(random, 24)
    with torch.no_grad():
        answer = torch.cat(head(rows, rows[..., :3], torch.tensor([77.0]), scene), dim=-1)
    assert torch.allclose(answer[0], torch.tensor(expected), atol=2e-5)


@pytest.mark.parametrize(
    ("settings", "width", "published"), [(DIFFUSER, 120, 1_793_050), (CALVIN, 192, 9_751_498 - 4_068_672)]
)
def test_the_head_has_the_published_parameters(settings, width, published):
    """But for the feed-forward map behind the instruction, which the released code makes and never asks."""
    head = ActorHead(6, 1, 3, width=width, heads=8, **settings)
    never_asked = 2 * 4 * width * width + 5 * width + 2 * width
    assert count(head) + never_asked == published


class Rn50(nn.Module):
    """The channels of CLIP's RN50, without it: it is frozen and not counted."""

    channels = (64, 256, 512, 1024, 2048)


class Clip(nn.Module):
    token_width = 512


def encoder(width, heads, history, words_layers):
    space = ObsSpace(
        (
            *(
                Stream("rgb", "image", (256, 256, 3)),
                Stream("xyz", "points", (256, 256, 3)),
                Stream("task", "text", (53,)),
            ),
            Stream("tip", "state", (3,), ("x", "y", "z"), ("m",) * 3),
        ),
        10.0,
    )
    return SceneEncoder(
        space, history, "tip", ("x", "y", "z"), cameras=None, resize="bilinear", places=[], gripper_state=False, augment=None, image=partial(Pyramid, trunk=Rn50, stride=8), text=lambda stream: Clip(), width=width,
        heads=heads, words_layers=words_layers, gripper_layers=3, dropout=0.0, words_dropout=0.1, choose=farthest, thin=5,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "width", "history", "words_layers", "published"),
    [
        (DIFFUSER, 120, 3, 2, 3_584_290),
        (CALVIN, 192, 3, 2, 9_751_498),
        (CALVIN, 192, 1, 2, 9_677_386),
        (DIFFUSER, 192, 3, 2, 8_637_898),
        (FLOWMATCH, 120, 6, 3, 3_925_570),
        (FLOWMATCH, 120, 3, 2, 3_707_650),
        (FLOWMATCH, 144, 3, 2, 5_174_938),
    ],
)
def test_encoder_and_head_have_the_published_parameters(settings, width, history, words_layers, published):
    """3,584,290, 9,751,498 and 3,925,570 among them: ours, and what the released code makes and no gradient reaches: levels
    of the pyramid that are not looked at; published, an embedding of a goal and the map behind the instruction; in the
    successor, a map and embeddings for cameras without depth, and embeddings of two hands."""
    c, levels = width, 64 + 256
    never = levels * c + 2 * c + 4 * (9 * c * c + c)
    never += 1024 * c + c + 4 * c if settings is FLOWMATCH else c + 8 * c * c + 7 * c
    ours = count(encoder(width, 8, history, words_layers)) + count(
        ActorHead(6, 1, history, width=width, heads=8, **settings)
    )
    assert ours + never == published


def test_the_noise_level_changes_nothing_until_trained():
    """Modulation starts at zero. Mutation: leave out its zeros."""
    torch.manual_seed(0)
    head = ActorHead(6, 1, 3, width=24, heads=2, **FLOWMATCH).eval()
    rows, scene = seen(torch.randn, 24)
    for clock in (5.0, 90.0):
        first = head(rows, rows[..., :3], torch.tensor([1.0]), scene)
        assert all(
            torch.equal(a, b)
            for a, b in zip(first, head(rows, rows[..., :3], torch.tensor([clock]), scene), strict=True)
        )
    nn.init.normal_(head.look.attend[0].adapt.modulation[1].weight)
    assert not torch.allclose(first.position, head(rows, rows[..., :3], torch.tensor([90.0]), scene).position)


@pytest.mark.parametrize(("width", "heads", "holds"), [(48, 4, True), (144, 8, True), (120, 8, False)])
def test_the_head_looks_at_where_things_are_to_each_other(width, heads, holds):
    """All coordinates shifted: the same answer to 1e-5. Mutations: turn queries alone, turn in the scene's part alone."""
    draws = np.random.RandomState(1)
    random = lambda *shape: torch.from_numpy(draws.randn(*shape)).float()
    head = ActorHead(6, 1, 3, width=width, heads=heads, **CALVIN).eval()
    rows, tokens, words, gripper = (random(1, *s) for s in ((3, 9), (20, width), (5, width), (3, width)))
    xyz, rows_at = random(1, 20, 3), random(1, 3, 3)
    answers = []
    for shift in (torch.zeros(3), torch.tensor([0.7, -0.4, 0.9])):
        at, few_at = turn_at(xyz + shift, width), turn_at(xyz[:, :6] + shift, width)
        scene = Scene(4 * tokens, at, 4 * tokens[:, :6], few_at, gripper, words, torch.ones(1, 5, dtype=torch.bool))
        answers.append(torch.cat(head(rows, rows_at + shift, torch.tensor([3.0]), scene), dim=-1))
    change = (answers[0] - answers[1]).abs().max()
    assert change < 1e-5 if holds else change > 1e-4


def test_words_behind_the_end_change_nothing():
    """Mutation: leave `given` out. (Published: padding is attended to.)"""
    draws = np.random.RandomState(2)
    random = lambda *shape: torch.from_numpy(draws.randn(*shape)).float()
    head = filled(ActorHead(6, 1, 3, width=24, heads=2, **CALVIN), random)
    rows, scene = seen(random, 24)
    given = torch.arange(7)[None] < 5
    answers = [
        head(rows, rows[..., :3], torch.tensor([3.0]), scene._replace(words=words, given=given))
        for words in (scene.words, torch.where(given[..., None], scene.words, 9.0))
    ]
    assert torch.allclose(answers[0].position, answers[1].position, atol=1e-6)


def test_kept_tokens():
    """Mutations: squared distances in the mean, a token's own distance left out, the two lonely ends only."""
    line = torch.arange(32.0)[None, :, None] ** 2
    assert sparsest(line, 8).tolist() == [list(range(31, 23, -1))]
    assert farthest(line[:, :9], 4).tolist() == [[0, 8, 6, 4]]  # 64 and 36 apart, then 16 from both 0 and 36


@pytest.mark.parametrize(("width", "heads"), [(50, 8), (33, 3), (8, 2)])
def test_a_width_that_makes_no_heads_is_refused(width, heads):
    with pytest.raises(UserError, match=f"width {width} "):
        ActorHead(6, 1, 3, width=width, heads=heads, **DIFFUSER)
