"""Pictures are taken where a chunk is planned from, and nowhere else; what is played does not change by it.

Mutations that turn it red: looking a row too late, or at the rows before a chunk's end however far ahead the next is planned, or once a chunk whatever the history; derived streams of a step at which nobody
looked; a reset that does not look; looking always.
"""

import numpy as np
import pytest
import torch

from polyarm.cloud import Cloud
from polyarm.eval.rollout import rollout
from polyarm.policies.generate.angle import linear_flow
from polyarm.policies.generate.sample import Sampler, euler
from polyarm.policies.policy import Plain
from polyarm.sim.mujoco.pick_place import PickPlace
from polyarm.sim.vector import ShardedVectorEnv
from polyarm.spec import ActionSpace, ObsSpace, Scale
from tests.depth_world import NAME, Depth


class Counted(Cloud):
    made = 0
    """Of all of the process."""

    def make(self, obs):
        Counted.made += 1
        return super().make(obs)


MADE = {"cloud": Counted(("front",), (-0.4, -0.4, 0.004), (0.4, 0.4, 0.3), 40)}


class Looker(Plain):
    """Goes by the means of all that it was shown, each row of its history in its own way."""

    name = "looker"

    def __init__(self, worlds, n_obs_steps, n_action_steps):
        self.n_obs_steps, self.n_action_steps = n_obs_steps, n_action_steps
        streams = worlds.world_spec.obs.pick(["at", "cloud", "front", "front_depth"]).streams
        self.obs_space = ObsSpace(streams, 10.0)
        a = worlds.world_spec.action
        self.action_space = ActionSpace(a.names, a.units, a.frame, 10.0, horizon=8, scale=Scale.identity(2))
        self.sampler = Sampler(euler, linear_flow(1), None)

    def start(self, b):
        return ()

    def encode(self, obs, state, generator=None):
        weight = torch.arange(1, self.n_obs_steps + 1.0)
        means = [obs[s.name].float().flatten(2).mean(2) for s in self.obs_space.streams]
        return sum((i + 1) * (m * weight).sum(1) for i, m in enumerate(means)), state

    def denoise(self, x, phi, cond):
        turn = cond[:, None] + torch.arange(8.0)
        return torch.stack([turn.cos(), turn.sin()], -1).to(x) / 30


class Open(ShardedVectorEnv):
    """Looks at every step, whoever says otherwise."""

    look = property(lambda self: True, lambda self, value: None)


@pytest.mark.parametrize(
    ("seen", "executed", "ahead"),
    [(1, 1, 0), (1, 4, 0), (2, 4, 0), (3, 3, 0), (1, 4, 1), (2, 4, 1), (2, 4, 3), (1, 4, 4), (2, 3, 3), (5, 2, 1)],
)
def test_a_rollout_plays_the_same_without_the_pictures_nobody_looks_at(seen, executed, ahead):
    """Episodes have six steps: with chunks of four, four rows and two. The next chunk is planned `ahead` rows before an end."""
    played, shots = [], []
    for kind in (Open, ShardedVectorEnv):
        worlds, before, made = kind(NAME, {"derive": MADE}, 2, 0), Depth.shots, Counted.made
        found = rollout(Looker(worlds, seen, executed), worlds, [3, 4, 5], ahead=ahead)
        played.append(np.concatenate([p.actions for p in found]))
        shots.append(Depth.shots - before)
        assert Counted.made - made == shots[-1]
        worlds.close()
    np.testing.assert_array_equal(*played)
    planned = [k * executed - ahead for k in range(1, 9)]  # the observation after step t is t + 1
    looked = sum(any(p - seen < t + 1 <= p for p in planned) for t in range(6))
    assert shots == [3 * 7, 3 * (1 + looked)]


def test_a_world_told_not_to_look_shows_the_pictures_of_before():
    world = PickPlace(cameras=["front"], image_size=(24, 32))
    first = world.reset(seed=1)[0]["front"].copy()
    rest = np.zeros(world.action_space.shape)
    world.look = False
    assert np.array_equal(world.step(rest)[0]["front"], first)
    world.look = True
    assert not np.array_equal(world.step(rest)[0]["front"], first)
    world.look = False
    assert not np.array_equal(world.reset(seed=2)[0]["front"], first)
