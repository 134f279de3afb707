"""Mixing, guidance and clipping are algebra on denoisers."""

import math

import pytest
import torch

from polyarm.policies.generate.angle import linear_flow, wide
from polyarm.policies.generate.compose import clip, guide, mix
from polyarm.policies.generate.forms import normal
from polyarm.policies.generate.sample import euler
from polyarm.spec import UserError


def normals(*shape, seed=0):
    return normal(torch.empty(*shape, dtype=torch.float64), torch.Generator().manual_seed(seed))


def gaussian(mu, v=0.04):
    def denoise(x, phi, cond=None):
        cos, sin = wide(phi).cos(), wide(phi).sin()
        return (cos * v * x + sin**2 * mu) / (cos**2 * v + sin**2)

    return denoise


def conditional(x, phi, cond=None):
    """Data N(cond, 0.04); nothing given: N(0, 0.04)."""
    return gaussian(0.0 if cond is None else cond)(x, phi)


def test_a_mix_of_clean_actions_is_the_mix_of_scores_noises_and_velocities():
    """General policy composition, section 7.3 of the published reference: at one angle noise, score, v and flow velocity
    are affine in the clean action with one slope, so weights that sum to 1 act alike on all of them, to 1e-12."""
    x, phi = normals(8, 2, 3), torch.linspace(0.05, 1.5, 8, dtype=torch.float64)
    parts, w = (gaussian(-0.5), gaussian(0.7, 0.09), gaussian(0.1, 0.5)), (0.5, 0.7, -0.2)
    cos, sin = wide(phi).cos(), wide(phi).sin()
    mixed = mix(parts, w)(x, phi, (None, None, None))
    for read in (
        lambda action: (x - cos * action) / sin,  # noise
        lambda action: (cos * action - x) / sin**2,  # score
        lambda action: cos * (x - cos * action) / sin - sin * action,  # v
        lambda action: (x - cos * action) / sin - action,  # flow velocity
    ):
        want = sum(a * read(part(x, phi)) for a, part in zip(w, parts, strict=True))
        torch.testing.assert_close(read(mixed), want, rtol=1e-12, atol=1e-12)


def test_degenerate_mixes():
    """Section 7.1: weights 1, 0 are the first parent to the bit; equal parents make weights irrelevant; order does not
    matter."""
    x, grid = normals(4, 2, 3), linear_flow(10)
    a, b = gaussian(-0.5), gaussian(0.7, 0.09)
    none = [None, None]
    assert torch.equal(euler(mix([a, b], (1, 0)), x, grid, none), euler(a, x, grid))
    torch.testing.assert_close(euler(mix([a, a], (0.3, 0.7)), x, grid, none), euler(a, x, grid), rtol=0, atol=1e-14)
    assert torch.equal(euler(mix([a, b], (0.3, 0.7)), x, grid, none), euler(mix([b, a], (0.7, 0.3)), x, grid, none))


def test_every_part_sees_its_own_condition():
    """A mix of conditional parts takes one condition a part, in their order."""
    x, grid = normals(4, 2, 3), linear_flow(10)
    got = euler(mix([conditional, conditional], (0.25, 0.75)), x, grid, (0.8, -0.4))
    torch.testing.assert_close(got, euler(gaussian(0.25 * 0.8 - 0.75 * 0.4), x, grid), rtol=0, atol=1e-12)


def test_guidance_scale_0_ignores_the_condition_and_1_is_conditional():
    """Classifier-free guidance (Ho and Salimans, 2022, equation 6): scale 0 is independent of the condition to the bit,
    1 the conditional model, and for Gaussians scale s samples N(s * cond, v)."""
    x, grid = normals(4, 2, 3), linear_flow(10)
    ignored = [euler(guide(conditional, 0.0), x, grid, cond) for cond in (0.9, -0.3)]
    assert torch.equal(*ignored) and torch.equal(ignored[0], euler(conditional, x, grid))
    assert torch.equal(euler(guide(conditional, 1.0), x, grid, 0.4), euler(conditional, x, grid, 0.4))
    over = euler(guide(conditional, 2.5), x, grid, 0.4)
    torch.testing.assert_close(over, euler(conditional, x, grid, 1.0), rtol=0, atol=1e-12)


def test_weights_as_a_function_of_the_angle():
    """A mix that hands over from one part to the other at an angle is one sampler stopped there and the other started."""
    x, grid = normals(4, 2, 3), linear_flow(10)
    a, b = gaussian(-0.5), gaussian(0.7)

    def weights(phi):
        late = (wide(phi) <= grid[6]).double()
        return 1 - late, late

    got = euler(mix([a, b], weights), x, grid, [None, None])
    want = euler(b, euler(a, x, grid[:7]), grid[6:])
    torch.testing.assert_close(got, want, rtol=0, atol=1e-14)


def test_weights_a_channel():
    """A weight may be a tensor over the channels: here the arm follows one policy, the gripper the other."""
    x, grid = normals(4, 2, 3), linear_flow(10)
    a, b = gaussian(-0.5), gaussian(0.7)
    arm = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)
    got = euler(mix([a, b], (arm, 1 - arm)), x, grid, [None, None])
    assert torch.equal(got[..., :2], euler(a, x, grid)[..., :2]) and torch.equal(
        got[..., 2:], euler(b, x, grid)[..., 2:]
    )


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((0.5, 0.6), r"weights \[0.5, 0.6\] sum to 1.1, not to 1: divide each by their sum"),
        ((0.5,), "1 weights for 2 parts: give one weight a part"),
        ((0.2, 0.3, 0.5), "3 weights for 2 parts: give one weight a part"),
        ((math.nan, 0.5), "sum to nan, not to 1"),
        ((torch.tensor([1.0, 0.5]), torch.tensor([0.0, 0.4])), "not to 1: divide each by their sum"),
    ],
)
def test_wrong_weights_are_refused(weights, message):
    """A sum other than 1 is no mix of scores: the noise level of the result would be wrong (section 7.3)."""
    with pytest.raises(UserError, match=message):
        mix([gaussian(0.0), gaussian(1.0)], weights)


def test_a_mix_of_nothing_is_refused():
    """An error, not an IndexError."""
    with pytest.raises(UserError, match="0 parts"):
        mix([], ())


def constant(value):
    return lambda x, phi, cond=None: torch.full_like(x, value)


def test_clip_once_after_mixing():
    """Clipping each part first changes the mix exactly where a part leaves the range but the mix does not: 1.4 and
    -0.6 in halves are 0.4, clipped each 0.2. Inside the range, and for parts beyond it on one side, both agree."""
    x, phi, none = normals(2, 2, 3), torch.ones(2).double(), [None, None]

    def both(a, b):
        once = clip(mix([constant(a), constant(b)], (0.5, 0.5)))(x, phi, none)
        each = mix([clip(constant(a)), clip(constant(b))], (0.5, 0.5))(x, phi, none)
        return once.unique().tolist(), each.unique().tolist()

    assert both(1.4, -0.6) == ([pytest.approx(0.4)], [pytest.approx(0.2)])
    assert both(0.8, -0.6) == ([pytest.approx(0.1)], [pytest.approx(0.1)])
    assert both(1.4, 1.2) == ([1.0], [1.0])


def test_guidance_is_clipped_once_as_well():
    """Guidance extrapolates by design: 2 * 0.9 - 0.1 = 1.7 is clipped to 1; a weak condition of a part beyond the range
    (1.5 against 1.2, scale 2) would lose its direction if each were clipped first: 2 * 1 - 1 = 1 either way, but
    0.8 against 1.2 is 0.4, and 0.6 if each were clipped."""
    x, phi = normals(2, 2, 3), torch.ones(2).double()

    def policy(x, phi, cond=None):
        return constant(1.2 if cond is None else cond)(x, phi)

    assert clip(guide(policy, 2.0))(x, phi, 0.8).unique().item() == pytest.approx(0.4)
    assert guide(clip(policy), 2.0)(x, phi, 0.8).unique().item() == pytest.approx(0.6)


def test_clipping_parts_moves_the_samples():
    """The same in a sampler: means 1.4 and -0.6 mix to 0.4; with each part clipped the chunk ends at 0.2."""
    x, grid, none = torch.zeros(1, 1, 1, dtype=torch.float64), linear_flow(50), [None, None]
    parts = [gaussian(1.4, 1e-6), gaussian(-0.6, 1e-6)]
    once = euler(clip(mix(parts, (0.5, 0.5))), x, grid, none).item()
    each = euler(mix([clip(p) for p in parts], (0.5, 0.5)), x, grid, none).item()
    assert once == pytest.approx(0.4, abs=0.01) and each == pytest.approx(0.2, abs=0.01)
