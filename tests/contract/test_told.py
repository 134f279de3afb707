"""What a policy is told reaches what it does, and what it did is counted by what it was told.

Mutations that turn these red: an encoder's yaml without `text`; words that are not looked at by the chunk; the instruction of the
row's episode before; an instruction that is asked at the end of an episode.
"""

import gymnasium as gym
import numpy as np
import pytest
import torch

from polyarm.config import build, compose
from polyarm.eval.rollout import rollout
from polyarm.eval.score import summary
from polyarm.policies.policy import plan
from polyarm.rotation import CHANNELS
from polyarm.sim.vector import ShardedVectorEnv
from polyarm.sim.world import observation_space
from polyarm.spec import ActionSpace, ObsSpace, Scale, Spec, Stream
from polyarm.text import text_row

XYZ, SIX = ("x", "y", "z"), CHANNELS["rot6d_columns"]
LOOK = (*XYZ, "red", "green", "blue")
POSE = ((*XYZ, *SIX, "opening"), (*("m",) * 3, *("1",) * 6, "m"))
STREAMS = (
    Stream("tip", "state", (10,), *POSE, "base", Scale.identity(10)),
    Stream("instruction", "text", (32,)),
    Stream("cloud", "points", (24, 6), LOOK, ("m",) * 3 + ("1",) * 3, "base", Scale.identity(6)),
    Stream("front", "image", (32, 32, 3), frame="front"),
    Stream("front_points", "points", (32, 32, 3), (), ("m",) * 3, "base"),
)
ACTION = ActionSpace(*POSE, "base", 20.0, rotation="rot6d_columns", rotations=(3,), scale=Scale.identity(10))
SMALL = ["policy.body.width=16", "policy.body.blocks=1"]
ACTOR = ["policy.encoder.width=24", "policy.encoder.heads=2", "policy.encoder.image.trunk.channels=[8,8,16]"]
WORDS = {
    "points": ["experiment=dp3_cpu", "encoder=points_colour", *SMALL],
    "scene": ["experiment=actor3d_cpu", *ACTOR],
    "image": ["policy=diffusion", "encoder=small", *SMALL],
    "state": ["policy=flow", *SMALL],
}


@pytest.mark.parametrize("see", WORDS)
def test_only_the_words_change_and_what_it_does_changes(see):
    config = compose(["task=lift_named_cube", *WORDS[see], f"task.see={see}"])
    space = ObsSpace(STREAMS, 20.0)
    torch.manual_seed(0)
    policy = build(config.policy, Spec(space.pick([n for n in config.task.streams if n in space.names]), ACTION)).eval()
    for p in policy.parameters():
        if not p.any():  # an untrained head answers 0 whatever it is asked
            torch.nn.init.normal_(p, std=0.1)
    draw = np.random.default_rng(0)
    n, told = policy.n_obs_steps, ("lift the red cube", "lift the blue cube", "lift the red cube")
    seen = {s.name: draw.uniform(0.1, 0.9, (1, n, *s.shape)).astype("f4") for s in STREAMS if s.dtype == "float32"}
    seen["front"] = draw.integers(0, 256, (1, n, 32, 32, 3), np.uint8)
    chunks = []
    for text in told:
        obs = seen | {"instruction": np.tile(text_row(text, 32), (1, n, 1))}
        given = {name: torch.from_numpy(obs[name]) for name in policy.obs_space.names}
        with torch.no_grad():
            chunks.append(plan(policy, given, policy.start(1), torch.Generator().manual_seed(0))[0])
    assert torch.equal(chunks[0], chunks[2]) and not torch.allclose(chunks[0], chunks[1], atol=1e-6)


class Told(gym.Env):
    """Odd seeds are told to go, even ones to stay, which is what succeeds; two steps an episode."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10.0}  # noqa: RUF012

    def __init__(self, render_mode="rgb_array"):
        streams = (Stream("at", "state", (1,), ("x",), ("m",), "base"), Stream("task", "text", (8,)))
        self.world_spec = Spec(ObsSpace(streams, 10.0), ActionSpace(("x",), ("m",), "base", 10.0))
        self.observation_space = observation_space(self.world_spec.obs)
        self.action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.text = 0, "go" if seed % 2 else "stay"
        return self._obs(), {"is_success": False}

    def step(self, action):
        self.t += 1
        won = self.text == "stay"
        if self.t == 2:
            self.text = "over"
        return self._obs(), float(won), False, self.t == 2, {"is_success": won}

    def _obs(self):
        return {"at": np.float32([0.1 * self.t]), "task": text_row(self.text, 8)}


gym.register("test/Told-v0", lambda **kwargs: Told(**kwargs), disable_env_checker=True)


def test_episodes_are_counted_by_what_they_were_told():
    """Five seeds in two rows, so that a row plays several."""
    with_scales = ObsSpace(
        (Stream("at", "state", (1,), ("x",), ("m",), "base", Scale.identity(1)), Stream("task", "text", (8,))), 10.0
    )
    spec = Spec(with_scales, ActionSpace(("x",), ("m",), "base", 10.0, scale=Scale.identity(1)))
    policy = build(compose(["policy=flow", *SMALL]).policy, spec)
    worlds = ShardedVectorEnv("test/Told-v0", {}, 2, 0)
    played = [p.outcome for p in rollout(policy, worlds, [1, 2, 3, 5, 8])]
    worlds.close()
    assert [o.told for o in played] == ["go", "stay", "go", "go", "stay"]
    found = summary(played, "success")["instructions"]
    assert {text: (x["success_rate"], x["n"]) for text, x in found.items()} == {"go": (0.0, 3), "stay": (1.0, 2)}
