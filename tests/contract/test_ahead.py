"""Planning ahead: at 0 the agent of before to the bit; at d the rows To - 1 + d .. of a chunk that is planned d rows early; in a
thread the same.

Mutations that turn it red: use the rows from To - 1 on whatever was committed; plan a row too late; forget carried state at every
plan, or restart it twice; draw all rows' noise; let what is being planned from change (no copy); put a chunk that was asked for
before a restart into the new episode; show the energy of a chunk before it is executed; take only `ready` chunks where a row has
nothing left; round the rows of a latency down, or those of one period of 15 Hz up to 2.
"""

from dataclasses import replace
from threading import Event, current_thread

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from polyarm.config import build, compose
from polyarm.eval import latency
from polyarm.eval.agent import Agent
from polyarm.eval.plan import require_ahead
from polyarm.eval.rollout import rollout
from polyarm.policies.mixture import Mixture
from polyarm.policies.pick import Picked
from polyarm.spec import ActionSpace, ObsSpace, Scale, Spec, Stream, UserError
from tests.contract.test_agent import Counter, Teller, obs
from tests.first_agent import FirstAgent

OBS = ObsSpace((Stream("t", "state", (1,), ("t",), ("1",), scale=Scale.identity(1)),), 10.0)
ACTION = ActionSpace(("a", "b"), ("m", "m"), "base", 10.0, scale=Scale((2.0, 0.5), (0.0, 0.1)))


STEPS = ["policy.sampler.angles.steps=2"]
SEED = ["policy.token_width=16", "policy.hidden=16", "policy.memory.tokens=2", "policy.memory.depth=1", *STEPS]


def made(name, *words):
    torch.manual_seed(len(name))
    small = {"seed": SEED, "ebt": []}.get(name, STEPS)
    policy = build(compose([f"policy={name}", "policy.body.width=16", *small, *words]).policy, Spec(OBS, ACTION)).eval()
    for p in policy.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return policy


class Whole(Teller):
    """All that a policy may be shown, carry and say, in its chunks."""

    past_rows, goal_steps = 2, 1

    def encode(self, obs, state, generator=None):
        cond, after = super().encode(obs, state)
        more = [obs["action"].nan_to_num(-1.0).sum((1, 2)), *(g.sum((1, 2)) for n, g in obs.items() if n == "goal.t")]
        return (cond[0] + sum(more), cond[1]), (after[0] + 0.1 * obs["t"][:, -1, 0],)

    def energy(self, x, cond):
        return cond[0] + cond[1]


@pytest.fixture(scope="module")
def kinds():
    flow, ebt, beso = made("flow"), made("ebt"), made("beso", "policy.goal_steps=2")
    return {
        "flow": flow, "memory": made("seed"), "energies": ebt, "goals": beso, "picked": Picked(ebt, ebt, 3),
        "mixture": Mixture([flow, beso], (0.4, 0.6)), "past": Whole(noise=0.5),
    }  # fmt: skip


KINDS = ["flow", "memory", "energies", "goals", "picked", "mixture", "past"]


def life(agent, policy, steps=18, n=3):
    """Actions and energies of n rows that begin episodes at times of their own."""
    draw, rows = np.random.default_rng(7), np.ones(n, bool)
    goals = lambda: [{"t": np.full(1, k)} for k in range(rows.sum())] if policy.goal_steps else None
    done, felt = [], []
    for t in range(steps):
        if t in (0, 5, 8, 13):
            rows = np.ones(n, bool) if t in (0, 8) else np.arange(n) == t % n
            agent.restart(rows, [100 * t + i if rows[i] else None for i in range(n)], goals())
        done.append(agent.act({"t": draw.normal(size=(n, 1)).astype(np.float32)}))
        felt.append(np.nan if agent.energy is None else np.array(agent.energy))
    return np.stack(done), np.array(felt)


@pytest.mark.parametrize("kind", KINDS)
def test_without_planning_ahead_nothing_has_changed_to_the_bit(kinds, kind):
    policy = kinds[kind]
    for n in (1, 3):
        for one, other in zip(
            life(FirstAgent(policy, n), policy, n=n), life(Agent(policy, n), policy, n=n), strict=True
        ):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kind", KINDS)
def test_a_thread_beside_plans_the_same_to_the_bit(kinds, kind):
    policy = kinds[kind]
    one, other = (Agent(policy, 3, 3, ahead=2, beside=beside) for beside in (False, True))
    for a, b in zip(life(one, policy), life(other, policy), strict=True):
        np.testing.assert_array_equal(a, b)
    other.close()


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize(("ta", "d"), [(4, 0), (4, 1), (4, 2), (3, 3), (1, 1)])
def test_the_rows_that_come_after_those_still_left_are_used(ta, d, beside):
    """Step t of chunk k >= 1 is row t - (k Ta - d) after the newest observation, seen at k Ta - d; the state has stepped k times."""
    policy = Teller()
    agent = Agent(policy, 1, ta, ahead=d, beside=beside)
    agent.restart(np.array([True]), [0])
    got = [float(agent.act(obs(t))[0, 0]) for t in range(12)]
    at = [max(0, t // ta * ta - d) for t in range(12)]
    np.testing.assert_allclose(got, [100 * p + 2 + t - p + 0.001 * (t // ta) for t, p in enumerate(at)], rtol=1e-6)
    asked = [0, *(p for p in range(1 - (d == ta), 12) if (p + d) % ta == 0)]
    agent.restart(np.array([True]), [0])
    assert [w[0, -1] for w in policy.seen] == asked


def test_what_is_still_to_be_executed_is_told_and_what_was_seen_stays():
    """A planner that looks only when it is taken from finds what was there when it was asked."""
    asked = []

    class Late:
        ready = False

        def __init__(self, planner):
            self.planner = planner

        def submit(self, seen):
            asked.append(seen)

        def take(self):
            self.planner.submit(asked[-1])
            return self.planner.take()

        def restart(self, rows, seeds):
            self.planner.restart(rows, seeds)

    late, plain = (Agent(Whole(noise=1.0), 2, 3, ahead=2) for _ in range(2))
    late._planner = Late(late._planner)
    actions = []
    for agent in (late, plain):
        agent.restart(np.ones(2, bool), [1, 2])
        actions.append(np.stack([agent.act(obs(t, 3 * t)) for t in range(9)]))
    np.testing.assert_array_equal(*actions)
    assert np.isnan(asked[0].committed).all() and [s.step.tolist() for s in asked] == [[0, 0], [1, 1], [4, 4], [7, 7]]
    for seen in asked[1:3]:
        t = seen.step[0]
        np.testing.assert_array_equal(seen.committed, actions[0][t : t + 2].swapaxes(0, 1))


class Held(Teller):
    """Plans when it is let."""

    def __init__(self):
        super().__init__()
        self.let, self.threads = Event(), set()

    def encode(self, obs, state, generator=None):
        self.threads.add(current_thread().name)
        assert self.let.wait(60)
        return super().encode(obs, state)


def test_an_arm_goes_on_while_the_next_chunk_is_planned():
    policy = Held()
    agent = Agent(policy, 1, 3, ahead=2, beside=True)
    agent.restart(np.ones(1, bool), [0])
    policy.let.set()
    agent.act(obs(0))
    policy.let.clear()
    went_on = [float(agent.act(obs(t))[0, 0]) for t in (1, 2)]  # planned from step 1, which nobody lets it
    assert not agent._planner.ready
    policy.let.set()
    np.testing.assert_allclose([*went_on, float(agent.act(obs(3))[0, 0])], [3, 4, 104.001], rtol=1e-6)
    assert all(name.startswith("planner") for name in policy.threads)


def test_what_planning_raises_is_raised_where_the_chunk_is_taken():
    class Fails(Teller):
        def encode(self, obs, state, generator=None):
            raise UserError("no")

    for d, beside in ((0, False), (1, True)):
        agent = Agent(Fails(), 1, 3, ahead=d, beside=beside)
        agent.restart(np.ones(1, bool), [0])
        with pytest.raises(UserError, match="^no$"):
            agent.act(obs(0))


def test_the_energy_is_of_the_chunk_that_is_executed():
    class Feels(Teller):
        def energy(self, x, cond):
            return cond[0]

    agent = Agent(Feels(), 1, 3, ahead=2)
    agent.restart(np.ones(1, bool), [0])
    felt = [(agent.act(obs(t)), float(agent.energy[0]))[1] for t in range(9)]
    assert felt == [0, 0, 0, 1, 1, 1, 4, 4, 4]


@pytest.mark.parametrize("time_stands", [True, False, None])
def test_a_rollout_plans_beside_worlds_whose_time_goes_on(time_stands):
    """And beside those that do not say; the episodes are the same. Mutation: beside all, or none."""
    worlds, policy = Counter(2), Held()
    if time_stands is not None:
        worlds.replays, worlds.simulated_time = True, time_stands
    policy.let.set()
    played = rollout(policy, worlds, [3, 10, 4, 7, 12], 3, ahead=2)
    assert all(name.startswith("planner") != bool(time_stands) for name in policy.threads)
    for n in (1, 5):
        for p, q in zip(played, rollout(Teller(), Counter(n), [3, 10, 4, 7, 12], 3, ahead=2), strict=True):
            np.testing.assert_array_equal(p.actions, q.actions)
    assert not np.array_equal(played[0].actions, rollout(Teller(), Counter(1), [3], 3)[0].actions)


@given(st.integers(1, 20), st.integers(1, 6), st.integers(1, 12), st.integers(0, 12))
@settings(deadline=None, max_examples=200)
def test_a_chunk_is_long_enough_or_the_remedy_is(horizon, n_obs, steps, d):
    """Rows To - 1 + d .. To - 2 + d + Ta lie in the chunk, and a chunk is planned no sooner than the one before begins."""
    policy = Teller(horizon)
    policy.n_obs_steps = n_obs
    if steps > horizon - n_obs + 1:
        with pytest.raises(UserError, match="horizon"):
            require_ahead(policy, steps, d)
    elif n_obs - 1 + d + steps <= horizon and d <= steps:
        require_ahead(policy, steps, d)
    else:
        with pytest.raises(UserError, match=f"eval.ahead={d}: policy teller cannot plan {d} rows ahead") as refused:
            require_ahead(policy, steps, d)
        said = str(refused.value)
        if "eval.n_action_steps" in said:
            values = [
                int(w) for w in said.partition("eval.n_action_steps")[2].partition(",")[0].strip("= from").split(" to ")
            ]
            for good in (values[0], values[-1]):
                require_ahead(policy, good, d)
        else:
            most = int(said.partition("at most ")[2].split()[0])
            assert most < d
            if most:
                require_ahead(policy, most, most)


def config(**settings):
    plain = compose([]).eval
    return OmegaConf.create(
        {"eval": OmegaConf.merge(plain, settings), "task": {"env_id": "x", "action_kind": "trajectory"}}
    )


@pytest.mark.parametrize(
    ("ms", "rate", "rows"),
    [(0, 10, 0), (1, 10, 1), (100, 10, 1), (100.5, 10, 2), (300, 10, 3), (110, 100, 11), (66.66666666666667, 15, 1)],
)
def test_a_latency_is_the_rows_that_last_as_long(ms, rate, rows):
    policy = Teller(horizon=40)
    policy.action_space = replace(policy.action_space, rate_hz=float(rate))
    found = latency.ahead(config(latency_ms=ms, n_action_steps=12), policy)
    assert (found.rows, found.latency_ms) == (rows, ms)
    assert latency.ahead(config(ahead=rows, n_action_steps=12), policy) == latency.Ahead(rows, 1000 * rows / rate)


def test_a_measured_latency_is_that_of_nearly_all_chunks(monkeypatch):
    """Mutation: the mean, or the median."""
    monkeypatch.setattr(latency, "chunk_times", lambda *_: [10.0] * 28 + [190.0] * 12)
    found = latency.ahead(config(latency_ms="auto"), Teller(horizon=10), Counter(2))
    assert (found.rows, found.latency_ms) == (2, 190.0)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"ahead": 5}, r"eval.ahead=5: policy teller cannot plan 5 rows ahead of the 4 .* has 6 rows .*: give a smaller one \(at most 3 rows"),
        ({"ahead": 3}, "eval.ahead=3: .* give eval.n_action_steps=3, or train with a longer"),
        ({"latency_ms": 250}, "eval.latency_ms=250 ms, 3 rows at 10 Hz: policy teller cannot plan 3 rows ahead"),
        ({"latency_ms": 50, "ahead": 1}, "eval.ahead=1 and eval.latency_ms=50 say the same"),
        ({"latency_ms": "auto"}, "eval.latency_ms=auto is measured by `polyarm eval`: give the ms"),
    ],
)  # fmt: skip
def test_what_cannot_be_planned_ahead_is_refused(settings, said):
    with pytest.raises(UserError, match=said):
        latency.ahead(config(**settings), Teller())


def test_a_latency_is_no_number_of_keyposes():
    given = config(latency_ms=10)
    given.task.action_kind = "keypose"
    with pytest.raises(UserError, match="keyposes take as long as the arm needs.*; give eval.ahead"):
        latency.ahead(given, Teller())


def test_a_sweep_is_refused_where_time_goes_on():
    worlds = Counter(1)
    worlds.replays, worlds.simulated_time = False, False
    with pytest.raises(UserError, match=r"eval.latencies_ms=\[50\]: x goes on while the policy plans"):
        latency.swept(config(latencies_ms=[50]), Teller(), latency.Ahead(0, 0.0), worlds)
