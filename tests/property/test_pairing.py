"""Minibatch optimal transport: which noise an action is trained with (Pooladian et al., 2023; Tong et al., 2024).

Mutations: distances without the square, of chunks or of conditions; assign actions to noise instead of noise to actions; ignore the conditions.
"""

from itertools import permutations

import pytest
import torch

from polyarm.policies.generate.forms import Diffusion, Flow, Karras, assignment, loss, paired
from polyarm.spec import UserError


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed))


@pytest.mark.parametrize("seed", range(5))
def test_the_assignment_is_the_best_of_all_permutations(seed):
    """Of the 720 ways to give six actions six rows of noise, the least sum of squared distances; not the identity."""
    noise, action = normal(6, 3, 2, seed=seed), 0.5 * normal(6, 3, 2, seed=seed + 100)
    cost = lambda order: float((noise[list(order)] - action).square().sum())
    got = assignment(noise, action)
    assert cost(got.tolist()) == pytest.approx(min(map(cost, permutations(range(6)))))
    assert cost(got.tolist()) < cost(range(6))


@pytest.mark.parametrize("seed", range(5))
def test_conditions_count_by_their_squared_distance(seed):
    """Of all ways to give six actions the noise that was drawn beside six conditions, the least sum of both squared distances;
    with conditions as far apart as these another one than without the square."""
    noise, action, cond = (
        normal(6, 2, 2, seed=seed),
        normal(6, 2, 2, seed=seed + 100),
        2 * normal(6, 1, 3, seed=seed + 200),
    )
    far = torch.cdist(cond.flatten(1), cond.flatten(1))

    def best(power):
        cost = lambda order: (
            (noise[list(order)] - action).square().sum() + 0.3 * far[range(6), list(order)].pow(power).sum()
        )
        return min(permutations(range(6)), key=cost)

    assert tuple(assignment(noise, action, cond, 0.3).tolist()) == best(2) != best(1)


def test_pairing_permutes_the_noise():
    """The marginals stay what they are: every row of noise is used once. Only `optimal` moves rows."""
    noise, action = normal(64, 4, 2), normal(64, 4, 2, seed=1)
    got = paired(Flow(pairing="optimal"), noise, action, None)
    assert torch.equal(got.flatten(1).sort(0).values, noise.flatten(1).sort(0).values)
    assert sorted(map(tuple, got.flatten(1).tolist())) == sorted(map(tuple, noise.flatten(1).tolist()))
    assert not torch.equal(got, noise)
    for form in (Flow(), Diffusion(), Karras()):
        assert paired(form, noise, action, None) is noise


def test_with_a_large_condition_weight_noise_changes_hands_only_where_the_same_was_seen():
    """Conditional optimal transport: within each condition the assignment is the optimal one, and no row leaves it."""
    cond = torch.arange(24).remainder(3)[:, None, None].float()
    noise, action = normal(24, 2, 2), normal(24, 2, 2, seed=1)
    got = assignment(noise, action, cond, 1e6)
    assert torch.equal(cond[got], cond)
    for value in range(3):
        rows = (cond.flatten() == value).nonzero().flatten()
        assert torch.equal(got[rows], rows[assignment(noise[rows], action[rows])])
    across = assignment(noise, action)
    assert not torch.equal(cond[across], cond)
    torch.testing.assert_close(paired(Flow(pairing="optimal", condition_weight=1e6), noise, action, cond), noise[got])


def one_step(form, n=64, batches=400):
    """The best first Euler step from noise x, E[action | x], for actions -1 or 1, by 40 equal shares of the noise."""
    draw, x, a = generator(), [], []
    for _ in range(batches):
        action = 2.0 * torch.randint(2, (n, 1, 1), generator=draw) - 1
        noise = torch.randn(n, 1, 1, generator=draw)
        x.append(paired(form, noise, action, None).flatten())
        a.append(action.flatten())
    order = torch.cat(x).argsort()
    return torch.cat(a)[order].view(40, -1).mean(1)


def test_one_euler_step_no_longer_lands_between_the_modes():
    """Straighter paths: the first step of a plain flow ends at the mean, 0, a distance 1 from both modes; with optimal pairs
    noise on either side goes to the mode on its side."""
    error = lambda ends: float((ends.abs() - 1).square().mean().sqrt())
    assert error(one_step(Flow())) > 0.9
    assert error(one_step(Flow(pairing="optimal"))) < 0.35


def test_the_loss_trains_on_the_pairs():
    """The network sees (1 - t) action + t noise of the paired noise: with a net that answers noise - action for its pair the
    loss is 0, with the unpaired order it is not."""
    action = normal(8, 2, 2, seed=1)
    draw = generator(5)
    Flow().draw(8, draw)
    drawn = torch.randn(8, 2, 2, generator=draw)
    form = Flow(pairing="optimal")
    for noise, zero in ((paired(form, drawn, action, None), True), (drawn, False)):
        got = loss(lambda z, t, cond, noise=noise: noise - action, form, action, None, generator(5))
        assert (float(got) < 1e-12) == zero


def test_wrong_pairings_say_what_is_right():
    with pytest.raises(UserError, match="unknown pairing 'optimum': did you mean 'optimal'"):
        Flow(pairing="optimum")
    with pytest.raises(UserError, match="condition_weight=1.0 compares conditions that are one tensor.*tuple"):
        paired(Flow(pairing="optimal", condition_weight=1.0), normal(4, 1, 1), normal(4, 1, 1), (1, 2))
