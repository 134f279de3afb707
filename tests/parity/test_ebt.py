"""EBT-Policy against the numbers of the published reference, sections 3 and 6."""

import math
from dataclasses import fields

import pytest
import torch
from hydra.utils import instantiate

from polyarm.config import compose
from polyarm.policies.ebt import Step, act_steps, spreads, step, train_steps
from polyarm.policies.ebt import start as at_rest
from polyarm.policies.nets.energy import mean_output, places
from tests.from_yaml import Descent, EnergyTransformer, ObsTransformer

START = torch.tensor([[[1, -0.5], [0.25, 0.75]]], dtype=torch.float64)
GOAL = torch.tensor([[0.5, 0.5], [-0.5, 0.2]], dtype=torch.float64)
TOY = {"momentum": 0.9, "norm": "sample", "truncate": False}


def bowl(a):
    return (a - GOAL).square().mean((1, 2)) / 2


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("action_dim", "parameters"), [(2, 5_403_138), (7, 5_405_703), (10, 5_407_242), (14, 5_409_294)]
)
def test_energy_network_has_the_published_parameters(action_dim, parameters):
    """Section 6.1. Mutations: a bias on the cross-attention's output map, an MLP 4 times as wide, learned positions."""
    with torch.device("meta"):
        assert count(EnergyTransformer(action_dim, 16, 2, 256)) == parameters


def test_each_part_has_the_published_parameters():
    """Section 6.1: action MLP, one block, decoder with its head, temporal encoder's blocks, its entry."""
    net, temporal = EnergyTransformer(7, 16, 2, 256), ObsTransformer(2, 30)
    assert count(net.rows) == 68_352
    assert count(net.blocks[0]) == 658_688
    assert count(net.blocks) + count(net.head) == 5_337_351
    assert count(temporal.blocks) == 3_163_136 and count(temporal.blocks[0]) == 395_392
    assert count(temporal.enter) == 30 * 256 + 256 and temporal.place.numel() == 512
    assert net.place.numel() == 4_096


def test_positions_have_the_published_digits():
    """Section 6.2. Mutations: sin and cos interleaved, half - 1 in the rates."""
    row = places(16, 256)[1]
    assert row[:3].tolist() == pytest.approx([0.84147098, 0.80196180, 0.76172041], abs=1e-7)
    assert row[128:131].tolist() == pytest.approx([0.54030231, 0.59737533, 0.64790587], abs=1e-7)


def filled(net):
    """All parameters from rank and index, so that neither names nor order matter."""
    with torch.no_grad():
        for p in net.parameters():
            index = torch.meshgrid(*(torch.arange(n).double() for n in p.shape), indexing="ij")
            p.add_(0.05 * torch.cos(sum(rate * i for rate, i in zip((0.7, 1.3, 2.1), index, strict=False))))
    return net.eval()


def sensitivity(of, x):
    """[rows out, rows in]: whether each output row depends on each input row of x [1 rows c]."""
    out = torch.autograd.functional.jacobian(of, x)[0, :, :, 0]
    return out.abs().sum((1, 3)) > 0


def test_action_rows_see_all_rows_and_observations_up_to_their_own():
    """Section 6.6: allow[i, j] = i >= j in a block, and the temporal encoder is causal, so that action 0 is independent of
    observation 1. (Through a second block it is not: rows see each other without a mask.) Mutations: a causal mask over
    rows, no mask over observations, a temporal encoder without mask."""
    net = filled(EnergyTransformer(2, 4, 3, 16, width=16, layers=1, heads=2))
    temporal = filled(ObsTransformer(3, 5, width=16, layers=2, heads=2))
    x, obs, clock = torch.randn(1, 4, 2), torch.randn(1, 3, 5), torch.zeros(1)
    assert sensitivity(lambda x: net(x, clock, temporal(obs)), x).all()
    wanted = torch.arange(4)[:, None] >= torch.arange(3)
    assert (sensitivity(lambda obs: net(x, clock, temporal(obs)), obs) == wanted).all()
    deep = filled(EnergyTransformer(2, 4, 3, 16, width=16, layers=2, heads=2))
    assert sensitivity(lambda x: deep(x, clock, temporal(obs)), x).all()


@pytest.mark.parametrize(
    ("n", "printed"),
    [
        (6, [0.2, 0.186737, 0.1505, 0.101, 0.0515, 0.015263]),
        (10, [0.2, 0.195155, 0.181093, 0.159191, 0.131593, 0.101, 0.070407, 0.042809, 0.020907, 0.006845]),
    ],
)
def test_noise_anneals_with_the_published_digits(n, printed):
    """Section 6.3. Mutations: n - 1 in place of n, first and last swapped."""
    assert spreads((0.2, 0.002), n) == pytest.approx(printed, abs=6e-7)


def test_inner_loop_has_the_published_digits():
    """Section 6.4, three steps. Mutations: no look-ahead, exp(E / temp), the gradient at b, velocity cut each step."""
    steps = train_steps(bowl, START, Descent(rate=1.0, temperature=1.0, steps=3, **TOY), generator())
    assert [float(s.energy.detach()) for s in steps] == pytest.approx([0.4983342, 0.1397503, 0.0941837], abs=6e-8)
    assert [float(s.slope) for s in steps] == pytest.approx([0.4991664, 0.2643390, 0.2170065], abs=6e-8)
    first, last = steps[0].action.flatten().tolist(), steps[2].action.flatten().tolist()
    assert first == pytest.approx([1.0653148, -0.2240367, 0.0091448, 0.7269746], abs=6e-8)
    assert last == pytest.approx([0.9427015, 0.7601795, -0.7905998, 0.4196690], abs=6e-8)


def test_inner_loop_has_the_published_digits_at_temperature_9():
    """Section 6.4: exp(E) / temp, not exp(E / temp)."""
    steps = act_steps(bowl, START, Descent(rate=4.0, temperature=9.0, act_steps=2, **TOY))
    assert [float(s.energy) for s in steps] == pytest.approx([0.4983342, 0.3147743], abs=6e-8)
    last = steps[1].action.flatten().tolist()
    assert last == pytest.approx([1.2400870, -0.2626595, 0.0122017, 0.8466756], abs=6e-8)


def test_one_step_on_a_bowl_is_the_closed_form():
    """Section 6.6: a - alpha (a - goal) / (Tp A); at alpha = Tp A, the default rate, the goal itself."""
    a = torch.randn(5, 2, 2, dtype=torch.float64, generator=generator())
    got = act_steps(bowl, a, Descent(rate=0.8, act_steps=1))[-1].action
    torch.testing.assert_close(got, a - 0.8 * (a - GOAL) / 4, rtol=0, atol=1e-12)
    torch.testing.assert_close(act_steps(bowl, a, Descent(act_steps=1))[-1].action, GOAL.expand_as(a))


def network(theta, c=0.7):
    """A smooth energy of four weights, nothing about it special."""
    w = theta[:4]

    def energy(a):
        flat = a.flatten(1)
        return torch.tanh(flat @ torch.outer(w, w.sin()) + theta[4] * c).square().sum(1) / 3 + flat.cos() @ w

    return energy


@pytest.mark.parametrize(
    ("settings", "equal"),
    [
        (Descent(rate=0.5, steps=1), True),
        (Descent(rate=0.5, steps=3), False),
        (Descent(rate=0.5, steps=3, detach=False), True),
        (Descent(rate=0.5, steps=3, truncate=True), False),
        (Descent(rate=0.5, steps=3, truncate=True, detach=False), True),
        (Descent(rate=0.5, steps=3, truncate=True, detach=False, momentum=0.9, norm="sample", temperature=2.0), True),
        (Descent(rate=0.5, steps=1, momentum=0.9, norm="sample", temperature=2.0, noise=(0.2, 0.002)), True),
    ],
)
def test_gradients_are_those_of_the_loss_exactly_where_nothing_is_detached(settings, equal):
    """Section 6.5: automatic against central differences. With one step, or without detaching, equal; with more steps,
    detached, not. Mutations: create_graph off, momentum or the exponential detached, a truncated step without graph."""

    def loss(theta):
        steps = train_steps(network(theta), START, settings, generator())
        kept = steps[-1:] if settings.truncate else steps
        return torch.stack([(s.action - GOAL).square().mean() for s in kept]).mean()

    theta = torch.tensor([0.3, -0.8, 0.5, 1.1, -0.4], dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(loss(theta), theta)
    nudge = 1e-5 * torch.eye(5, dtype=torch.float64)
    wanted = torch.stack([(loss(theta.detach() + d) - loss(theta.detach() - d)) / 2e-5 for d in nudge]).detach()
    error = float((found - wanted).norm() / wanted.norm())
    assert error < 1e-7 if equal else error > 0.02


def test_truncation_is_the_last_steps_loss_of_the_same_descent():
    """Section 3.5. Mutation: a truncated descent that moves otherwise in its early steps."""
    energy = network(torch.tensor([0.3, -0.8, 0.5, 1.1, -0.4], dtype=torch.float64, requires_grad=True))
    runs = [train_steps(energy, START, Descent(rate=0.5, steps=4, truncate=t), generator()) for t in (False, True)]
    for full, short in zip(*runs, strict=True):
        assert torch.equal(full.action, short.action)
    assert [s.action.requires_grad for s in runs[1]] == [False, False, False, True]


def test_gradient_clamp_and_energy_clip_bound_a_step():
    """Sections 3.4.7 and 5.3: |g| <= 9 / alpha with the undrawn alpha; exp(E) of a clipped E."""
    steep = lambda a: 1e3 * a.sum((1, 2))
    moved = at_rest(START).action - step(steep, at_rest(START), Descent(clamp=9.0, rate=100.0), 150.0).action
    assert moved.flatten().tolist() == pytest.approx([9 / 100 * 150] * 4)
    deep = lambda a: a.sum((1, 2)) + 1e3
    last = act_steps(deep, START, Descent(rate=1.0, temperature=2.0, energy_limit=3.0, act_steps=1))[0]
    assert (START - last.action).flatten().tolist() == pytest.approx([math.exp(3) / 2] * 4)


def test_random_steps_and_rates_have_their_published_laws():
    """Section 3.5: 6 + {0, ..., 4} steps, all alike; alpha uniform in [alpha / 1.5, 1.5 alpha], a sample and a step."""
    g, flat = generator(), lambda a: a.sum((1, 2))
    lengths = [len(train_steps(flat, START, Descent(rate=1.0, steps=6, extra=4), g)) for _ in range(300)]
    assert {n: lengths.count(n) > 35 for n in set(lengths)} == dict.fromkeys(range(6, 11), True)
    zero = torch.zeros(4000, 1, 1)
    first, second = train_steps(flat, zero, Descent(rate=2.0, steps=2, rate_spread=1.5), g)
    rates = torch.stack([-first.action, first.action - second.action]).flatten(1).detach()
    level = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])
    wanted = 2 * (1 / 1.5 + level * (1.5 - 1 / 1.5))
    for drawn in rates:
        torch.testing.assert_close(drawn.quantile(level), wanted, rtol=0, atol=0.04)
    assert abs(torch.corrcoef(rates)[0, 1]) < 0.06


def test_training_noise_is_spread_as_annealed():
    """Section 3.4.3: b = norm(a) + sigma_i N(0, 1), independent each step. Mutations: constant spread, noise reused."""
    still = lambda a: 0 * a.sum((1, 2))
    runs = train_steps(still, torch.zeros(2000, 2, 2), Descent(steps=6, noise=(0.2, 0.002)), generator())
    places_ = torch.stack([torch.zeros(2000, 2, 2), *(s.action.detach() for s in runs)]).flatten(1)
    jumps = places_.diff(dim=0)
    assert jumps.std(1).tolist() == pytest.approx(spreads((0.2, 0.002), 6), rel=0.03)
    assert (torch.corrcoef(jumps).triu(1).abs() < 0.05).all()


def settings(experiment):
    config = compose([f"experiment={experiment}"])
    return config, instantiate(config.policy.descent, _convert_="all")


@pytest.mark.parametrize(
    ("experiment", "temperature", "truncate", "most", "lr"),
    [("ebt_preprint", 1.0, False, 2, 1e-4), ("ebt_released", 9.0, True, 20, 3e-5)],
)
def test_published_settings_are_those_of_the_table(experiment, temperature, truncate, most, lr):
    """Section 3.5, columns pre-print and HEAD; the norm is a sample's, as recommended in section 3.4.2."""
    config, found = settings(experiment)
    table = Descent(
        rate=1000.0, steps=6, extra=4, act_steps=most, temperature=temperature, momentum=0.9, norm="sample",
        noise=[0.2, 0.002], rate_spread=1.5, truncate=truncate, min_gradient=1e-3,
    )  # fmt: skip
    assert found == table
    assert (config.train.lr, config.train.weight_decay, config.train.batch_size) == (lr, 1e-6, 64)
    assert config.train.warmup_steps == 500 and config.train.ema_power == 0.75
    body, temporal = instantiate(config.policy.body), instantiate(config.policy.temporal)
    assert count(body(action_dim=7, horizon=16, n_obs_steps=2, cond_dim=256)) == 5_405_703
    assert count(temporal(n_obs_steps=2, cond_dim=30).blocks) == 3_163_136
    assert instantiate(config.policy.energy).func is mean_output


def test_yaml_names_every_setting_of_the_descent():
    """A setting that yaml lacks could not be overridden from the command line."""
    named = {str(key) for key in compose(["policy=ebt"]).policy.descent} - {"_target_"}
    assert named == {f.name for f in fields(Descent.func)}


def test_a_step_is_unchanged_at_a_minimum():
    """The closed form's fixed point, with everything on but the norm and noise."""
    state = Step(GOAL[None], torch.zeros(1, 2, 2).double(), *[torch.zeros(1).double()] * 2, torch.ones(1).bool())
    got = step(bowl, state, Descent(rate=4.0, momentum=0.9, temperature=1.0), 4.0)
    torch.testing.assert_close(got.action, GOAL[None])
