"""Samplers in sigma, and their grids: digits of BESO's released samplers on a Gaussian, for which the denoiser is known.

BESO, section 11 of the published reference: data N(0.3, 0.5^2), walked in float64 from z = (1, -0.7) at sigma 1. Its grids
were rounded to float32 while they were computed, which moves the eighth digit.
"""

import math
from functools import partial

import pytest
import torch

from polyarm.policies.generate.angle import exponential, karras, karras_line, linear_sigma, vp, wide
from polyarm.policies.generate.forms import Karras, LogLogistic, LogNormal, denoiser, normal
from polyarm.policies.generate.sample import (
    Sampler,
    ancestral,
    dpm2_step,
    dpmpp_2s_step,
    euler,
    euler_step,
    heun,
    heun_step,
    in_sigma,
    lms,
    multistep,
)
from polyarm.spec import UserError

EXACT = (0.61304952, -0.14721360)


def column(*values):
    return torch.tensor(values, dtype=torch.float64)[:, None, None]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def best(x, phi, cond=None):
    """E[action | x] of N(0.3, 0.5^2): (0.25 z + 0.3 sigma^2) / (0.25 + sigma^2)."""
    cos, sin = wide(phi).cos(), wide(phi).sin()
    return (0.25 * cos * x + 0.3 * sin**2) / (0.25 * cos**2 + sin**2)


def karras5(steps, sigma_min=0.005, sigma_max=1.0):
    return karras(steps, sigma_min, sigma_max, rho=5.0)


def ends(solver, angles):
    """Where (1, -0.7) at the first sigma goes."""
    x = column(1.0, -0.7) * angles[0].cos()
    return solver(best, x, angles, None, generator()).flatten().tolist()


GRIDS = {"exponential": exponential, "linear": linear_sigma, "karras5": karras5}
SOLVERS = {
    "euler": euler,
    "euler in sigma": partial(in_sigma, step=euler_step),
    "heun": partial(heun, line=karras_line),
    "heun in sigma": partial(in_sigma, step=heun_step),
    "dpm2": partial(in_sigma, step=dpm2_step),
    "2m": multistep,
    "2s": partial(in_sigma, step=dpmpp_2s_step),
    "lms": lms,
}


@pytest.mark.parametrize(
    ("grid", "want"),
    [
        (exponential(3), (1, 0.0707107, 0.005)),
        (linear_sigma(3), (1, 0.5025, 0.005)),
        (karras5(3), (1, 0.1383562, 0.005)),
        (
            exponential(10),
            (1, 0.555047, 0.308077, 0.170998, 0.0949117, 0.0526805, 0.0292402, 0.0162297, 0.0090082, 0.005),
        ),
        (karras5(10), (1, 0.686007, 0.456359, 0.292795, 0.179900, 0.104868, 0.0572617, 0.0287639, 0.0129413, 0.005)),
        (exponential(3, 0.1), (1, 0.316228, 0.1)),
        (linear_sigma(3, 0.1), (1, 0.55, 0.1)),
        (karras5(3, 0.1), (1, 0.360631, 0.1)),
        (exponential(3, 0.05), (1, 0.223607, 0.05)),
        (linear_sigma(3, 0.05), (1, 0.525, 0.05)),
        (karras5(3, 0.05), (1, 0.278933, 0.05)),
        (karras(10), (80, 42.41518, 21.10867, 9.72320, 4.06612, 1.50174, 0.469979, 0.116638, 0.0204353, 0.002)),
    ],
)
def test_grids_are_the_published_sigmas_then_clean(grid, want):
    """BESO, section 11.3; tan(phi) = sigma."""
    assert grid.tan().tolist() == pytest.approx([*want, 0], rel=5e-6, abs=5e-8)


def test_vp_grid_follows_its_alpha_bar():
    """Song et al. (2021): cos^2 = alpha bar = exp(-19.9 t^2 / 2 - 0.1 t) at even times from 1 to 0.001, and
    sigma = sqrt(1 / alpha bar - 1), which is 152.17 at t = 1."""
    t = torch.linspace(1, 1e-3, 7, dtype=torch.float64)
    torch.testing.assert_close(vp(7)[:-1].cos() ** 2, (-9.95 * t**2 - 0.1 * t).exp(), rtol=1e-9, atol=0)
    assert vp(7)[0].tan().item() == pytest.approx(math.sqrt(math.exp(10.05) - 1), rel=1e-9)


TABLE = {
    "euler": [(0.47630783, 0.04813167), (0.57815102, -0.09735860), (0.51173493, -0.00247848), (0.58825394, -0.11179134)],
    "heun": [(0.71255271, -0.28936102), (0.62240979, -0.16058541), (0.64130610, -0.18758014), (0.61474540, -0.14963629)],
    "dpm2": [(0.77501968, -0.37859954), (0.61907508, -0.15582154), (0.72405647, -0.30579496), (0.62004190, -0.15720271)],
    "2m": [(0.49306888, 0.02418731), (0.61312473, -0.14732104), (0.74268915, -0.33241308), (0.66551669, -0.22216670)],
    "2s": [(0.55496335, -0.06423336), (0.60825016, -0.14035737), (0.54081433, -0.04402048), (0.60650018, -0.13785740)],
    "lms": [(0.47750195, 0.04642579), (0.59512193, -0.12160276), (0.54622352, -0.05174788), (0.61291020, -0.14701457)],
}  # fmt: skip


@pytest.mark.parametrize("name", SOLVERS)
def test_samplers_on_the_gaussian(name):
    """BESO, section 11.4: exponential and linear grids of 3 and 10 steps."""
    grids = (exponential(3), exponential(10), linear_sigma(3), linear_sigma(10))
    for grid, want in zip(grids, TABLE[name.partition(" in ")[0]], strict=True):
        assert ends(SOLVERS[name], grid) == pytest.approx(want, abs=2e-8)


def test_samplers_on_the_karras_grid():
    """BESO, section 11.4: rho 5; ten steps by the first coordinate."""
    for name, three, ten in (
        ("euler", (0.50255023, 0.01064253), 0.58616778),
        ("heun", (0.69595194, -0.26564563), 0.61753450),
        ("2m", (0.55271437, -0.06102053), 0.61961545),
    ):
        assert ends(SOLVERS[name], karras5(3)) == pytest.approx(three, abs=2e-8)
        assert ends(SOLVERS[name], karras5(10))[0] == pytest.approx(ten, abs=2e-8)


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("euler", [(0.47959798, 0.04343146), (0.47632546, 0.04810649), (0.47630783, 0.04813167)]),
        ("heun", [(0.71665878, -0.29522683), (0.71259397, -0.28941995), (0.71255271, -0.28936102)]),
    ],
)
def test_each_step(name, want):
    """BESO, section 11.4: three exponential steps, one after the other."""
    grid = exponential(3)
    for i in range(3):
        x = SOLVERS[name](best, column(1.0, -0.7) * grid[0].cos(), grid[: i + 2], None)
        assert (x / grid[i + 1].cos()).flatten().tolist() == pytest.approx(want[i], abs=2e-8)


def test_order_shows_with_enough_steps_only():
    """BESO, section 11.9: distance to the exact end, first coordinate. At three steps a higher order is not better
    everywhere; at ten exponential ones Euler misses by 0.035, Heun by 0.0094, DPM++(2M) by 0.00008."""
    errors = {
        "exponential": (0.137, 0.100, 0.162, 0.120),
        "linear": (0.101, 0.028, 0.111, 0.130),
        "karras5": (0.110, 0.083, 0.094, 0.060),
    }
    for grid, row in errors.items():
        for name, want in zip(("euler", "heun", "dpm2", "2m"), row, strict=True):
            assert abs(ends(SOLVERS[name], GRIDS[grid](3))[0] - EXACT[0]) == pytest.approx(want, abs=5.1e-4)
    for name, want in (("euler", 0.035), ("heun", 0.0094), ("2m", 0.00008)):
        assert abs(ends(SOLVERS[name], exponential(10))[0] - EXACT[0]) == pytest.approx(want, rel=0.06)
    for solver in SOLVERS.values():
        assert ends(solver, exponential(3000)) == pytest.approx(EXACT, abs=2e-4)


@pytest.mark.parametrize(
    ("grid", "want"),
    [
        (exponential(3), [(0.005, 0.0705337), (0.000353553, 0.00498748), (0, 0)]),
        (linear_sigma(3), [(0.252506, 0.434450), (4.97512e-5, 0.00499975), (0, 0)]),
    ],
)
def test_ancestral_splits_a_step_into_down_and_up(grid, want):
    """BESO, section 11.5. A denoiser that answers 0 leaves z * down / sigma + up * noise."""
    for i, (down, up) in enumerate(want):
        pair, start = grid[i : i + 2], column(1.0, 1.0)
        got = in_sigma(
            lambda x, phi, cond: 0 * x, start * pair[0].cos(), pair, None, generator(), step=euler_step, eta=1.0
        )
        noise = normal(start, generator())
        torch.testing.assert_close(got / pair[1].cos(), down / pair[0].tan() + up * noise, rtol=1e-5, atol=1e-7)


def without_noise(step, angles, monkeypatch):
    monkeypatch.setattr("polyarm.policies.generate.sample.normal", lambda like, generator: torch.zeros_like(like))
    return ends(partial(in_sigma, step=step, eta=1.0), angles)


def test_ancestral_without_its_noise(monkeypatch):
    """BESO, section 11.5: Euler gives the posterior mean E[action | z] at sigma 1 on any grid; the others their digits."""
    for grid in (exponential(3), linear_sigma(3), karras5(7)):
        assert without_noise(euler_step, grid, monkeypatch) == pytest.approx((0.44, 0.10), abs=1e-12)
    for step, grid, want in (
        (dpmpp_2s_step, exponential(3), (0.47542127, 0.04939819)),
        (dpmpp_2s_step, linear_sigma(3), (0.46755154, 0.06064066)),
        (dpm2_step, exponential(3), (0.94948362, -0.62783374)),
    ):
        assert without_noise(step, grid, monkeypatch) == pytest.approx(want, abs=2e-8)


def test_ancestral_euler_is_ddpm():
    """With eta 1 the same chunk as `ancestral` from the same generator; with eta 0 Euler's."""
    x, grid = torch.randn(8, 4, 3, generator=generator(1), dtype=torch.float64), exponential(6, 0.01, 30.0)
    for eta, same in ((1.0, ancestral), (0.0, euler)):
        got = in_sigma(best, x, grid, None, generator(), step=euler_step, eta=eta)
        torch.testing.assert_close(got, same(best, x, grid, None, generator()), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("churn", "eta"), [(0.5, 0.0), (40.0, 0.0), (0.0, 0.5), (0.0, 1.0)])
def test_noise_that_is_added_is_taken_away_again(churn, eta):
    """Karras et al. (2022), section 4: adding noise and denoising it leaves the law of the samples alone. Many small
    steps from the exact law at sigma 80 end in N(0.3, 0.5^2)."""
    x = torch.randn(4000, 1, 2, generator=generator(2), dtype=torch.float64)
    grid = exponential(200, 0.002, 80.0)
    y = in_sigma(best, x, grid, None, generator(3), step=heun_step, churn=churn, eta=eta)
    assert y.mean().item() == pytest.approx(0.3, abs=0.03)
    assert y.std().item() == pytest.approx(0.5, abs=0.03)
    if churn or eta:  # and it is fresh noise: the end does not follow from the start alone
        again = in_sigma(best, x, grid, None, generator(4), step=heun_step, churn=churn, eta=eta)
        assert (y - again).std() > 0.05


def test_churn_raises_sigma_by_its_rule():
    """Karras et al. (2022), algorithm 2: gamma = min(churn / steps, sqrt(2) - 1). One Euler step of the zero denoiser from
    sigma 1 to 0.5 shrinks by 0.5 / (1 + gamma) whatever noise was added."""
    grid, asked = torch.tensor([1.0, 0.5], dtype=torch.float64).atan(), []

    def zero(x, phi, cond):
        asked.append(phi.tan().max().item())
        return 0 * x

    for churn, gamma in ((0.0, 0.0), (0.25, 0.25), (9.0, 2**0.5 - 1)):
        start = column(1.0, 1.0)
        got = in_sigma(zero, start * grid[0].cos(), grid, None, generator(), step=euler_step, churn=churn)
        raised = 1 + (((1 + gamma) ** 2 - 1) ** 0.5) * normal(start, generator())
        torch.testing.assert_close(got / grid[1].cos(), raised * 0.5 / (1 + gamma), rtol=1e-9, atol=0)
        assert asked[-1] == pytest.approx(1 + gamma)


def test_lms_is_adams_bashforth_on_even_steps():
    """Weights (55, -59, 37, -9) / 24 of order 4: with the derivative known, dz/dsigma = sigma^3 is integrated exactly."""

    def cubic(x, phi, cond=None):  # z - D = sigma * sigma^3
        sigma = wide(phi).tan()
        return x / wide(phi).cos() - sigma**4

    even = torch.tensor([5.0, 4, 3, 2, 1], dtype=torch.float64).atan()
    slopes = torch.tensor([[125.0], [64], [27], [8]]).double()
    by_hand = (
        slopes[0] * -1 + (3 * slopes[1] - slopes[0]) / -2 + (23 * slopes[2] - 16 * slopes[1] + 5 * slopes[0]) / -12
    )
    by_hand = by_hand + (55 * slopes[3] - 59 * slopes[2] + 37 * slopes[1] - 9 * slopes[0]) / -24
    got = lms(cubic, column(7.0) * even[0].cos(), even) / even[-1].cos()
    assert got.item() == pytest.approx(7 + by_hand.item(), abs=1e-9)
    assert (55 * 8 - 59 * 27 + 37 * 64 - 9 * 125) / -24 == pytest.approx((1 - 16) / 4)


def test_a_schedule_a_channel_is_each_channel_alone():
    """[steps + 1, d] angles: every channel as if it were walked by itself."""
    grid = torch.stack([exponential(4), linear_sigma(4, 0.01, 2.0)], 1)
    x = torch.randn(5, 3, 2, generator=generator(), dtype=torch.float64)
    for solver in (lms, *(partial(in_sigma, step=s) for s in (euler_step, heun_step, dpm2_step, dpmpp_2s_step))):
        apart = [solver(best, x[..., i : i + 1], grid[:, i]) for i in range(2)]
        torch.testing.assert_close(solver(best, x, grid), torch.cat(apart, -1), rtol=1e-9, atol=1e-12)


def test_the_start_of_a_score_model_is_sigma_times_noise():
    """k-diffusion starts at z = sigma_max * N(0, 1), that is x = sin(phi) * N(0, 1). From sigma 1 a standard normal x would
    be z of standard deviation 1.41."""
    x = torch.randn(50_000, 1, 1, generator=generator(), dtype=torch.float64)
    seen = []

    def watch(x, phi, cond):
        seen.append((x / wide(phi).cos()).std().item())
        return best(x, phi)

    for shrink, want in ((True, 1.0), (False, 2**0.5)):
        Sampler(euler, exponential(3), shrink=shrink)(watch, x, None, generator())
        assert seen[-3] == pytest.approx(want, rel=0.01)
    half = torch.tensor([math.pi / 2, 0.3, 0.0], dtype=torch.float64)
    both = [Sampler(euler, half, shrink=shrink)(best, x, None, generator()) for shrink in (True, False)]
    torch.testing.assert_close(*both, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("sigma", "skip", "out", "enter", "noise", "weight"),
    [
        (0.005, 0.9999000, 0.0049998, 1.9999000, -1.3245793, 40004),
        (0.05, 0.9900990, 0.0497519, 1.9900744, -0.7489331, 404),
        (0.1, 0.9615385, 0.0980581, 1.9611614, -0.5756463, 104),
        (0.5, 0.5, 0.3535534, 1.4142136, -0.1732868, 8),
        (1.0, 0.2, 0.4472136, 0.8944272, 0.0, 5),
    ],
)
def test_preconditioning(sigma, skip, out, enter, noise, weight):
    """BESO, section 11.2 (EDM, table 1, sigma_data 0.5): D = c_skip z + c_out F(c_in z, c_noise); the loss on F weighs the
    error of D by 1 / c_out^2."""
    form, phi = Karras(0.5), torch.tensor([sigma], dtype=torch.float64).atan()
    z, zero = column(1.0), column(0.0)
    entered, clock = form.enter(z * phi.cos(), phi)
    assert entered.item() == pytest.approx(enter, abs=6e-8) and clock.item() == pytest.approx(noise, abs=6e-8)
    assert form.leave(zero, z * phi.cos(), phi).item() == pytest.approx(skip, abs=6e-8)
    assert form.leave(z, zero, phi).item() == pytest.approx(out, abs=6e-8)
    assert form.leave(z, zero, phi).item() ** -2 == pytest.approx(weight, rel=2e-5)


def test_the_optimal_network_on_the_gaussian():
    """BESO, section 11.7: F at z = 1 from F = (D - c_skip z) / c_out, and it reads back as the denoiser."""
    form = Karras(0.5)
    for sigma, want in ((0.05, 0.05970223), (0.5, 0.42426407), (1.0, 0.53665631)):
        phi = torch.tensor([sigma], dtype=torch.float64).atan()
        x, zero = column(1.0) * phi.cos(), column(0.0)
        skip, out = form.leave(zero, x, phi), form.leave(column(1.0), zero, phi)
        found = (best(x, phi) - skip) / out
        assert found.item() == pytest.approx(want, abs=2e-8)
        read = denoiser(lambda z, clock, cond, found=found: found, form)
        torch.testing.assert_close(read(x, phi), best(x, phi), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("low", "quantiles", "mean"),
    [
        (0.005, (0.10219, 0.25006, 0.40829, 0.61240, 0.88977), 0.4419),
        (0.05, (0.11399, 0.25579, 0.41247, 0.61554, 0.89097), 0.4473),
    ],
)
def test_log_logistic_training_noise(low, quantiles, mean):
    """BESO, section 11.6: quantiles 5, 25, 50, 75, 95 % of the cut law, and what `draw` draws."""
    levels = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=torch.float64)
    assert LogLogistic().quantile(levels, low, 1.0).tolist() == pytest.approx(quantiles, abs=6e-6)
    ends = LogLogistic().quantile(torch.tensor([0.0, 1.0], dtype=torch.float64), low, 1.0)
    assert ends.tolist() == pytest.approx([low, 1.0], rel=1e-9)
    sigma = Karras(law=LogLogistic(), sigma_min=low, sigma_max=1.0).draw(200_000, generator()).tan()
    assert sigma.mean().item() == pytest.approx(mean, abs=0.002)
    assert sigma.double().quantile(levels).tolist() == pytest.approx(quantiles, abs=0.004)
    if low == 0.005:
        assert sigma.std().item() == pytest.approx(0.2400, abs=0.002)


def test_log_normal_training_noise_stays_in_its_range():
    """EDM, table 1, clamped: with a narrow range what lies outside gathers at its ends."""
    sigma = Karras(law=LogNormal(-1.2, 1.2), sigma_min=0.1, sigma_max=1.0).draw(100_000, generator()).tan()
    below = torch.distributions.Normal(-1.2, 1.2).cdf(torch.tensor(math.log(0.1)))
    assert (sigma < 0.1 + 1e-6).float().mean().item() == pytest.approx(below.item(), abs=0.01)
    assert sigma.max().item() == pytest.approx(1.0, rel=1e-5)


def test_wrong_settings_say_what_is_right():
    """Errors name the value, the expectation and the remedy."""
    half = torch.tensor([math.pi / 2, 0.0], dtype=torch.float64)
    for solver in (lms, partial(in_sigma, step=euler_step)):
        with pytest.raises(UserError, match="sigma is infinite at pure noise: start from a finite one"):
            solver(best, column(1.0), half)
    with pytest.raises(UserError, match="churn=0.0, eta=1.0 draw noise at every step: give a generator"):
        in_sigma(best, column(1.0), exponential(3), step=euler_step, eta=1.0)
    for grid, name in ((exponential, "exponential"), (linear_sigma, "linear")):
        with pytest.raises(UserError, match=f"{name} grid from sigma 1.0 to 2.0: give 0 < sigma_min <= sigma_max"):
            grid(3, 2.0, 1.0)
        with pytest.raises(UserError, match="steps=0: give 1 or more"):
            grid(0)
