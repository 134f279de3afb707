"""The published configurations run: their first steps on the human PushT demonstrations, at full size.

Minutes on a CPU, so `slow`: `make test-slow`. Mutation: a learning rate of zero.
"""

import numpy as np
import pytest

from polyarm.config import compose
from polyarm.log import read_log
from polyarm.train import fit


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "experiment, batch, parameters", [("pusht_state", 16, 65_783_298), ("pusht_image", 4, 262_709_026)]
)
def test_two_hundred_steps_of_the_published_size(pusht_zarr, tmp_path, experiment, batch, parameters):
    """Sizes of Diffusion Policy, sections 3 and 4; the batch alone is smaller than published."""
    run = fit(
        compose([
            f"experiment={experiment}", f"task.demos.path={pusht_zarr}", f"output_dir={tmp_path}/run", "train.steps=200",
            f"train.batch_size={batch}", "train.warmup_steps=20", "train.log_every=10", "train.val_every=0",
            "train.rollout_every=0", "train.checkpoint_every=200", "data.num_workers=0", "train.threads=2",
        ])
    )  # fmt: skip
    losses = [row["loss"] for row in read_log(run / "log.jsonl") if "loss" in row]
    assert len(losses) == 20
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:2])
    from polyarm.policies import checkpoint

    assert sum(p.numel() for p in checkpoint.load(run).parameters()) == parameters
