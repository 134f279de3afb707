"""Flow matching's printed numbers beside Euler's: training times, the midpoint rule (published reference, section 4).

Mutations: Beta with exponent alpha instead of 1 / alpha; the midpoint's slope taken at the start; logit and t swapped.
"""

import pytest
import torch

from polyarm.config import build, compose
from polyarm.policies.generate.angle import flow_line, linear_flow, wide
from polyarm.policies.generate.forms import Beta, Flow, LogitNormal, Uniform, denoiser
from polyarm.policies.generate.sample import euler, midpoint
from polyarm.spec import ActionSpace, ObsSpace, Scale, Spec, Stream

LEVELS = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=torch.float64)


def column(*values):
    return torch.tensor(values, dtype=torch.float64)[:, None, None]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def velocity(x, t, cond=None):
    """The exact field of N(0.3, 0.5^2) data."""
    t, s2, mu = wide(t), 0.25, 0.3
    return (t - (1 - t) * s2) * (x - (1 - t) * mu) / (t**2 + (1 - t) ** 2 * s2) - mu


@pytest.mark.parametrize(
    ("steps", "ends"),
    [
        (1, (0.7, 0.02, 0.3)),
        (2, (0.79438669, -0.04607069, 0.3)),
        (5, (0.79910675, -0.04937472, 0.3)),
        (10, (0.79988474, -0.04991932, 0.3)),
    ],
)
def test_midpoint_numbers(steps, ends):
    """Section 4.2: the midpoint rule from x = (1, -0.7, 0); the walk in angles is the paper's x - v(x - v h / 2) h."""
    plain, h = column(1.0, -0.7, 0.0), 1 / steps
    for k in range(steps):
        t = torch.full((3,), 1 - k * h, dtype=torch.float64)
        plain = plain - h * velocity(plain - h / 2 * velocity(plain, t), t - h / 2)
    got = midpoint(denoiser(velocity, Flow()), column(1.0, -0.7, 0.0), linear_flow(steps))
    torch.testing.assert_close(got, plain, rtol=0, atol=1e-12)
    assert got.flatten().tolist() == pytest.approx(ends, abs=6e-9)


def test_midpoint_is_second_order():
    """Twice the steps, a quarter of the error, where Euler's is halved, on data at -1 and 1, each N(., 0.3^2); on a single
    Gaussian the second order cancels and the error falls to an eighth, as the printed numbers do."""

    def bent(x, phi, cond=None):
        cos, sin = wide(phi).cos(), wide(phi).sin()
        power = 0.09 * cos**2 + sin**2
        return (0.09 * cos * x + sin**2 * torch.tanh(cos * x / power)) / power

    x, straight = column(1.0, -0.7, 0.3), denoiser(velocity, Flow())
    fine = midpoint(bent, x, linear_flow(5120))

    def ratio(solver, denoise, end):
        error = lambda n: float((solver(denoise, x, linear_flow(n)) - end).abs().max())
        return error(80) / error(160)

    assert ratio(midpoint, bent, fine) == pytest.approx(4, rel=0.1)
    assert ratio(euler, bent, fine) == pytest.approx(2, rel=0.1)
    assert ratio(midpoint, straight, 0.3 + 0.5 * x) == pytest.approx(8, rel=0.1)


def test_midpoint_takes_an_angle_a_channel_and_ends_in_a_chunk_it_knows():
    """If the clean actions are known, whatever the noise, it ends in them; on one schedule for all channels, or on two."""
    action = torch.linspace(-0.9, 0.9, 6, dtype=torch.float64).view(1, 2, 3)
    x = torch.randn(4, 2, 3, generator=generator(), dtype=torch.float64)
    both = torch.stack([linear_flow(5), linear_flow(5) * torch.linspace(1, 0.5, 6), linear_flow(5)], 1)
    for grid in (linear_flow(5), both):
        got = midpoint(lambda x, phi, cond: action.expand_as(x), x, grid)
        torch.testing.assert_close(got, action.expand_as(x), rtol=0, atol=1e-12)


def test_beta_law():
    """Section 4.1, pi0's training times 0.999 Beta(1.5, 1) + 0.001: quantiles, mean and variance, never 0."""
    want = [0.136585, 0.397453, 0.630331, 0.825656, 0.966416]
    assert Beta().quantile(LEVELS).tolist() == pytest.approx(want, abs=5e-7)
    even = Beta().quantile((torch.arange(1_000_000, dtype=torch.float64) + 0.5) / 1_000_000)
    assert float(even.mean()) == pytest.approx(0.6004, abs=1e-6)
    assert float(even.var()) == pytest.approx(0.0684344, abs=1e-6)
    draws = Beta()(100_000, generator()).double()
    assert draws.min() >= 0.001 and draws.max() <= 1
    torch.testing.assert_close(draws.quantile(LEVELS), torch.tensor(want, dtype=torch.float64), rtol=0, atol=0.006)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.4, 1.0), (0.5, 0.3)])
def test_logit_normal_law(mean, std):
    """log(t / (1 - t)) is N(mean, std^2), by quantiles of 100,000 draws; t = 1 is noise."""
    t = LogitNormal(mean, std)(100_000, generator()).double()
    want = torch.distributions.Normal(mean, std).icdf(LEVELS)
    torch.testing.assert_close(t.logit().quantile(LEVELS), want.double(), rtol=0, atol=0.03 * std)


def test_the_uniform_law_draws_what_flow_has_always_drawn():
    """Trained figures rest on it: the same generator gives the same angles to the bit."""
    t = torch.rand(1000, generator=generator(3))
    assert torch.equal(Flow().draw(1000, generator(3)), torch.atan2(t, 1 - t))
    assert torch.equal(Uniform()(1000, generator(3)), t)


@pytest.mark.parametrize(
    ("words", "law"),
    [
        ([], Uniform()),
        (["policy.form.law._target_=polyarm.policies.generate.forms.Beta"], Beta()),
        (
            ["policy.form.law._target_=polyarm.policies.generate.forms.LogitNormal", "+policy.form.law.mean=-0.4"],
            LogitNormal(-0.4),
        ),
    ],
)
def test_the_law_is_chosen_in_yaml(words, law):
    """And is the one that training draws from."""
    obs = ObsSpace((Stream("s", "state", (1,), ("a",), ("1",), scale=Scale.identity(1)),), 10.0)
    action = ActionSpace(("x",), ("m",), "base", 10.0, scale=Scale.identity(1))
    form = build(compose(["policy=flow", *words]).policy, Spec(obs, action)).form
    assert form.law == law and form.pairing == "none"
    torch.testing.assert_close(flow_line(form.draw(9, generator()))[1], law(9, generator()), rtol=0, atol=1e-6)
