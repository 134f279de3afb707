"""Published numbers and algorithms of the families other than DDPM: rectified flow, EDM, general policy composition."""

import math
from itertools import pairwise

import pytest
import torch

from polyarm.policies.generate.angle import Schedule, ddim_leading, karras, karras_line, linear_flow, wide
from polyarm.policies.generate.compose import mix
from polyarm.policies.generate.forms import Flow, denoiser
from polyarm.policies.generate.sample import euler, heun, multistep
from polyarm.spec import UserError


def gaussian(mu, v):
    """The denoiser of N(mu, v) data."""

    def denoise(x, phi, cond=None):
        cos, sin = wide(phi).cos(), wide(phi).sin()
        return (cos * v * x + sin**2 * mu) / (cos**2 * v + sin**2)

    return denoise


def column(*values):
    return torch.tensor(values, dtype=torch.float64)[:, None, None]


def velocity(x, t, cond=None):
    """The exact field of N(0.3, 0.5^2) data."""
    t, s2, mu = wide(t), 0.25, 0.3
    return (t - (1 - t) * s2) * (x - (1 - t) * mu) / (t**2 + (1 - t) ** 2 * s2) - mu


@pytest.mark.parametrize(
    ("steps", "ends"),
    [
        (1, (0.3, 0.3, 0.3)),
        (2, (0.5, 0.16, 0.3)),
        (3, (0.59411765, 0.09411765, 0.3)),
        (5, (0.66923077, 0.04153846, 0.3)),
        (10, (0.73078260, -0.00154782, 0.3)),
        (50, (0.78539674, None, 0.3)),
        (100, (0.79264548, None, 0.3)),
    ],
)
def test_flow_euler_numbers(steps, ends):
    """Flow matching, section 4.2 of the published reference: Euler on the exact field from x = (1, -0.7, 0). One step
    returns the mean of the data. The walk in angles is the walk x <- x - v / steps of the paper."""
    x = plain = column(1.0, -0.7, 0.0)
    for k in range(steps):
        plain = plain - velocity(plain, torch.full((3,), 1 - k / steps, dtype=torch.float64)) / steps
    got = euler(denoiser(velocity, Flow()), x, linear_flow(steps))
    torch.testing.assert_close(got, plain, rtol=0, atol=1e-12)
    for value, want in zip(got.flatten().tolist(), ends, strict=True):
        assert want is None or value == pytest.approx(want, abs=6e-9)


def test_flow_ends_in_the_exact_map():
    """Section 4.2: the exact ends are (0.8, -0.05, 0.3), that is mu + std * noise."""
    got = heun(denoiser(velocity, Flow()), column(1.0, -0.7, 0.0), linear_flow(1000))
    torch.testing.assert_close(got, column(0.8, -0.05, 0.3), rtol=0, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 18])
def test_karras_grid_is_equation_5(steps):
    """Karras et al. (2022), equation 5: sigma_i = (max^(1/7) + i / (n - 1) (min^(1/7) - max^(1/7)))^7, then 0."""
    high, low = 80 ** (1 / 7), 0.002 ** (1 / 7)
    want = [(high + i / max(steps - 1, 1) * (low - high)) ** 7 for i in range(steps)] + [0.0]
    assert karras(steps).tan().tolist() == pytest.approx(want, rel=1e-9)
    if steps == 18:
        some = karras(18).tan()[[0, 1, 2, 9, 16, 17]].tolist()
        assert some == pytest.approx([80, 57.58598, 40.78557, 1.92334, 0.00753, 0.002], abs=5e-6)


def test_heun_on_the_karras_line_is_edm_algorithm_1():
    """Karras et al. (2022), algorithm 1 with no churn, 18 steps, in the paper's own z = action + sigma * noise."""

    def denoise(x, phi, cond=None):  # not linear in x, so that halving the slopes elsewhere would show
        return torch.tanh(3 * gaussian(0.3, 0.04)(x, phi) + 0.2 * wide(phi).sin())

    sigma = [(80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(18)] + [0.0]
    x = torch.randn(16, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def paper(z, s):
        phi = torch.full((len(z),), math.atan(s), dtype=torch.float64)
        return denoise(z * math.cos(math.atan(s)), phi)

    z = x / math.cos(math.atan(80.0))
    for now, nxt in pairwise(sigma):
        d = (z - paper(z, now)) / now
        ahead = z + (nxt - now) * d
        if nxt:
            ahead = z + (nxt - now) * (d + (ahead - paper(ahead, nxt)) / nxt) / 2
        z = ahead
    got = heun(denoise, x, karras(18), line=karras_line)
    torch.testing.assert_close(got, z, rtol=0, atol=1e-7)


def test_wrong_karras_settings_say_what_is_right():
    """Sigma is infinite at pure noise, where only the flow line walks; and a grid falls."""
    with pytest.raises(UserError, match="karras_line is infinite at pure noise: start from a finite sigma"):
        heun(gaussian(0.0, 1.0), column(1.0), linear_flow(4), line=karras_line)
    with pytest.raises(UserError, match="from sigma 0.002 to 80.0: give 0 < sigma_min <= sigma_max"):
        karras(4, sigma_min=80.0, sigma_max=0.002)
    for grid in (karras, linear_flow):
        with pytest.raises(UserError, match="steps=0: give 1 or more"):
            grid(0)


def composed(w, sampler, grid):
    """(mean, variance) of the mix of N(-0.5, 0.04) and N(0.7, 0.09): its sampler is affine in the noise."""
    experts = mix([gaussian(-0.5, 0.04), gaussian(0.7, 0.09)], (w, 1 - w))
    zero, one = sampler(experts, column(0.0, 1.0), grid, [None, None]).flatten().tolist()
    return zero, (one - zero) ** 2


LIMIT = [
    (0.0, (0.7, 0.09)),
    (0.2, (0.405914, 0.076525)),
    (0.4, (0.141489, 0.065068)),
    (0.5, (0.019534, 0.06)),
    (0.8, (-0.309083, 0.047043)),
    (1.0, (-0.5, 0.04)),
]


@pytest.mark.parametrize(("w", "want"), LIMIT)
def test_composed_gaussians_in_the_limit(w, want):
    """General policy composition, section 7.2 of the published reference: the deterministic sampler of a mix of
    scores converges to variance v1^w v2^(1 - w), on every grid; and not to the power product p1^w p2^(1 - w), whose
    mean for w = 0.4 is -0.02."""
    for sampler, grid in ((heun, linear_flow(600)), (multistep, linear_flow(600))):
        assert composed(w, sampler, grid) == pytest.approx(want, abs=3e-5)
    assert want[1] == pytest.approx(0.04**w * 0.09 ** (1 - w), abs=1e-6)


@pytest.mark.parametrize(
    ("w", "grid", "want"),
    [
        (0.4, ddim_leading(Schedule(), 10), (0.140023, 0.041758)),
        (0.4, ddim_leading(Schedule(), 100), (0.140659, 0.061547)),
        (1.0, ddim_leading(Schedule(), 10), (-0.489411, 0.022946)),
        (1.0, ddim_leading(Schedule(), 100), (-0.499952, 0.037277)),
        (0.4, linear_flow(5), (0.153694, 0.026598)),
        (0.4, linear_flow(100), (0.141510, 0.062360)),
        (0.4, linear_flow(5000), (0.141489, 0.065013)),
    ],
)
def test_composed_gaussians_in_few_steps(w, grid, want):
    """Section 7.2: the same mix in 10 and 100 DDIM steps and in 5, 100, 5000 rectified flow steps."""
    assert composed(w, euler, grid) == pytest.approx(want, abs=2e-6)


@pytest.mark.parametrize(
    ("w", "steps", "want"),
    [
        (0.5, 100, (0.123, 0.753, 0.124)),
        (0.3, 100, (0.007, 0.718, 0.275)),
        (0.7, 100, (0.278, 0.715, 0.008)),
        (0.5, 10, (0.098, 0.806, 0.096)),
    ],
)
def test_the_mode_that_experts_share_gains(w, steps, want):
    """Section 7.6: experts 1/2 N(-1, 0.01) + 1/2 N(0, 0.01) and 1/2 N(0, 0.01) + 1/2 N(1, 0.01): the mass near -1, 0, 1
    of their mix, by quantiles of the noise where the reference drew samples (+-0.003)."""

    def expert(modes):
        parts = [gaussian(mu, 0.01) for mu in modes]

        def denoise(x, phi, cond=None):
            cos, sin = wide(phi).cos(), wide(phi).sin()
            power = cos**2 * 0.01 + sin**2
            share = torch.stack([-((x - cos * mu) ** 2) / (2 * power) for mu in modes]).softmax(0)
            return sum(s * part(x, phi) for s, part in zip(share, parts, strict=True))

        return denoise

    n = 4001
    level = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    x = torch.distributions.Normal(0.0, 1.0).icdf(level)[:, None, None]
    both = mix([expert((-1.0, 0.0)), expert((0.0, 1.0))], (w, 1 - w))
    out = euler(both, x, linear_flow(steps), [None, None]).flatten()
    mass = [float(((out - mode).abs() < 0.5).double().mean()) for mode in (-1.0, 0.0, 1.0)]
    assert mass == pytest.approx(want, abs=0.004)
