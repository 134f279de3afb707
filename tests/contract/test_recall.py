"""Recall: its rules, what its expert does, and that nothing but memory solves it. Its world contract: test_worlds.py."""

import numpy as np
import pytest

from polyarm.sim.experts.episode import play
from polyarm.sim.experts.recall import RecallExpert
from polyarm.sim.mujoco.recall import DOCK_M, JUNCTION_M, ORDER, Recall
from polyarm.sim.mujoco.so101 import top_down

HORIZON = 16


class Watched(RecallExpert):
    """Notes its legs, and whether the world was armed, at every step."""

    def reset(self):
        super().reset()
        self.legs = []

    def _advance(self, tip):
        super()._advance(tip)
        self.legs.append(self._leg)

    def turns(self, before, after):
        """Steps at which leg `before` gave way to `after`."""
        pairs = list(zip(self.legs, self.legs[1:], strict=False))
        return [i + 1 for i, pair in enumerate(pairs) if pair == (before, after)]


class Coin(RecallExpert):
    """Knows all but the past: A with probability 2/3, the best it can do."""

    def _choose(self):
        return "A" if self._rng.random() < 2 / 3 else "B"


@pytest.fixture
def world():
    return Recall()


@pytest.fixture(scope="module")
def played():
    """(episode, steps at which the expert turned to a pad, steps at which it turned back to the dock) of 200 seeds."""
    world = Recall()
    expert = Watched(world)
    return [
        (play(world, expert, seed), expert.turns("junction", "pad"), expert.turns("junction", "dock"))
        for seed in range(200)
    ]


def go(world, *places, steps=40):
    """Drives the tip straight to each place (x y z); returns the last step's answer."""
    for place in places:
        for _ in range(steps):
            answer = world.step(top_down(*place)[:4])
            if answer[2]:
                return answer
    return answer


def over(world, pad):
    return (*world.pads[pad], 0.05)


def test_expert_solves_200_of_200(played):
    """Mutations: any threshold of the expert or the task beyond its margin."""
    assert all(episode.success for episode, *_ in played)
    lengths = [len(episode) for episode, *_ in played]
    assert 80 <= min(lengths) and max(lengths) <= 115 and 94 < np.mean(lengths) < 100


def test_a_touch_counts_once_until_the_dock_was_passed(world):
    """Mutation: no arming, or armed by anything else."""
    world.reset(seed=0)
    go(world, over(world, "A"), JUNCTION_M, over(world, "B"), over(world, "A"))
    assert world.touched == 1 and not world.wrong and not world.armed
    go(world, JUNCTION_M, DOCK_M)
    assert world.armed and world.wanted == "B"
    go(world, JUNCTION_M, over(world, "B"), JUNCTION_M, DOCK_M, JUNCTION_M)
    _, reward, terminated, _, info = go(world, over(world, "A"))
    assert world.touched == len(ORDER) and terminated and info["is_success"] and reward == 1.0


@pytest.mark.parametrize(("first", "touched"), [((), 0), ("A", 1)])
def test_the_wrong_pad_while_armed_ends_the_episode(world, first, touched):
    """B first, and A twice. Mutations: only the count is kept, a wrong touch is ignored or counts as success."""
    world.reset(seed=1)
    for pad in first:
        go(world, over(world, pad), JUNCTION_M, DOCK_M, JUNCTION_M)
    _, reward, terminated, truncated, info = go(world, over(world, "A" if first else "B"))
    assert terminated and not truncated and reward == 0.0 and info["is_success"] is False
    assert world.wrong and world.touched == touched


def test_pads_fill_their_fans(world):
    """Mutations: pads swapped, radii or angles off."""
    places = np.array([[world.pads[name] for name in "AB"] for seed in range(200) if world.reset(seed=seed)])
    radius, angle = np.linalg.norm(places, axis=-1), np.rad2deg(np.arctan2(places[..., 1], places[..., 0]))
    assert radius.min() == pytest.approx(0.15, abs=2e-3) and radius.max() == pytest.approx(0.22, abs=2e-3)
    assert (angle.min(0), angle.max(0)) == (pytest.approx([22, -40], abs=0.5), pytest.approx([40, -22], abs=0.5))


def test_joints_are_seen_with_noise_and_pads_without(world):
    """Mutations: noise left out, drawn once an episode, or put on the pads."""
    obs, _ = world.reset(seed=2)
    errors = []
    for _ in range(150):
        obs, *_ = world.step(top_down(*DOCK_M)[:4])
        errors.append(obs["joint_pos"] - world.joints)
        assert np.array_equal(obs["pad_a"], world.pads["A"].astype(np.float32))
    assert np.std(errors, axis=0) == pytest.approx([0.005] * 5, rel=0.2)
    assert np.abs(np.mean(errors, axis=0)).max() < 0.0015


def test_an_experts_actions_replay_without_the_expert(played, world):
    """The expert's own chance is a child of the world's. Mutation: jitter drawn from the world's generator."""
    episode = played[5][0]
    world.reset(seed=episode.seed)
    seen = [world.step(a)[0]["joint_pos"] for a in episode.action]
    assert np.array_equal(seen[:-1], episode.obs["joint_pos"][1:])
    assert world.is_success and abs(world.joints[4]) < 1e-3


def test_no_chunk_carries_the_answer_through(played):
    """From the junction to the dock and back takes longer than a chunk of 16. Mutation: a dock nearer to the junction."""
    rounds = [go - back for _, to_pad, to_dock in played for back, go in zip(to_dock, to_pad[1:], strict=False)]
    assert len(rounds) == 2 * len(played) and min(rounds) > HORIZON


def told_apart(features, labels):
    """Accuracy, on every other row, of the best quadratic of each feature fitted on the rest."""
    z = (features - features.mean(0)) / features.std(0)
    z = np.concatenate([z, z**2, np.ones((len(z), 1))], 1)
    weights = np.linalg.lstsq(z[::2], labels[::2], rcond=None)[0]
    return np.mean(np.sign(z[1::2] @ weights) == labels[1::2])


@pytest.mark.parametrize("visits", [(0, 1), (1, 2), (0, 2)])
def test_at_the_junction_two_observations_do_not_tell_the_visits_apart(played, visits):
    """Mutations: an expert without jitter (0.9), a junction 4 mm further along with each touch."""
    look = lambda v, back: np.array([e.obs["joint_pos"][np.array(pads[v]) - back].ravel() for e, pads, _ in played])
    labels = np.repeat([-1.0, 1.0], len(played))
    seen = np.concatenate([look(v, np.array([1, 0])) for v in visits])
    assert told_apart(seen, labels) == pytest.approx(0.5, abs=0.12)
    if 0 not in visits:  # the visit before lies within sight of a memory of 30 steps
        past = np.concatenate([look(v, np.arange(20, 31, 2)) for v in visits])
        assert told_apart(past, labels) > 0.98


def test_without_memory_chance_is_p_squared_times_one_minus_p(world):
    """At the best p, 2/3, that is 0.148. Mutation: a task that goes on after a wrong pad."""
    coin = Coin(world)
    wins = np.mean([play(world, coin, seed).success for seed in range(150)])
    assert wins == pytest.approx(4 / 27, abs=3 * np.sqrt(4 / 27 * 23 / 27 / 150))
