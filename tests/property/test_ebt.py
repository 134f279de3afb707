"""EBT-Policy and energies that see the noise level: what training makes of them, and what they promise as policies."""

import copy
import math
from functools import cache, partial

import pytest
import torch
from torch import nn

from polyarm.encoders.fuse import Fuse
from polyarm.encoders.state import State
from polyarm.policies.ebt import EbtPolicy, act_steps, train_steps
from polyarm.policies.generate import forms
from polyarm.policies.generate.angle import linear_flow, wide
from polyarm.policies.generate.compose import mix
from polyarm.policies.generate.energy import Energy, energy_of, gradient
from polyarm.policies.generate.sample import Sampler, euler
from polyarm.policies.nets.energy import Slope, half_distance, mean_output
from polyarm.policies.policy import chunk
from polyarm.spec import ActionSpace, ObsSpace, Scale, Stream, UserError
from tests.from_yaml import ChunkTransformer, Descent, EnergyTransformer, ObsTransformer, ResidualMlp, Unet1d

H, D = 8, 2
SMALL = {"width": 64, "blocks": 2}
BODIES = {
    "mlp": partial(ResidualMlp, width=16),
    "transformer": partial(ChunkTransformer, width=16, layers=1, heads=2, p_drop_attn=0.0),
    "unet": partial(Unet1d, down_dims=(8, 16), clock_dim=8, groups=4),
    "energy transformer": partial(EnergyTransformer, width=16, layers=1, heads=2, dropout=0.0),
}
PUBLISHED = Descent(
    rate=1000.0, steps=6, extra=4, act_steps=20, temperature=9.0, momentum=0.9, norm="sample", noise=(0.2, 0.002),
    rate_spread=1.5, truncate=True, min_gradient=1e-3,
)  # fmt: skip


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed))


def shake(module, seed=0):
    """Break every zero initialisation."""
    g = generator(seed)
    with torch.no_grad():
        for p in module.parameters():
            p += 0.1 * torch.randn(p.shape, generator=g)
    return module


def make(body=None, descent=None, energy=half_distance, temporal=None, o=1, width=3):
    names = tuple(f"c{i}" for i in range(width))
    stream = Stream("state", "state", (width,), names, ("1",) * width, scale=Scale.identity(width))
    axes = tuple(f"a{i}" for i in range(D))
    action = ActionSpace(axes, ("1",) * D, "base", 10.0, H, scale=Scale.identity(D))
    return EbtPolicy(
        "ebt", ObsSpace((stream,), 10.0), action, H, o, 4,
        encoder=partial(Fuse, state=State), temporal=temporal, body=body or partial(ResidualMlp, **SMALL),
        energy=energy, descent=descent or Descent(), sampler=Sampler(euler, linear_flow(1)),
    )  # fmt: skip


def curves(n, g):
    """Demonstrations without ambiguity: chunks [n H D] that bend as the observation [n 1 3] says, within +-0.8."""
    c = 2 * torch.rand(n, 1, 3, generator=g) - 1
    t = torch.linspace(0, 1, H)[:, None]
    bend = c[..., :1] + 2 * t * c[..., 1:2] * torch.tensor([1.0, -1.0]) + c[..., 2:] * (3 * t).sin()
    return 0.8 * torch.tanh(bend), c


def train(loss, module, steps, lr=2e-3):
    """AdamW under a cosine; `loss(generator)`."""
    params, g = list(module.parameters()), generator(1)
    optimizer = torch.optim.AdamW(params, lr=lr, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(g).backward()
        nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        schedule.step()
    return module


def imitate(policy, demos, steps):
    def loss(g):
        action, obs = demos(64, g)
        cond, _ = policy.encode({"state": obs}, (), g)
        return policy.loss(action, cond, g)

    return train(loss, policy, steps).eval()


@cache
def skilled():
    """The default settings after 700 steps on `curves`."""
    torch.manual_seed(0)
    return imitate(make(), curves, 700)


@pytest.mark.parametrize("body", BODIES)
def test_training_gradients_are_right_for_every_body(body):
    """Double backward through attention, norms and convolutions, against central differences along a random direction.
    Mutation: without the plain attention kernel the `transformer` has no second derivative."""
    torch.manual_seed(0)
    net = shake(BODIES[body](action_dim=D, horizon=H, n_obs_steps=1, cond_dim=3)).double().eval()
    action, cond = (x.double() for x in curves(3, generator()))
    settings = Descent(rate=4.0, steps=2, temperature=1.0, detach=False)

    def loss():
        energy = lambda x: half_distance(net(x, cond.new_zeros(3), cond), x)
        last = train_steps(energy, action.flip(0), settings, generator())[-1]
        return (last.action - action).square().mean()

    params = list(net.parameters())
    way = [torch.randn(p.shape, generator=generator(2), dtype=p.dtype) for p in params]
    slope = sum(float((g * w).sum()) for g, w in zip(torch.autograd.grad(loss(), params), way, strict=True))

    def moved(by):
        with torch.no_grad():
            for p, w in zip(params, way, strict=True):
                p += by * w
        return float(loss().detach())

    nudge = 1e-6
    up = moved(nudge)
    down = moved(-2 * nudge)
    assert slope == pytest.approx((up - down) / (2 * nudge), rel=1e-5)


def test_the_published_objective_trains_every_parameter():
    """With the rate scaled by exp(E) even the head's last bias has a gradient, and so has what encodes observations.
    Mutations: temporal encoder detached or left out, gradients without graph."""
    torch.manual_seed(0)
    small = {"width": 16, "layers": 2, "heads": 2, "dropout": 0.0}
    policy = make(
        partial(EnergyTransformer, **small), Descent(**{**vars(PUBLISHED), "rate": 10.0}), mean_output,
        partial(ObsTransformer, **small), o=2,
    )  # fmt: skip
    cond, _ = policy.encode({"state": normal(4, 2, 3)}, ())
    policy.loss(normal(4, H, D), cond, generator()).backward()
    still = [name for name, p in policy.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert still == []


def test_the_sampler_hands_over_the_noise_and_takes_the_end_of_the_descent():
    """One Euler step from pi/2 to 0. Mutations: a grid that starts below pi/2, a second step."""
    policy, x, asked = skilled(), normal(5, H, D), []
    cond = policy.encode({"state": curves(5, generator())[1]}, ())[0]

    def denoise(x, phi, cond):
        asked.append((x.clone(), phi))
        return policy.denoise(x, phi, cond)

    with torch.no_grad():
        got = policy.sampler(denoise, x, cond, generator())
        torch.testing.assert_close(got, policy.descend(x, cond)[-1].action.clamp(-1, 1), rtol=0, atol=1e-6)
    assert len(asked) == 1 and torch.equal(asked[0][0], x)
    assert asked[0][1].tolist() == pytest.approx([math.pi / 2] * 5)


def test_acting_and_validating_need_no_gradients_from_the_caller():
    """The same numbers under no_grad, and nothing that holds a graph. Mutation: no enable_grad inside."""
    policy, (action, obs) = skilled(), curves(6, generator(3))
    plain, _ = chunk(policy, {"state": obs}, (), generator())
    cond = policy.encode({"state": obs}, ())[0]
    loss, energy = policy.loss(action, cond, generator()), policy.energy(action, cond)
    with torch.no_grad():
        acted, _ = chunk(policy, {"state": obs}, (), generator())
        assert not acted.requires_grad and torch.equal(acted, plain)
        # a derivative that can be derived again rounds otherwise
        torch.testing.assert_close(policy.loss(action, cond, generator()), loss, rtol=1e-4, atol=0)
        assert torch.equal(policy.energy(action, cond), energy)
    assert loss.requires_grad and energy.requires_grad


def test_mixed_precision_leaves_the_descent_alone():
    """bfloat16 has 8 bits, an energy's second derivative needs more. Mutation: autocast left on."""
    policy, (action, obs) = skilled(), curves(6, generator(3))
    cond = policy.encode({"state": obs}, ())[0].detach()
    run = lambda: (
        policy.loss(action, cond, generator()),
        policy.descend(action, cond)[-1].action,
        policy.energy(action, cond),
    )
    plain = run()
    with torch.autocast("cpu", torch.bfloat16):
        assert all(map(torch.equal, run(), plain))


@pytest.mark.parametrize(("norm", "alone"), [("none", True), ("sample", True), ("batch", False)])
def test_only_the_released_norm_couples_rows(norm, alone):
    """Section 3.4.2: rms_norm over all dims makes a row depend on its batch; at batch 1 it is the sample's norm."""
    policy = copy.deepcopy(skilled())
    policy.descent = Descent(norm=norm, act_steps=3)
    obs, x = curves(4, generator())[1], normal(4, H, D)
    cond = policy.encode({"state": obs}, ())[0]
    many = policy.descend(x, cond)[-1].action[:1]
    few = policy.descend(x[:1], cond[:1])[-1].action
    assert torch.allclose(many, few, atol=1e-5) == alone
    if norm == "batch":
        policy.descent = Descent(norm="sample", act_steps=3)
        assert torch.allclose(policy.descend(x[:1], cond[:1])[-1].action, few, atol=1e-6)


def bowls(a):
    """Row 0 flat, row 1 gentle, row 2 steep."""
    return (torch.tensor([0.0, 0.5, 0.9]) * a.square().mean((1, 2))) / 2


def test_a_row_stops_by_its_own_gradient():
    """Section 3.6: until the gradient's norm is at most the threshold, then one last step. The released rule looks at the
    whole batch. Mutations: no last step, stop before it, one rule for the other."""
    x = torch.ones(3, 2, 2)
    count = lambda s: torch.stack([step.moved for step in act_steps(bowls, x, s)]).sum(0).tolist()
    # with rate 4 the distance shrinks by 1 - w a step, and the norm of the gradient is w / 2 times it
    assert count(Descent(act_steps=20, min_gradient=1e-2)) == [2, 6 + 1, 3 + 1]
    # together: the root of the sum of the squares
    assert count(Descent(act_steps=20, min_gradient=1e-2, stop_together=True)) == [7, 7, 7]
    assert count(Descent(act_steps=3, min_gradient=1e-2)) == [2, 3, 3]
    assert count(Descent(act_steps=1, min_gradient=1e-2)) == [1, 1, 1]


def test_a_stopped_row_stands_still():
    """Its chunk is what it would be alone. Mutation: stopped rows that are carried on by their momentum."""
    x, s = torch.ones(3, 2, 2), Descent(act_steps=20, min_gradient=1e-2, momentum=0.5)
    together = act_steps(bowls, x, s)[-1].action
    for row in range(3):
        alone = act_steps(lambda a, row=row: bowls(a.expand(3, 2, 2))[row : row + 1], x[row : row + 1], s)[-1].action
        torch.testing.assert_close(together[row : row + 1], alone)


def test_an_energy_that_explodes_says_what_to_lower():
    """No silent NaN: neither in training nor when acting."""
    steep = lambda a: (1e30 * a).square().sum((1, 2))
    for run in (partial(train_steps, generator=generator()), act_steps):
        with pytest.raises(UserError, match="not finite at inner step 0 of 2: lower descent.rate=1000.0"):
            run(steep, normal(2, H, D), s=Descent(rate=1000.0))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"norm": "samples"}, "unknown norm of the descent 'samples': did you mean 'sample'"),
        ({"rate": 0.0}, "descent.rate=0.0: give at least 0.0001"),
        ({"steps": 0}, "descent.steps=0: give at least 1"),
        ({"rate_spread": 0.5}, "descent.rate_spread=0.5: give at least 1"),
        ({"noise": (0.002, 0.2)}, "falling"),
    ],
)
def test_impossible_settings_are_refused(wrong, says):
    with pytest.raises(UserError, match=says):
        Descent(**wrong)


def test_energy_falls_along_the_descent_on_held_out_observations():
    """Section 6.7a, for more than 95 % of the samples. Mutation: climbing."""
    policy, (action, obs) = skilled(), curves(500, generator(7))
    with torch.no_grad():
        cond = policy.encode({"state": obs}, ())[0]
        steps = policy.descend(normal(*action.shape, seed=8), cond)
        last = policy.energy(steps[-1].action, cond)
    trace = torch.stack([*(s.energy for s in steps), last])
    assert (trace.diff(dim=0) < 0).all(0).float().mean() > 0.95


def test_energy_tells_matched_from_shuffled_observations():
    """Section 6.7b: a chunk under another observation has the higher energy. Mutation: a body blind to observations."""
    policy, (action, obs) = skilled(), curves(500, generator(7))
    with torch.no_grad():
        cond = policy.encode({"state": obs}, ())[0]
        higher = policy.energy(action, cond.roll(1, 0)) > policy.energy(action, cond)
    assert higher.float().mean() > 0.95


def test_energy_of_the_answer_is_higher_off_the_demonstrations():
    """As a warning: an observation two spreads away ends at a higher energy than one of the demonstrations' in more than
    85 of 100 pairs (0.93 here). Mutation: the first step's energy, which is the noise's."""
    policy, (action, obs) = skilled(), curves(500, generator(7))

    def end(obs):
        cond = policy.encode({"state": obs}, ())[0]
        return policy.energy(policy.descend(normal(*action.shape, seed=8), cond)[-1].action, cond)

    with torch.no_grad():
        far, near = end(obs + 2 * normal(*obs.shape, seed=3)), end(obs)
    assert (far[:, None] > near).float().mean() > 0.85


def test_two_steps_fit_one_episode():
    """Normalised squared action error below 1e-3 on the windows of one episode of 40 rows. Mutations: a loss on the first
    step's input, an observation that does not reach the body."""
    torch.manual_seed(0)
    t = torch.arange(40 + H)[:, None] / 8
    rows = torch.cat([t.sin() * (0.3 * t).cos(), (1.7 * t).cos() * 0.8], -1)
    windows = rows.unfold(0, H, 1).mT[:40].contiguous()
    obs = torch.cat([rows[:40], t[:40] / 6], -1)[:, None]

    def episode(n, g):
        index = torch.randint(40, (n,), generator=g)
        return windows[index], obs[index]

    policy = imitate(make(), episode, 900)
    with torch.no_grad():
        got, _ = chunk(policy, {"state": obs}, (), generator())
    assert (got - windows).square().mean() / windows.var() < 1e-3


def modes(n, g):
    """Two demonstrations for one and the same observation: all +0.7, or all -0.7."""
    sign = 2.0 * torch.randint(2, (n, 1, 1), generator=g) - 1
    return (0.7 * sign).expand(n, H, D).contiguous(), torch.zeros(n, 1, 3)


def test_where_demonstrations_disagree_the_descent_ends_at_their_mean():
    """The squared error of E[a | noise], with noise independent of a, is least at the mean: for every setting of the
    descent, and so for the published objective, the loss cannot pass the demonstrations' variance 0.49."""
    torch.manual_seed(0)
    policy = imitate(make(), modes, 300)
    with torch.no_grad():
        got, _ = chunk(policy, {"state": torch.zeros(300, 1, 3)}, (), generator())
        loss = policy.loss(*modes(2000, generator(5)), generator())
    assert got.abs().max() < 0.2
    assert float(loss) == pytest.approx(0.49, abs=0.01)


@cache
def slope_of(demos, form, steps=700):
    """An energy that sees the noise level, trained by denoising score matching."""
    torch.manual_seed(0)
    net = Slope(D, H, 1, 3, body=partial(ResidualMlp, **SMALL), energy=mean_output)
    ask = lambda x, clock, cond: net(x, clock * form.percent, cond)
    return train(lambda g: forms.loss(ask, form, *demos(128, g), g), net, steps), ask


def test_an_energy_that_sees_the_noise_keeps_both_modes():
    """The remedy: the same body under rectified flow, ten Euler steps."""
    form = forms.Flow("actions")
    _, ask = slope_of(modes, form)
    with torch.no_grad():
        got = euler(forms.denoiser(ask, form), normal(500, H, D), linear_flow(10), torch.zeros(500, 1, 3))
    high, low = ((got.mean((1, 2)) - m).abs() < 0.2 for m in (0.7, -0.7))
    assert min(high.float().mean(), low.float().mean()) > 0.35
    assert (high | low).float().mean() > 0.9


MU, V = torch.tensor([0.3, -0.5]), 0.04


def gaussian(n, g):
    c = 2 * torch.rand(n, 1, 3, generator=g) - 1
    return MU * (1 + c[..., :1]) + V**0.5 * torch.randn(n, H, D, generator=g), c


def posterior(x, phi, cond):
    cos, sin = wide(phi).cos(), wide(phi).sin()
    return (cos * V * x + sin**2 * MU * (1 + cond[..., :1])) / (cos**2 * V + sin**2)


def gaussian_energy(x, phi, cond):
    cos, sin = wide(phi).cos(), wide(phi).sin()
    return ((x - cos * MU * (1 + cond[..., :1])).square() / (2 * (cos**2 * V + sin**2))).sum((1, 2))


def test_a_trained_energy_is_the_denoiser_of_the_analytic_one():
    """Denoising score matching (Vincent, 2011) of a gradient: the posterior mean of a Gaussian at every angle, as
    `Energy` reads it from the analytic energy. Mutations: training without graph (nothing is learned), a wrong clock."""
    form = forms.Flow("actions")
    _, ask = slope_of(gaussian, form)
    action, cond = gaussian(1000, generator(4))
    for angle in (0.2, 0.6, 1.0, 1.4):
        phi = torch.full((1000,), angle)
        x = phi.cos()[0] * action + phi.sin()[0] * normal(*action.shape, seed=5)
        with torch.no_grad():
            want = forms.denoiser(gradient(gaussian_energy), Energy())(x, phi, cond)
            got = forms.denoiser(ask, form)(x, phi, cond)
        torch.testing.assert_close(want, posterior(x, phi, cond), rtol=1e-4, atol=1e-4)
        assert (got - want).square().mean().sqrt() < 0.05


def test_score_matching_reaches_every_parameter():
    """Second derivatives of the energy. Only what the energy's gradient does not depend on, its level, stays."""
    form = forms.Flow("actions")
    net = shake(Slope(D, H, 1, 3, body=partial(ResidualMlp, **SMALL), energy=half_distance))
    ask = lambda x, clock, cond: net(x, clock * form.percent, cond)
    forms.loss(ask, form, *gaussian(8, generator()), generator()).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []


@pytest.mark.parametrize(
    "form",
    [forms.Flow("actions"), forms.Flow(), forms.Diffusion(predict="velocity"), forms.Diffusion(), forms.Karras()],
)
def test_a_potential_under_any_form_is_one_energy(form):
    """Every form's prediction is affine in the score, and so a gradient: the energy behind it has the same denoiser.
    Mutations: a network's coordinates taken for x, the chunk's own part left out."""
    quadratic = torch.randn(H * D, H * D, generator=generator(), dtype=torch.float64)

    def potential(z, clock, cond):
        flat = z.flatten(1)
        return (flat @ quadratic).sin().sum(1) * (1 + clock.square()) + flat.sum(1)

    phi = torch.linspace(0.1, 1.4, 40, dtype=torch.float64)
    x = torch.randn(40, H, D, generator=generator(1), dtype=torch.float64)
    want = forms.denoiser(gradient(potential), form)(x, phi)
    got = forms.denoiser(gradient(energy_of(potential, form)), Energy())(x, phi)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_a_trained_energy_mixes_with_other_families():
    """At equal angle a convex mix of scores is the mix of denoisers: means MU, of the trained energy, and MU + 0.3, of an
    analytic denoiser, at one variance V give mean MU + 0.15 and variance V."""
    form = forms.Flow("actions")
    _, ask = slope_of(gaussian, form)
    shifted = lambda x, phi, cond: 0.3 + posterior(x - 0.3 * wide(phi).cos(), phi, cond)
    cond = torch.zeros(1000, 1, 3)
    with torch.no_grad():
        both = mix([forms.denoiser(ask, form), shifted], (0.5, 0.5))
        got = euler(both, normal(1000, H, D), linear_flow(50), (cond, cond))
    torch.testing.assert_close(got.mean((0, 1)), MU + 0.15, rtol=0, atol=0.05)
    torch.testing.assert_close(got.std((0, 1)), torch.full((D,), V**0.5), rtol=0, atol=0.03)
