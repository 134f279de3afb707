"""Every form, and every energy, reads as the same denoiser: the posterior mean of the actions.

The oracle is a Gaussian N(mu, v) a channel, for which everything is known in closed form. `trained` is the network
that training would end at, written from each family's own paper in its own clock and coordinates.
"""

import math
from typing import Any

import pytest
import torch

from polyarm.policies.generate import forms
from polyarm.policies.generate.angle import Schedule, flow_line, linear_flow, wide
from polyarm.policies.generate.compose import mix
from polyarm.policies.generate.energy import Energy, descent, gradient
from polyarm.policies.generate.forms import Diffusion, Flow, Karras, denoiser
from polyarm.policies.generate.sample import euler
from polyarm.spec import UserError

MU = torch.tensor([0.3, -0.5, 0.1], dtype=torch.float64)
V = 0.04
ANGLES = Schedule().angles
FORMS: dict[str, Any] = {
    "flow velocity": Flow(),
    "flow actions": Flow("actions"),
    "diffusion noise": Diffusion(),
    "diffusion actions": Diffusion(predict="actions"),
    "diffusion velocity": Diffusion(predict="velocity"),
    "diffusion linear": Diffusion(Schedule(1000, "linear")),
    "karras 0.5": Karras(),
    "karras 0.2": Karras(scale=0.2),
    "karras 1": Karras(scale=1.0),
}
every_form = pytest.mark.parametrize("name", FORMS)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def posterior(x, phi, mu=MU, v=V):
    """(mean action, mean noise) given x."""
    cos, sin = wide(phi).cos(), wide(phi).sin()
    power = cos**2 * v + sin**2
    return (cos * v * x + sin**2 * mu) / power, sin * (x - cos * mu) / power


def oracle(x, phi, cond=None):
    return posterior(x, phi)[0]


def trained(form, mu=MU, v=V):
    def flow(z, t, cond=None):
        phi = torch.atan2(t, 1 - t)
        action, noise = posterior(z * wide(phi.cos() + phi.sin()), phi, mu, v)
        return {"velocity": noise - action, "actions": action}[form.predict]

    def diffusion(x, index, cond=None):
        below = index.floor().long().clamp(max=form.schedule.steps - 2)
        angles = form.schedule.angles.to(x)
        phi = torch.lerp(angles[below], angles[below + 1], index - below)
        action, noise = posterior(x, phi, mu, v)
        velocity = wide(phi).cos() * noise - wide(phi).sin() * action
        return {"noise": noise, "actions": action, "velocity": velocity}[form.predict]

    def karras(z, clock, cond=None):  # table 1: c_in, c_skip, c_out, c_noise
        sigma, data = wide((4 * clock).exp()), form.scale
        y = z * (sigma**2 + data**2).sqrt()
        action, _ = posterior(y * wide((4 * clock).exp().atan()).cos(), (4 * clock).exp().atan(), mu, v)
        skip = data**2 / (sigma**2 + data**2)
        return (action - skip * y) * (sigma**2 + data**2).sqrt() / (sigma * data)

    return {Flow: flow, Diffusion: diffusion, Karras: karras}[type(form)]


def trained_angles(form, n):
    """Evenly over all the angles that the form is trained on."""
    low, high = 0.0, math.pi / 2
    if isinstance(form, Diffusion):
        low, high = float(form.schedule.angles[0]), float(form.schedule.angles[-1])
    if isinstance(form, Karras):
        low, high = math.atan(form.sigma_min), math.atan(form.sigma_max)
    return torch.linspace(low, high, n, dtype=torch.float64)


@every_form
def test_every_form_reads_as_the_same_denoiser(name):
    """D(x) = E[action | x]: DDPM equation 11 (Ho et al., 2020), rectified flow equation 2, EDM equation 7 and table 1,
    v-prediction (Salimans and Ho, 2022, appendix D)."""
    form = FORMS[name]
    phi = trained_angles(form, 301)
    x = normal(len(phi), 2, 3)
    torch.testing.assert_close(denoiser(trained(form), form)(x, phi), oracle(x, phi), rtol=1e-9, atol=1e-9)


@every_form
def test_leave_undoes_target(name):
    """The prediction is p * action + q * noise, x = cos * action + sin * noise: two equations give back the action."""
    form = FORMS[name]
    phi = trained_angles(form, 301)
    if not isinstance(form, Diffusion):
        phi = torch.linspace(0, math.pi / 2, 301, dtype=torch.float64)
    action, noise = normal(len(phi), 2, 3), normal(len(phi), 2, 3, seed=1)
    x = wide(phi).cos() * action + wide(phi).sin() * noise
    torch.testing.assert_close(form.leave(form.target(action, noise, phi), x, phi), action, rtol=0, atol=1e-11)


@every_form
def test_leave_undoes_target_with_an_angle_a_channel(name):
    """The same two equations, each channel at its own noise level (3D Diffuser Actor, section 3.3)."""
    form = FORMS[name]
    phi = trained_angles(form, 60)[torch.randperm(60, generator=generator())].view(20, 3)
    action, noise = normal(20, 2, 3), normal(20, 2, 3, seed=1)
    x = wide(phi).cos() * action + wide(phi).sin() * noise
    torch.testing.assert_close(form.leave(form.target(action, noise, phi), x, phi), action, rtol=0, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@every_form
def test_at_the_ends_the_answer_is_the_chunk_itself_and_the_mean(name, dtype):
    """At phi = 0 the chunk is clean; at pi/2 it tells nothing and E[action | x] is the mean of the demonstrations. Also
    beyond the angles a form is trained on, where sigma and log(sigma) are infinite."""
    form, clean, noisy = FORMS[name], (MU + V**0.5 * normal(8, 2, 3)).to(dtype), normal(8, 2, 3).to(dtype)
    net = trained(form, MU.to(dtype))
    for phi in (0.0, torch.finfo(dtype).tiny, 1e-9):
        got = denoiser(net, form)(clean, torch.full((8,), phi, dtype=dtype))
        torch.testing.assert_close(got, clean, rtol=0, atol=0.02)
    for phi in (math.pi / 2 - 1e-9, math.pi / 2):
        got = denoiser(net, form)(noisy, torch.full((8,), phi, dtype=dtype))
        torch.testing.assert_close(got, MU.to(dtype).expand_as(noisy), rtol=0, atol=0.04)


@every_form
def test_a_wild_network_has_a_bounded_answer_at_every_angle(name):
    """|leave(out)| is at most a constant times |x| + |out|; only predicted noise is amplified, by 1 / cos of the last
    trained angle (2034 for the squared-cosine schedule, whose last alpha bar is 2.4e-7)."""
    form = FORMS[name]
    phi = torch.linspace(0, math.pi / 2, 1001, dtype=torch.float64)
    x, out = normal(1001, 2, 3), normal(1001, 2, 3, seed=1)
    worst = (form.leave(out, x, phi).abs().amax((1, 2)) / (x.abs() + out.abs()).amax((1, 2))).max()
    noise = isinstance(form, Diffusion) and form.predict == "noise"
    bound = 1 / float(form.schedule.angles[-1].cos()) if noise else max(1.0, getattr(form, "scale", 1.0))
    assert worst <= bound * (1 + 1e-12)


@every_form
def test_the_posterior_mean_is_the_minimum_of_the_loss(name):
    """Denoising score matching (Vincent, 2011): off the posterior mean by d, the squared error grows by E d^2, because
    the rest of the error is orthogonal to every function of x."""
    form, n = FORMS[name], 20_000
    action = MU + V**0.5 * normal(n, 1, 3)
    best = trained(form)

    def off(z, clock, cond):
        seen.append(0.3 * torch.sin(3 * z) + 0.1 * z)
        return best(z, clock) + seen[-1]

    seen: list[torch.Tensor] = []
    least = forms.loss(best, form, action, None, generator(5))
    more = forms.loss(off, form, action, None, generator(5))
    growth = float(seen[0].square().mean())
    assert float(more - least) == pytest.approx(growth, rel=0.1)


def test_training_angles_have_their_published_laws():
    """Flow: t uniform; DDPM: the step uniform over the schedule (algorithm 1); EDM: log sigma is N(-1.2, 1.2^2) (table
    1). Compared by quantiles of 100,000 draws."""
    n, level = 100_000, torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])
    t = flow_line(Flow().draw(n, generator()))[1]
    torch.testing.assert_close(t.quantile(level), level, rtol=0, atol=0.01)
    steps = torch.searchsorted(ANGLES - 1e-9, Diffusion().draw(n, generator())) - 1
    counts = torch.bincount(steps, minlength=100)
    assert len(counts) == 100 and (counts - 1000).abs().max() < 160  # five standard deviations
    log_sigma = Karras().draw(n, generator()).tan().log()
    want = torch.distributions.Normal(-1.2, 1.2).icdf(level)
    torch.testing.assert_close(log_sigma.quantile(level), want, rtol=0, atol=0.03)


def test_unknown_prediction_lists_the_known_ones():
    """An error names the value, the nearest name and all that are known."""
    with pytest.raises(UserError, match="'velocty': did you mean 'velocity'.*actions"):
        Flow("velocty")
    with pytest.raises(UserError, match="'epsilon'.*actions, noise, velocity"):
        Diffusion(predict="epsilon")


def gaussian_energy(mu=MU, v=V):
    def energy(x, phi, cond):
        cos, sin = wide(phi).cos(), wide(phi).sin()
        return ((x - cos * mu) ** 2 / (2 * (cos**2 * v + sin**2))).sum((1, 2))

    return energy


def test_gradient_of_a_noise_conditional_energy_is_the_same_denoiser():
    """Tweedie: -gradient = (cos * action - x) / sin^2 (Vincent, 2011)."""
    phi = torch.linspace(0, 1.56, 300, dtype=torch.float64)
    x = normal(300, 2, 3)
    with torch.no_grad():  # samplers run without gradients, energies need theirs nevertheless
        got = denoiser(gradient(gaussian_energy()), Energy())(x, phi)
    torch.testing.assert_close(got, oracle(x, phi), rtol=1e-9, atol=1e-9)


def test_an_energy_stays_bounded_at_pure_noise():
    """At pi/2 the exact energy reads as a denoiser to what sigma = 1000 leaves of it, and an error of the gradient grows at most
    a thousandfold. Mutation: drop the clamp in `Energy.leave`."""
    phi = torch.full((50,), math.pi / 2, dtype=torch.float64)
    x = normal(50, 2, 3)
    exact = gradient(gaussian_energy())
    off = lambda x, phi, cond=None: exact(x, phi, cond) + 1e-3
    with torch.no_grad():
        torch.testing.assert_close(denoiser(exact, Energy())(x, phi), MU.expand_as(x), rtol=0, atol=5e-3)
        assert (denoiser(off, Energy())(x, phi) - denoiser(exact, Energy())(x, phi)).abs().max() < 1.01


def test_one_descent_is_one_euler_step_to_clean():
    """Descent of an energy blind to the noise (EBT, Gladstone et al., 2025, equation 2) is one Euler step from pure noise
    to zero noise; on ||x - mu||^2 / 2 each step shrinks the distance by 1 - rate."""
    x = normal(8, 2, 3)
    denoise = descent(lambda x, phi, cond: ((x - MU) ** 2 / 2).sum((1, 2)), steps=7, rate=0.2)
    got = euler(denoise, x, torch.tensor([math.pi / 2, 0.0], dtype=torch.float64))
    torch.testing.assert_close(got, MU + 0.8**7 * (x - MU), rtol=1e-12, atol=1e-12)


def image_of(sample):
    """(mean, std) of a sampler whose map from N(0, 1) noise to chunks is affine, channel by channel."""
    ends = sample(torch.stack([torch.zeros(1, 3), torch.ones(1, 3)]).double())[:, 0]
    return ends[0], (ends[1] - ends[0]).abs()


def test_a_mix_across_families_samples_the_exact_gaussian():
    """General policy composition, section 2.2: flow, diffusion, EDM and energy with means mu_k and one variance v mix to
    N(sum w_k mu_k, v), for equal angle means equal score whatever each network predicts."""
    mus, w = 0.3 * normal(4, 3), (0.4, 0.3, 0.2, 0.1)
    families: tuple[forms.Form, ...] = (Flow(), Diffusion(), Karras())
    parts = [denoiser(trained(f, mus[k]), f) for k, f in enumerate(families)]
    parts.append(denoiser(gradient(gaussian_energy(mus[3])), Energy()))
    grid = torch.cat([torch.linspace(1.56, 0.01, 300, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])
    mean, std = image_of(lambda x: euler(mix(parts, w), x, grid, [None] * 4))
    want = sum(a * m for a, m in zip(w, mus, strict=True))
    torch.testing.assert_close(mean, want, rtol=0, atol=0.01)
    torch.testing.assert_close(std, torch.full_like(std, V**0.5), rtol=0, atol=0.01)


def test_averaging_raw_outputs_across_families_is_wrong():
    """What released composition code does: the weighted sum of a flow's velocity and a DDPM's noise, walked as noise.
    Means +-0.4 must give mean 0, std 0.2; the raw average gives nothing of the kind, the mix of clean actions does."""
    up, down = torch.full((3,), 0.4).double(), torch.full((3,), -0.4).double()
    flow, ddpm = Flow(), Diffusion()

    def raw(x, index, cond=None):
        return 0.5 * trained(flow, up)(x, (index + 1) / 100) + 0.5 * trained(ddpm, down)(x, index)

    grid = torch.cat([ANGLES.flip(0), torch.zeros(1, dtype=torch.float64)])
    wrong_mean, wrong_std = image_of(lambda x: euler(denoiser(raw, ddpm), x, grid))
    parts = [denoiser(trained(flow, up), flow), denoiser(trained(ddpm, down), ddpm)]
    mean, std = image_of(lambda x: euler(mix(parts, (0.5, 0.5)), x, grid, [None, None]))
    assert mean.abs().max() < 0.01 and (std - 0.2).abs().max() < 0.01
    assert wrong_mean.abs().max() > 0.1 or (wrong_std - 0.2).abs().max() > 0.1


def test_flow_starts_at_pure_noise_in_the_mean_exactly():
    """Rectified flow, section 2.2: one Euler step of the perfect field from t = 1 returns the mean of the data."""
    x = normal(8, 2, 3)
    torch.testing.assert_close(
        euler(denoiser(trained(Flow()), Flow()), x, linear_flow(1)), MU.expand_as(x), rtol=0, atol=1e-12
    )
