"""Best of k by energy.

Mutations that turn it red: keep the chunk of the highest energy; choose for the whole batch; start all k from one noise;
past actions not shown to the policy, or its solver shown the pair of conditions.
"""

import pytest
import torch

from polyarm.policies.mixture import Mixture
from polyarm.policies.pick import Picked
from polyarm.policies.policy import plan
from polyarm.spec import UserError
from tests.property.test_mixture import ACTION, policy


def planned(p, seed=0, b=6):
    obs = {"s": torch.linspace(-1, 1, b * 2 * 3).view(b, 2, 3)}
    with torch.no_grad():
        return plan(p, obs, p.start(b), torch.Generator().manual_seed(seed))


def test_one_of_one_is_the_policy_to_the_bit():
    flow, ebt = policy("flow", 1), policy("ebt", 2)
    assert torch.equal(planned(Picked(flow, ebt, 1)).action, planned(flow).action)


def test_every_row_gets_the_chunk_of_its_lowest_energy():
    flow, ebt = policy("flow", 1), policy("ebt", 2)
    flow.sampler = flow.sampler.__class__(
        flow.sampler.solver, flow.sampler.angles[-2:], None
    )  # one step: chunks differ
    picked = planned(Picked(flow, ebt, 5))
    noise = torch.Generator().manual_seed(0)
    obs = {"s": torch.linspace(-1, 1, 6 * 2 * 3).view(6, 2, 3)}
    cond, judge = flow.encode(obs, ())[0], ebt.encode(obs, ())[0]
    with torch.no_grad():
        every = [flow.sampler(flow.denoise, torch.randn(6, 16, 2, generator=noise), cond, noise) for _ in range(5)]
        energies = torch.stack([ebt.energy(x, judge) for x in every])
    best = energies.argmin(0)
    assert len(best.unique()) > 1  # rows choose for themselves
    wanted = torch.stack(every)[best, torch.arange(6)]
    torch.testing.assert_close(picked.action, flow.action_space.scale.undo(wanted), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(picked.energy, energies.amin(0), rtol=1e-5, atol=1e-5)


def test_a_policy_with_memory_is_carried_beside_its_judge():
    seed, ebt = policy("seed", 1), policy("ebt", 2)
    picked = Picked(Mixture([seed, ebt], (0.5, 0.5)), ebt, 2)
    assert len(picked.start(3)) == len(seed.start(3))
    after = planned(picked).state
    assert all(torch.equal(a, b) for a, b in zip(after, planned(seed).state, strict=True))


def test_what_has_no_energy_cannot_judge():
    with pytest.raises(UserError, match="policy flow has no energy to pick by: add one that has, such as policy=ebt"):
        Picked(policy("diffusion", 1), policy("flow", 2), 4)
    with pytest.raises(UserError, match="pick=0: give the number of chunks"):
        Picked(policy("flow", 1), policy("ebt", 2), 0)


def test_a_policy_that_starts_from_its_past_actions_is_picked_from():
    """BESO as published executes one action a chunk and is shown those before: k = 1 is that policy to the bit, and the past
    still matters."""
    one = ("policy.horizon=3", "policy.n_obs_steps=3", "policy.n_action_steps=1")
    beso, ebt = policy("beso", 1, ACTION, *one), policy("ebt", 2, ACTION, *one)
    beso.goal_steps = 0
    obs = {"s": torch.linspace(-1, 1, 54).view(6, 3, 3), "action": torch.linspace(-0.2, 0.2, 24).view(6, 2, 2)}

    def act(p, **more):
        with torch.no_grad():
            return plan(p, obs | more, p.start(6), torch.Generator().manual_seed(0)).action

    picked = Picked(beso, ebt, 1)
    assert picked.past_rows == beso.past_rows == 2
    assert torch.equal(act(picked), act(beso))
    assert not torch.equal(act(picked), act(picked, action=obs["action"] + 0.1))
    assert not torch.equal(act(Picked(beso, ebt, 4)), act(beso))
