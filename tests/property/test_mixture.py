"""Composition as a policy: the closed forms of "Compose Your Policies!" (GPC) and the checks of `Mixture`.

Mutations that turn it red: mix the parts' conditions in another order; clip each part; take the first part's sampler
whatever the weights; compare scales by their hash alone and name no channel; execute the largest of the parts' Ta; show
each part the goals of the longest.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from polyarm.config import build, compose
from polyarm.eval.agent import Agent
from polyarm.policies.generate.angle import linear_flow, wide
from polyarm.policies.generate.sample import Sampler, euler
from polyarm.policies.mixture import Mixture
from polyarm.policies.policy import Plain, chunk, restart
from polyarm.spec import ActionSpace, ObsSpace, Scale, Spec, Stream, UserError

OBS = ObsSpace((Stream("s", "state", (3,), ("a", "b", "c"), ("1",) * 3, scale=Scale.identity(3)),), 10.0)
ACTION = ActionSpace(("x", "y"), ("m", "m"), "base", 10.0, scale=Scale((2.0, 0.5), (0.0, 0.1)))


def policy(name, seed, action=ACTION, *words):
    torch.manual_seed(seed)
    made = build(
        compose([f"policy={name}", "policy.body.width=16", "policy.body.blocks=1", *words]).policy, Spec(OBS, action)
    )
    for p in made.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return made.eval()


def sampled(p, seed=0, b=4):
    obs = {"s": torch.linspace(-1, 1, b * 2 * 3).view(b, 2, 3)}
    with torch.no_grad():
        return chunk(p, obs, p.start(b), torch.Generator().manual_seed(seed))[0]


@pytest.mark.parametrize("weights", [(1, 0), (0, 1)])
def test_weight_one_is_the_parent_to_the_bit(weights):
    """GPC 7.1, with parents of two families and two samplers."""
    parents = policy("flow", 1), policy("diffusion", 2)
    assert torch.equal(sampled(Mixture(parents, weights)), sampled(parents[weights.index(1)]))


def test_a_copy_changes_nothing_whatever_the_weight():
    one = policy("flow", 1)
    for w in (0.2, 0.5, 0.9):
        torch.testing.assert_close(sampled(Mixture([one, one], (w, 1 - w))), sampled(one), rtol=1e-5, atol=1e-6)


def test_the_order_of_the_parts_does_not_matter():
    a, b = policy("flow", 1), policy("diffusion", 2)
    s = Sampler(euler, linear_flow(10), 1.0)
    torch.testing.assert_close(
        sampled(Mixture([a, b], (0.3, 0.7), s)), sampled(Mixture([b, a], (0.7, 0.3), s)), rtol=1e-5, atol=1e-6
    )


def test_a_function_of_the_angle_may_weigh():
    a, b = policy("flow", 1), policy("diffusion", 2)
    s = Sampler(euler, linear_flow(10), 1.0)
    late = lambda phi: (wide(phi > 0.7).float(), 1 - wide(phi > 0.7).float())
    mixed = sampled(Mixture([a, b], late, s))
    assert not torch.allclose(mixed, sampled(Mixture([a, b], (1, 0), s))) and not torch.allclose(
        mixed, sampled(Mixture([a, b], (0, 1), s))
    )
    torch.testing.assert_close(
        sampled(Mixture([a, b], lambda phi: (0.3, 0.7), s)), sampled(Mixture([a, b], (0.3, 0.7), s))
    )


class Gauss(Plain):
    """An exact policy for N(mean, var) in every entry; its state counts its chunks."""

    n_obs_steps, n_action_steps = 2, 4

    def __init__(self, name, mean, var):
        self.name, self.mean, self.var = name, mean, var
        self.obs_space, self.action_space = OBS, replace(ACTION, horizon=8, scale=Scale.identity(2))
        self.sampler = Sampler(euler, linear_flow(100), None)

    def start(self, b):
        return (torch.zeros(b, dtype=torch.float64),)

    def encode(self, obs, state, generator=None):
        return None, (state[0] + self.mean,)

    def denoise(self, x, phi, cond):
        c, s = wide(phi).cos(), wide(phi).sin()
        return (c * self.var * x + s**2 * self.mean) / (c**2 * self.var + s**2)


@pytest.mark.parametrize(
    "w, steps, mean, var",
    [(0.4, 5, 0.153694, 0.026598), (0.4, 100, 0.141510, 0.062360), (0.4, 5000, 0.141489, 0.065013)],
)
def test_two_gaussians_sample_what_the_closed_form_says(w, steps, mean, var):
    """GPC 7.2: rectified-flow Euler on the mix of N(-.5, .04) and N(.7, .09): the image of x = 0, and slope squared."""
    mixed = Mixture(
        [Gauss("a", -0.5, 0.04), Gauss("b", 0.7, 0.09)], (w, 1 - w), Sampler(euler, linear_flow(steps), None)
    )
    x = torch.tensor([0.0, 1.0], dtype=torch.float64).view(2, 1, 1)
    out = mixed.sampler(mixed.denoise, x, (None, None), torch.Generator())[:, 0, 0]
    assert float(out[0]) == pytest.approx(mean, abs=2e-6)
    assert float(out[1] - out[0]) ** 2 == pytest.approx(var, abs=2e-6)


def test_states_of_the_parts_stay_apart_and_restart_by_row():
    mixed = Mixture([Gauss("a", 1.0, 0.1), Gauss("b", 5.0, 0.1)], (0.5, 0.5))
    obs = {"s": torch.zeros(3, 2, 3, dtype=torch.float64)}
    _, state = mixed.encode(obs, mixed.start(3))
    _, state = mixed.encode(obs, state)
    assert [s.tolist() for s in state] == [[2] * 3, [10] * 3]
    state = restart(mixed, state, torch.tensor([False, True, False]))
    assert [s.tolist() for s in state] == [[2, 0, 2], [10, 0, 10]]


def test_a_part_with_weight_zero_is_not_asked():
    broken = Gauss("broken", 0.0, 0.1)
    broken.denoise = lambda x, phi, cond: x * float("nan")
    fine = Gauss("fine", 0.3, 0.1)
    obs = {"s": torch.zeros(2, 2, 3)}
    alone, _ = chunk(fine, obs, fine.start(2), torch.Generator().manual_seed(0))
    mixed = Mixture([broken, fine], (0, 1))
    together, _ = chunk(mixed, obs, mixed.start(2), torch.Generator().manual_seed(0))
    assert torch.equal(alone, together)


@pytest.mark.parametrize(
    "other, words",
    [
        (replace(ACTION, names=("x", "z")), ["'y'"]),
        (replace(ACTION, scale=Scale((2.0, 0.5), (0.0, 0.2))), ["'y'", "0.1", "0.2", "same demonstrations"]),
        (replace(ACTION, rate_hz=20.0), ["10 Hz", "20 Hz"]),
    ],
)
def test_parts_that_act_differently_are_refused_by_channel(other, words):
    a = policy("flow", 1)
    b = policy("flow", 2, other)
    with pytest.raises(UserError) as e:
        Mixture([a, b], (0.5, 0.5))
    assert all(w in str(e.value) for w in words), str(e.value)


@pytest.mark.parametrize("words", [["policy.horizon=8", "policy.n_action_steps=4"], ["policy.n_obs_steps=3"]])
def test_chunks_of_another_time_are_refused(words):
    with pytest.raises(UserError, match="chunks start at other times"):
        Mixture([policy("flow", 1), policy("flow", 2, ACTION, *words)], (0.5, 0.5))


@pytest.mark.parametrize("weights", [(0.5, 0.6), (1,), (0.5, 0.25, 0.25)])
def test_weights_that_do_not_fit_are_refused(weights):
    with pytest.raises(UserError, match="weight"):
        Mixture([policy("flow", 1), policy("flow", 2)], weights)


def test_the_mixture_executes_no_more_rows_than_its_most_careful_part():
    parts = [policy("flow", 1, ACTION, f"policy.n_action_steps={ta}") for ta in (8, 3, 5)]
    assert Mixture(parts, (0.4, 0.3, 0.3)).n_action_steps == 3
    assert Agent(Mixture(parts, (0.4, 0.3, 0.3)), 1).n_action_steps == 3


def test_every_part_is_shown_as_much_as_it_takes():
    """Of streams, observation steps and goals; a part without goals sees none."""
    shown = {}

    class Sees(Gauss):
        def encode(self, obs, state, generator=None):
            shown[self.name] = {name: tuple(x.shape) for name, x in obs.items()}
            return None, state

    parts = [Sees("one", 0.0, 0.1), Sees("two", 0.0, 0.1), Sees("none", 0.0, 0.1)]
    for part, goals in zip(parts, (1, 2, 0), strict=True):
        part.goal_steps = goals
    mixed = Mixture(parts, (0.4, 0.3, 0.3))
    agent = Agent(mixed, 5)
    agent.restart(np.ones(5, bool), list(range(5)), [{"s": np.zeros(3)}] * 5)
    agent.act({"s": np.zeros((5, 3), np.float32)})
    assert shown == {
        "one": {"s": (5, 2, 3), "goal.s": (5, 1, 3)}, "two": {"s": (5, 2, 3), "goal.s": (5, 2, 3)}, "none": {"s": (5, 2, 3)},
    }  # fmt: skip
