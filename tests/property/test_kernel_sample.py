"""Samplers are solvers of one equation, and pure functions of their arguments."""

import math

import pytest
import torch

from polyarm.policies.generate import sample
from polyarm.policies.generate.angle import Schedule, ddpm, karras, linear_flow, wide
from polyarm.policies.generate.forms import normal
from polyarm.policies.generate.sample import Sampler, ancestral, ddim_released, euler, heun, multistep
from polyarm.spec import UserError

MU, V = 0.3, 0.04
SAMPLERS = {
    "euler": (euler, linear_flow(10)),
    "heun": (heun, linear_flow(10)),
    "multistep": (multistep, linear_flow(10)),
    "ddim_released": (ddim_released, linear_flow(10)),
    "ancestral": (ancestral, ddpm(Schedule())),
    "ancestral from pure noise": (ancestral, linear_flow(10)),
}
every_sampler = pytest.mark.parametrize("name", SAMPLERS)


def generators(*seeds):
    return [torch.Generator().manual_seed(s) for s in seeds]


def oracle(x, phi, cond=None):
    """The denoiser of N(MU, V) data."""
    cos, sin = wide(phi).cos(), wide(phi).sin()
    return (cos * V * x + sin**2 * MU) / (cos**2 * V + sin**2)


def exact(x, first, last):
    """Where the probability-flow equation takes x: the same quantile of the Gaussian at the last angle."""
    (c0, s0), (c1, s1) = ((math.cos(a), math.sin(a)) for a in (first, last))
    return c1 * MU + (x - c0 * MU) * math.sqrt((c1**2 * V + s1**2) / (c0**2 * V + s0**2))


def starts():
    return torch.tensor([1.0, -0.7, 0.3], dtype=torch.float64)[:, None, None]


def error(solver, grid):
    return float((solver(oracle, starts(), grid) - exact(starts(), float(grid[0]), float(grid[-1]))).abs().max())


def inside(steps):
    """Even flow times from 0.95 to 0.05: an interval without either end."""
    t = torch.linspace(0.95, 0.05, steps + 1, dtype=torch.float64)
    return torch.atan2(t, 1 - t)


@pytest.mark.parametrize(
    ("solver", "grid", "ratio"),
    [
        (euler, linear_flow, 2),
        (euler, inside, 2),
        (euler, karras, 2),
        (heun, linear_flow, 4),
        (heun, inside, 4),
        (heun, karras, 4),
        (multistep, inside, 4),
        (multistep, karras, 4),
    ],
)
def test_order(solver, grid, ratio):
    """Twice the steps: a first order solver halves its error (DDIM), a second order one quarters it (Heun: Karras et
    al., 2022, section 3; DPM-Solver++(2M): Lu et al., 2022, theorem 3.2). Multistep is second order away from pure
    noise, where its log signal-to-noise strides do not shrink with the number of steps."""
    assert error(solver, grid(80)) / error(solver, grid(160)) == pytest.approx(ratio, rel=0.13)


def test_multistep_from_pure_noise_beats_euler():
    """From pi/2 two first order steps precede the second order; still 5 times closer than Euler in 80 steps."""
    assert error(multistep, linear_flow(80)) < error(euler, linear_flow(80)) / 5


def test_multistep_after_pure_noise_is_euler_once_more():
    """The stride in log signal-to-noise from pi/2 is infinite, though the cosine of a rounded pi/2 is 6e-17 and not 0: the
    correction of the second step, one over that stride, is nothing; that of the third is not."""
    for grid in (linear_flow(10), linear_flow(10).float()):
        two = multistep(oracle, starts(), grid[:3]) - euler(oracle, starts(), grid[:3])
        three = multistep(oracle, starts(), grid[:4]) - euler(oracle, starts(), grid[:4])
        assert two.abs().max() < 1e-7 and three.abs().max() > 1e-4


@every_sampler
def test_a_perfect_denoiser_of_one_chunk_is_sampled_in_any_steps(name):
    """If the clean actions are known, whatever the noise, every sampler ends in them exactly."""
    solver, grid = SAMPLERS[name]
    action = torch.linspace(-0.9, 0.9, 6, dtype=torch.float64).view(1, 2, 3)
    x = normal(action.expand(4, 2, 3), generators(0)[0])
    got = solver(lambda x, phi, cond: action.expand_as(x), x, grid, None, generators(1)[0])
    torch.testing.assert_close(got, action.expand_as(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("steps", "std"), [(100, 0.1854), (1000, 0.1981)])
def test_ancestral_samples_the_gaussian(steps, std):
    """Ho et al. (2020), equations 6 and 7: each step is affine in x with a posterior mean that is affine in x, so mean
    and variance of the chain follow by hand; with more steps they go to the data's, N(0.3, 0.2^2)."""
    schedule = Schedule(steps)
    mean, variance = 0.0, 1.0
    for t in range(steps - 1, -1, -1):
        now, before = float(schedule.cumprod[t]), float(schedule.cumprod[t - 1]) if t else 1.0
        beta = 1 - now / before
        action, kept = before**0.5 * beta / (1 - now), (now / before) ** 0.5 * (1 - before) / (1 - now)
        power = now * V + 1 - now
        gain = kept + action * now**0.5 * V / power
        mean = gain * mean + action * (1 - now) * MU / power
        variance = gain**2 * variance + (1 - before) / (1 - now) * beta
    assert variance**0.5 == pytest.approx(std, abs=1e-4)
    x = normal(torch.empty(20_000, 1, 1, dtype=torch.float64), generators(0)[0])
    got = ancestral(oracle, x, ddpm(schedule), None, generators(1)[0])
    assert float(got.mean()) == pytest.approx(mean, abs=0.005)
    assert float(got.std()) == pytest.approx(variance**0.5, abs=0.004)


@every_sampler
def test_float32_agrees_with_float64(name, monkeypatch):
    """Started at pi/2 (or DDPM's last angle, cos = 4.9e-4) in float32, the chunk agrees to 1e-5: angles stay float64
    until sine and cosine are taken. Both precisions are fed the same noise."""
    solver, grid = SAMPLERS[name]
    monkeypatch.setattr(sample, "normal", lambda like, g: normal(like.double(), g).to(like))
    x = normal(torch.empty(64, 4, 3, dtype=torch.float64), generators(0)[0])
    wide_out = solver(oracle, x, grid, None, generators(1)[0])
    for angles in (grid, grid.float()):
        narrow = solver(oracle, x.float(), angles, None, generators(1)[0])
        assert narrow.dtype == torch.float32
        torch.testing.assert_close(narrow.double(), wide_out, rtol=0, atol=1e-5)


@every_sampler
def test_same_generator_same_chunk(name):
    """A sampler is a pure function: the global random state neither matters nor changes, another seed is another chunk."""
    solver, grid = SAMPLERS[name]
    x = normal(torch.empty(3, 4, 2), generators(0)[0])
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = solver(oracle, x, grid, None, generators(5)[0])
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert torch.equal(one, solver(oracle, x, grid, None, generators(5)[0]))
    assert torch.equal(one, solver(oracle, x, grid, None, generators(6)[0])) == (solver is not ancestral)


def test_a_generator_a_row_makes_rows_independent_of_their_batch():
    """The noise of row i is that of its own generator, whatever rows stand beside it, draw after draw."""
    like = torch.empty(3, 4, 2, dtype=torch.float64)
    batch = generators(7, 8, 9)
    draws = [normal(like, batch) for _ in range(2)]
    for i, seed in enumerate((7, 8, 9)):
        alone = generators(seed)
        for draw in draws:
            assert torch.equal(draw[i : i + 1], normal(like[:1], alone))
    assert not torch.equal(draws[0], draws[1]) and not torch.equal(draws[0][0], draws[0][1])


def test_as_many_generators_as_rows():
    """One generator too few would be spread over rows, or shrink the chunk, in silence."""
    for seeds in ((1,), (1, 2, 3, 4)):
        with pytest.raises(UserError, match=f"{len(seeds)} generators for 3 rows: give one, or one a row"):
            normal(torch.empty(3, 4, 2), generators(*seeds))


@every_sampler
def test_a_row_does_not_depend_on_its_neighbours(name):
    """With a generator a row and a row-wise denoiser, a row's chunk is the same to the bit alone and in a batch, in any
    order: environments can come and go."""
    solver, grid = SAMPLERS[name]
    seeds = (3, 4, 5, 6)
    run = Sampler(solver, grid)

    def chunk(seeds):
        rows = generators(*seeds)
        return run(oracle, normal(torch.empty(len(seeds), 4, 2), rows), None, rows)

    together = chunk(seeds)
    for i, seed in enumerate(seeds):
        assert torch.equal(together[i : i + 1], chunk((seed,)))
    assert torch.equal(together.flip(0), chunk(seeds[::-1]))


@every_sampler
def test_limit_bounds_the_chunk(name):
    """The last step ends in the clean actions, so clipped denoisers give chunks inside the limit; None never clips."""
    solver, grid = SAMPLERS[name]
    x = normal(torch.empty(8, 4, 2, dtype=torch.float64), generators(0)[0])

    def far(x, phi, cond):
        return oracle(x, phi) + 3

    clipped = Sampler(solver, grid, limit=0.7)(far, x, None, generators(1)[0])
    assert clipped.max() == pytest.approx(0.7, abs=1e-12)
    free = Sampler(solver, grid, limit=None)(far, x, None, generators(1)[0])
    assert (free > 1).any() or solver is ddim_released  # which clips to 1 itself
