"""The identities of one-step models on data N(0.3, 0.5^2), for which the average velocity is known (published reference, section 4).

Mutations: the MeanFlow tangent of r set to 1; v + (t - r) du/dt; the second half step started where the first did; the
teacher's Heun step without its second slope; a span added to t.
"""

import pytest
import torch

from polyarm.policies.generate import onestep
from polyarm.policies.generate.angle import linear_flow, wide
from polyarm.policies.generate.forms import Flow, LogitNormal, Uniform, denoiser
from polyarm.policies.generate.onestep import Consistency, MeanFlow, Shortcut, jump
from polyarm.policies.generate.sample import heun
from polyarm.policies.nets.clock import periods
from polyarm.spec import UserError

MU, V = 0.3, 0.25


def column(*values):
    return torch.tensor(values, dtype=torch.float64)[:, None, None]


def row(*values):
    return torch.tensor(values, dtype=torch.float64)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def spread(t):
    return (wide(t) ** 2 + (1 - wide(t)) ** 2 * V).sqrt()


def velocity(z, t, cond=None):
    t = wide(t)
    return (t - (1 - t) * V) * (z - (1 - t) * MU) / (t**2 + (1 - t) ** 2 * V) - MU


def end(z, r, t):
    """The flow keeps a point's quantile."""
    return (1 - wide(r)) * MU + spread(r) / spread(t) * (z - (1 - wide(t)) * MU)


def average(z, r, t, cond=None):
    span = wide(t - r)
    still = span.abs() < 1e-6
    return torch.where(still, velocity(z, t), (z - end(z, r, t)) / torch.where(still, 1.0, span))


def test_meanflow_identity():
    """Section 4.3 at z = 0.8, r = 0.2, t = 0.9: u, v, du/dt and v - (t - r) du/dt = u, to the printed digits."""
    z, r, t = column(0.8), row(0.2), row(0.9)
    v = velocity(z, t)
    u, target = onestep.meanflow(average, z, v, r, t, None)
    assert u.item() == pytest.approx(0.2542471678, abs=5e-11)
    assert v.item() == pytest.approx(0.5292307692, abs=5e-11)
    assert ((v - target) / 0.7).item() == pytest.approx(0.3928337163, abs=5e-11)
    assert target.item() == pytest.approx(0.2542471678, abs=5e-11)


def test_meanflow_identity_everywhere():
    """The identity holds at every z, r <= t; where r = t the target is the velocity."""
    draw = generator()
    z = torch.randn(500, 2, 3, generator=draw, dtype=torch.float64)
    r, t = torch.rand(2, 500, generator=draw, dtype=torch.float64).sort(0).values
    u, target = onestep.meanflow(average, z, velocity(z, t), r, t, None)
    torch.testing.assert_close(target, u.detach(), rtol=0, atol=1e-9)
    at_rest = onestep.meanflow(average, z, velocity(z, t), t, t, None)[1]
    torch.testing.assert_close(at_rest, velocity(z, t), rtol=0, atol=1e-12)


def test_one_jump_is_the_whole_way():
    """Section 4.3: one step with the exact u(., 0, 1) from (1, -0.7, 0) gives (0.8, -0.05, 0.3); so do two."""
    zero, half, one = (torch.full((3,), at, dtype=torch.float64) for at in (0.0, 0.5, 1.0))
    z = column(1.0, -0.7, 0.0)
    for got in (jump(average, z, zero, one, None), jump(average, jump(average, z, half, one, None), zero, half, None)):
        torch.testing.assert_close(got, column(0.8, -0.05, 0.3), rtol=0, atol=1e-12)


def test_shortcut_self_consistency():
    """Section 4.4 (its time runs forward, so t = 1 - 0.25 and the sign turns): at x = 0.8, the step of 2 * 0.125 is the mean of
    two steps of 0.125, both sides -0.4678775960."""
    z, t = column(0.8), row(0.75)
    assert -average(z, t - 0.25, t).item() == pytest.approx(-0.4678775960, abs=1e-10)
    assert -onestep.two_halves(average, z, t - 0.25, t, None).item() == pytest.approx(-0.4678775960, abs=1e-10)


def test_a_teacher_and_the_rest_of_the_jump():
    """Kim et al. (2024), equation 9: with the exact field, a teacher's step to m and the network's jump from there give the
    whole average velocity, to the third order of Heun's step; to r = m the teacher's step alone counts."""
    z, t, r = column(1.0, -0.7, 0.2), torch.full((3,), 0.9).double(), torch.full((3,), 0.1).double()
    error = lambda h: (onestep.through(average, velocity, z, r, t - h, t, None) - average(z, r, t)).abs().max().item()
    assert error(0.01) < 1e-6 and error(0.02) / error(0.01) == pytest.approx(8, rel=0.1)
    broken = lambda z, r, t, cond: torch.where(wide(t - r) > 0, torch.nan, torch.zeros_like(z))
    alone = onestep.through(broken, velocity, z, t - 0.01, t - 0.01, t, None)
    torch.testing.assert_close(alone, average(z, t - 0.01, t), rtol=0, atol=1e-4)


def test_the_teacher_takes_the_samplers_own_heun_steps():
    """Bin after bin down to 0 it is the sampler `heun` on the same grid, also for a policy that is read by its angle."""
    z, n = column(1.0, -0.7, 0.0), 7
    of = onestep.velocity_of(denoiser(velocity, Flow()), None)
    for k in range(n):
        t = torch.full((3,), 1 - k / n, dtype=torch.float64)
        torch.testing.assert_close(of(z, t), velocity(z, t), rtol=0, atol=1e-9)
        z = onestep.heun(of, z, (t - 1 / n).clamp(min=0).round(decimals=12), t)
    want = heun(denoiser(velocity, Flow()), column(1.0, -0.7, 0.0), linear_flow(n))
    torch.testing.assert_close(z, want, rtol=0, atol=1e-9)


OBJECTIVES = {"meanflow": MeanFlow(), "shortcut": Shortcut(finest=1024), "consistency": Consistency(bins=100)}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_exact_field_is_where_training_rests(name):
    """A network that answers the exact average velocity is told, on average at every z and t, what it answers: its error is
    orthogonal to functions of z and t, though each single target is that of one pair of noise and action. A network off by
    0.1 is not."""
    objective, n = OBJECTIVES[name], 100_000
    draw = generator()
    action = MU + V**0.5 * torch.randn(n, 1, 1, generator=draw, dtype=torch.float64)
    noise, cond = torch.randn(n, 1, 1, generator=draw, dtype=torch.float64), torch.zeros(n, 1, 1, dtype=torch.float64)
    asked = []

    def pull(off):
        def net(z, r, t, cond):
            asked.append(z)
            return average(z, r, t) + off

        asked.clear()
        teacher = (lambda z, t: velocity(z, t)) if objective.taught else None
        aim = objective(net, LogitNormal(), action, noise, cond, generator(1), teacher)
        z = asked[-1].detach().flatten()
        error, t = (aim.answer - aim.target).detach().flatten(), aim.t
        functions = torch.stack([torch.ones_like(z), z, z**2 - 1, t - 0.5, z * (t - 0.5), torch.cos(3 * z)])
        means = (functions * error).mean(1)
        return means, (functions * error).std(1) / len(z) ** 0.5

    means, deviations = pull(0.0)
    assert (means.abs() < 4.5 * deviations + 2e-3).all(), (means, deviations)
    assert pull(0.1)[0][0] > 0.03


def plain(x):
    """Without the tangent that forward-mode differentiation gives it."""
    return torch.autograd.forward_ad.unpack_dual(x).primal


def record(objective, n=4096, law=None):
    """What an objective asks the network, as lists of (r, t)."""
    asked = []

    def net(z, r, t, cond):
        asked.append((plain(r), plain(t)))
        return torch.zeros_like(z)

    x = torch.zeros(n, 1, 1)
    still = lambda z, t: torch.zeros_like(z)
    objective(net, law or LogitNormal(-0.4), x, x, x, generator(), still if objective.taught else None)
    return asked


def test_meanflow_times():
    """Section 3.4: t is the larger and r the smaller of two draws of the law; half of the rows have r = t."""
    ((r, t),) = record(MeanFlow())
    draw = generator()
    one, two = LogitNormal(-0.4)(4096, draw), LogitNormal(-0.4)(4096, draw)
    assert torch.equal(t, torch.maximum(one, two))
    assert torch.equal(r[2048:], torch.minimum(one, two)[2048:])
    assert torch.equal(r[:2048], t[:2048])


def test_shortcut_times():
    """Section 3.3: an eighth of the batch takes a step d = 1, 1/2, ..., 2/128 at a multiple of d, each length as often, by two
    halves; the rest the shortest step, at times after the law."""
    (first, second, last) = record(Shortcut(), law=Uniform())
    r, t = last
    d = t[:512] - r[:512]
    exact = torch.log2(d)
    assert torch.equal(exact, exact.round()) and exact.min() == -6 and exact.max() == 0
    assert torch.equal((t[:512] / d) % 1, torch.zeros(512)) and (r[:512] >= 0).all() and (t <= 1).all()
    counts = torch.bincount(-exact.long(), minlength=7)
    assert len(counts) == 7 and (counts - 512 / 7).abs().max() < 40
    assert torch.equal(first[1], t[:512]) and torch.equal(second[0], r[:512])
    assert torch.equal(first[0], second[1]) and torch.equal(first[0], (t[:512] + r[:512]) / 2)
    free = slice(512, None)
    torch.testing.assert_close((t - r)[free], t[free].clamp(max=1 / 128))


def test_consistency_times():
    """Section 3.1: bins of t and of s < t, uniform; the network goes on from the next bin; as many rows learn the velocity."""
    (rest, answered) = record(Consistency(bins=10), law=Uniform())
    s, t = answered[0][:4096] * 10, answered[1][:4096] * 10
    torch.testing.assert_close(s, s.round(), rtol=0, atol=1e-5)
    torch.testing.assert_close(rest[1] * 10, t - 1, rtol=0, atol=1e-5)
    assert torch.equal(rest[0], answered[0][:4096]) and (s.round() < t.round()).all()
    assert (torch.bincount(t.round().long(), minlength=11)[1:] - 409.6).abs().max() < 95
    top = s[t.round() == 10].round().long()
    assert (torch.bincount(top, minlength=10) - len(top) / 10).abs().max() < 35
    assert torch.equal(answered[0][4096:], answered[1][4096:])


def test_sine_cosine_embedding():
    """Section 4.5, pi0's: width 8 at t = 0.3 with periods 0.004 to 4."""
    got = periods(8, 0.004, 4.0)(torch.tensor([0.3]))[0]
    want = torch.tensor([0, 0, -1, 0.45399, 1, -1, 0, 0.891007])
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)


def test_robust_loss():
    """Geng et al. (2025), section 4.3: weights 1 / (m + 0.001)^power are constants; power 1/2 pulls as 2 sqrt(m + 0.001) does."""
    error = torch.randn(6, 2, 3, generator=generator(), dtype=torch.float64, requires_grad=True)
    assert onestep.robust(error, 0.0).item() == pytest.approx(error.square().mean().item())
    (pull,) = torch.autograd.grad(onestep.robust(error, 0.5), error)
    smooth = 2 * (error.square().flatten(1).mean(1) + 1e-3).sqrt().mean()
    torch.testing.assert_close(pull, torch.autograd.grad(smooth, error)[0])


def test_wrong_settings_say_what_is_right():
    for finest in (1, 100):
        with pytest.raises(UserError, match=f"finest={finest} steps cannot be halved down to one: give a power of two"):
            Shortcut(finest=finest)
    with pytest.raises(UserError, match="bins=0"):
        Consistency(bins=0)
