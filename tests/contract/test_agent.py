"""The agent and the rollout loop, on a policy that says what it saw.

Mutations that turn it red: start the executed rows at To instead of To - 1; share one generator between rows; repeat the
newest instead of the first observation at the start; keep a finished row's state; draw an idle row's noise from its own
generator; take every row's new energy when one plans; count the last step's success alone.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from polyarm.eval.agent import Agent
from polyarm.eval.rollout import rollout
from polyarm.policies.generate.angle import linear_flow
from polyarm.policies.generate.sample import Sampler, euler
from polyarm.policies.policy import Plain
from polyarm.sim.vector import ShardedVectorEnv
from polyarm.spec import ActionSpace, ObsSpace, Scale, Spec, Stream, UserError
from tests import odd_worlds  # noqa: F401  registers them


class Teller(Plain):
    """Answers row h of a chunk with 100 * newest observation + h, plus what its state counted; keeps every window it saw."""

    name, n_obs_steps, n_action_steps = "teller", 3, 4

    def __init__(self, horizon=8, noise=0.0):
        one = Scale.identity(1)
        self.obs_space = ObsSpace((Stream("t", "state", (1,), ("t",), ("1",), scale=one),), 10.0)
        self.action_space = ActionSpace(("a",), ("1",), "", 10.0, horizon=horizon, scale=one)
        self.sampler = Sampler(euler, linear_flow(1), None)
        self.seen, self.noise = [], noise

    def start(self, b):
        return (torch.zeros(b),)

    def encode(self, obs, state, generator=None):
        self.seen.append(obs["t"][..., 0].clone())
        return (obs["t"][:, -1, 0], state[0]), (state[0] + 1,)

    def denoise(self, x, phi, cond):
        newest, calls = cond
        rows = torch.arange(self.action_space.horizon, dtype=x.dtype)
        return (100 * newest[:, None] + rows + 0.001 * calls[:, None])[..., None] + self.noise * x


def obs(*values):
    return {"t": np.array(values, np.float32)[:, None]}


def test_executes_the_rows_that_belong_to_the_newest_observation():
    """Diffusion Policy, section 1: pred[To - 1 : To - 1 + Ta]."""
    agent = Agent(Teller(), 1)
    agent.restart(np.array([True]), [0])
    got = [float(agent.act(obs(t))[0, 0]) for t in range(8)]
    np.testing.assert_allclose(got, [2, 3, 4, 5, 402.001, 403.001, 404.001, 405.001], rtol=1e-6)


def test_history_repeats_the_oldest_until_it_is_full():
    """Diffusion Policy, section 8: [7, 8] with room for 4 is [7, 7, 7, 8]."""
    policy = Teller()
    agent = Agent(policy, 1, n_action_steps=1)
    agent.restart(np.array([True]), [0])
    for t in (7, 8, 9):
        agent.act(obs(t))
    assert [w[0].tolist() for w in policy.seen] == [[7, 7, 7], [7, 7, 8], [7, 8, 9]]


def test_a_restarted_row_forgets_and_its_neighbour_does_not():
    policy = Teller()
    agent = Agent(policy, 2, n_action_steps=2)
    agent.restart(np.array([True, True]), [0, 0])
    for t in range(2):
        agent.act(obs(t, t))
    agent.restart(np.array([False, True]), [None, 5])
    action = agent.act(obs(2, 50))
    assert policy.seen[-1].tolist() == [[0, 1, 2], [50, 50, 50]]
    np.testing.assert_allclose(action[:, 0], [202.001, 5002.0], rtol=1e-6)


def test_a_restart_in_mid_chunk_plans_for_that_row_alone():
    policy = Teller()
    agent = Agent(policy, 2, n_action_steps=4)
    agent.restart(np.array([True, True]), [0, 0])
    agent.act(obs(0, 0))
    agent.restart(np.array([True, False]), [1, None])
    action = agent.act(obs(9, 1))
    np.testing.assert_allclose(action[:, 0], [902.0, 3.0], rtol=1e-6)


def test_noise_belongs_to_the_episode_not_to_its_place():
    """The same seed draws the same noise in row 0 of 1 and in row 1 of 3."""
    alone, crowd = Agent(Teller(noise=1.0), 1), Agent(Teller(noise=1.0), 3)
    alone.restart(np.array([True]), [77])
    crowd.restart(np.array([True, True, True]), [1, 77, 2])
    first = float(crowd.act(obs(0, 0, 0))[1, 0])
    assert float(alone.act(obs(0))[0, 0]) == first
    other = Agent(Teller(noise=1.0), 1)
    other.restart(np.array([True]), [78])
    assert float(other.act(obs(0))[0, 0]) != first


def test_a_row_that_does_not_plan_draws_no_noise():
    """Row 0 acts as it would alone, whenever its neighbour begins an episode and plans."""
    alone, pair = Agent(Teller(noise=1.0), 1), Agent(Teller(noise=1.0), 2)
    alone.restart(np.array([True]), [5])
    pair.restart(np.array([True, True]), [5, 6])
    for t in range(10):
        if t in (1, 3, 6):  # in the middle of row 0's chunks
            pair.restart(np.array([False, True]), [None, 7 + t])
        assert alone.act(obs(t))[0] == pair.act(obs(t, t))[0]


def test_more_rows_than_the_chunk_has_are_refused():
    with pytest.raises(UserError, match="at most 6"):
        Agent(Teller(), 1, n_action_steps=7)


class Counter(Plain):
    """Worlds that count: observation t, reward t / 10, success at 5 for even seeds, truncated at 7 for odd ones."""

    def __init__(self, n):
        self.num_envs, self.look = n, True
        one = ObsSpace((Stream("t", "state", (1,), ("t",), ("1",)),), 10.0)
        self.world_spec = Spec(one, ActionSpace(("a",), ("1",), "", 10.0))
        self.t, self.seed = np.zeros(n), np.zeros(n, int)
        self.actions = []

    def reset(self, seed, options):
        for i in np.flatnonzero(options["reset_mask"]):
            self.t[i], self.seed[i] = 0, seed[i]
        return {"t": self.t[:, None].astype(np.float32)}, {}

    def _done(self):
        return np.where(self.seed % 2 == 0, self.t >= 5, self.t >= 7)

    def step(self, actions):
        running = ~self._done()
        self.t += running
        success = (self.t >= 5) & (self.seed % 2 == 0)
        done = self._done()
        reward = np.where(running, self.t / 10, 0)
        return (
            {"t": self.t[:, None].astype(np.float32)},
            reward,
            done & success,
            done & ~success,
            {"is_success": success},
        )


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_every_seed_is_played_once_whatever_the_number_of_worlds(n):
    seeds = [3, 10, 4, 7, 12]
    played = rollout(Teller(), Counter(n), seeds)
    assert [p.outcome.seed for p in played] == seeds
    assert [p.outcome.success for p in played] == [False, True, True, False, True]
    assert [p.outcome.steps for p in played] == [7, 5, 5, 7, 5]
    np.testing.assert_allclose([p.outcome.score for p in played], [0.7, 0.5, 0.5, 0.7, 0.5])
    assert [len(p.actions) for p in played] == [7, 5, 5, 7, 5]
    for p, first in zip(played, rollout(Teller(), Counter(1), seeds), strict=True):
        np.testing.assert_array_equal(p.actions, first.actions)


def test_a_policy_that_asks_sees_what_was_executed():
    """BESO, section 5: the actions of the observation steps before the newest, NaN before the episode began."""

    class Asks(Teller):
        n_action_steps, past_rows = 1, 2

        def encode(self, obs, state, generator=None):
            self.past = obs["action"][..., 0].clone()
            return super().encode(obs, state, generator)

    policy = Asks()
    agent = Agent(policy, 2)
    agent.restart(np.array([True, True]), [0, 1])
    got = [agent.act(obs(t, 10 * t))[:, 0].copy() for t in range(1, 4)]
    np.testing.assert_allclose(policy.past.numpy(), np.stack(got[:2], 1))
    agent.restart(np.array([True, False]), [2, None])
    agent.act(obs(4, 40))
    assert policy.past[0].isnan().all() and torch.allclose(policy.past[1, 1], torch.tensor(got[2][1]))


def test_the_energy_of_the_executed_chunk_stays_until_the_next():
    class Feels(Teller):
        def energy(self, x, cond):
            return cond[0]

    agent = Agent(Feels(), 2)
    agent.restart(np.array([True, True]), [0, 1])
    for t in range(5):
        agent.act(obs(t, 10 + t))
        np.testing.assert_allclose(agent.energy, [4 * (t // 4), 10 + 4 * (t // 4)])


def test_a_neighbours_plan_leaves_the_energy_of_the_chunk_that_is_executed():
    class Feels(Teller):
        def energy(self, x, cond):
            return cond[0]

    agent = Agent(Feels(), 2)
    agent.restart(np.array([True, True]), [0, 1])
    agent.act(obs(1, 2))
    agent.restart(np.array([False, True]), [None, 3])
    agent.act(obs(7, 8))  # only row 1 plans
    np.testing.assert_allclose(agent.energy, [1, 8])
    for t in range(3):
        agent.act(obs(20 + t, 30))  # row 0 plans at its fifth step
    np.testing.assert_allclose(agent.energy, [22, 8])


@pytest.mark.parametrize(("rule", "won"), [("ever", True), ("last", False)])
def test_a_success_that_passes_counts_as_the_task_says(rule, won):
    """test/Passing-v0 succeeds at its second step of three and loses it; test/Odd-v0 says so with its last step alone."""
    passing, odd = ShardedVectorEnv("test/Passing-v0", {}, 2, 0), ShardedVectorEnv("test/Odd-v0", {}, 2, 0)
    policy = Still(passing.world_spec)
    assert [p.outcome.success for p in rollout(policy, passing, [0, 1, 2], success=rule)] == [won] * 3
    assert [p.outcome.success for p in rollout(policy, odd, [0, 1, 2, 3], success=rule)] == [True, False, True, False]
    with pytest.raises(UserError, match="unknown rule of task.success 'evr': did you mean 'ever'"):
        rollout(policy, passing, [0], success="evr")


class Still(Teller):
    """Does nothing, in a world of this spec."""

    n_obs_steps, n_action_steps = 1, 2

    def __init__(self, spec):
        super().__init__()
        one = Scale.identity(2)
        self.obs_space = replace(spec.obs, streams=tuple(replace(s, scale=one) for s in spec.obs.streams))
        self.action_space = replace(spec.action, horizon=4, scale=one)

    def encode(self, obs, state, generator=None):
        return None, state

    def denoise(self, x, phi, cond):
        return 0 * x


def test_worlds_that_name_no_goal_say_so_and_an_error_of_theirs_stays_one():
    """An AttributeError inside a world's goal() is no missing goal. Mutation: catch it."""
    policy = Teller()
    policy.goal_steps = 1
    with pytest.raises(UserError, match="this world names no goal to show the policy: give eval.goals=false"):
        rollout(policy, Counter(1), [0])
    rollout(policy, Counter(1), [0], goals=False)

    class Broken(Counter):
        def goals(self, rows):
            return self.no_such_thing

    with pytest.raises(AttributeError, match="no_such_thing"):
        rollout(policy, Broken(1), [0])


def test_a_goal_that_does_not_fit_is_refused():
    policy = Teller()
    policy.goal_steps = 2
    agent = Agent(policy, 1)
    with pytest.raises(UserError, match=r"the goal has streams u, policy teller needs 't': give eval.goals=false"):
        agent.restart(np.array([True]), [0], [{"u": np.zeros(1)}])
    with pytest.raises(
        UserError, match=r"the goal of stream 't' has shape \(2,\), policy teller was trained on \(1,\)"
    ):
        agent.restart(np.array([True]), [0], [{"t": np.zeros(2)}])
