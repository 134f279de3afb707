"""Small demonstrations and runs that the loops' tests share."""

import pytest

from polyarm.config import compose
from polyarm.datasets.store import Store


@pytest.fixture(scope="session")
def demos(tmp_path_factory):
    """Eight expert episodes of the demo task."""
    import gymnasium

    import polyarm.sim  # noqa: F401  registers the worlds
    from polyarm.sim.experts.episode import play
    from polyarm.sim.experts.pick_place import PickPlaceExpert

    path = tmp_path_factory.mktemp("demos") / "pick_place.zarr"
    env = gymnasium.make("polyarm/PickPlace-v0")
    with Store.create(path, env.unwrapped.world_spec) as store:
        for seed in range(8):
            e = play(env, PickPlaceExpert(env.unwrapped), seed)
            store.append({**e.obs, "action": e.action, "time_s": e.time_s}, seed)
    return path


@pytest.fixture(scope="session")
def words(demos):
    """(output_dir, *more) -> the words of a training of seconds: 20 steps, checkpoints at 7, 14 and the end."""

    def words(out, *more):
        body = [] if any(w.startswith("body=") for w in more) else ["policy.body.width=32", "policy.body.blocks=1"]
        return [
            *body, f"task.demos.path={demos}", f"output_dir={out}",
            "train.batch_size=16", "train.log_every=5", "train.val_every=10", "data.val_ratio=0.25", "train.steps=20",
            "train.checkpoint_every=7", *more,
        ]  # fmt: skip

    return words


@pytest.fixture(scope="session")
def settings(words):
    return lambda out, *more: compose(words(out, *more))
