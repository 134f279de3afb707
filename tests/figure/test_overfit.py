"""A policy learns what it is shown: one human PushT episode, to an action error below 1e-3 (scaled, squared).

Mutation: pair the actions with the next observation's window; predict velocity and read it as actions.
"""

import numpy as np
import pytest
import torch

from polyarm.config import compose
from polyarm.datasets.windows import Windows
from polyarm.policies import checkpoint
from polyarm.policies.policy import chunk
from polyarm.task import open_demos
from polyarm.train import fit


@pytest.mark.parametrize(
    "steps, words",
    [(2500, ["policy=flow"]), pytest.param(6000, ["policy=diffusion"], marks=pytest.mark.slow)],
)
def test_overfits_one_episode(pusht_zarr, tmp_path, steps, words):
    """Diffusion Policy, section 11: overfit one PushT episode to a train-action error below 1e-3."""
    config = compose([
        "task=pusht_state", f"task.demos.path={pusht_zarr}", f"output_dir={tmp_path}/run", *words, "data.max_train_episodes=1",
        f"train.steps={steps}", "train.val_every=0", "train.log_every=500",
    ])  # fmt: skip
    folder = checkpoint.find(fit(config))
    policy = checkpoint.load(folder)
    windows = Windows(
        open_demos(config.task),
        checkpoint.read_spec(folder),
        _trained_on(config),
        horizon=16,
        n_obs_steps=2,
        n_action_steps=8,
        pad_after=14,
    )
    clip = windows.__getitems__(np.arange(len(windows)))
    with torch.no_grad():
        actions, _ = chunk(
            policy,
            {n: x[:, 0] for n, x in clip.obs.items()},
            policy.start(len(windows)),
            torch.Generator().manual_seed(0),
        )
    scale = policy.action_space.scale
    error = (scale.do(actions) - scale.do(clip.action[:, 0])).square().mean()
    assert error < 1e-3, float(error)


def _trained_on(config):
    from polyarm.datasets.windows import split_episodes

    return split_episodes(206, config.data.val_ratio, config.data.seed, 1)[0]
