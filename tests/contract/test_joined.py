"""Several stores read as one are what one store of all their episodes is.

Mutations that turn these red: ends that do not go on; rows looked up from the first store alone, or in sorted order; streams that
only one of them holds; versions of the first; `also` not asked for seeds.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from polyarm.cli import main
from polyarm.config import compose
from polyarm.datasets.joined import Joined
from polyarm.datasets.scale import fit_spec
from polyarm.datasets.store import Store
from polyarm.datasets.windows import Windows
from polyarm.eval.seeds import demonstrated
from polyarm.spec import Stream, UserError
from polyarm.task import open_demos
from tests import boxes

SIZE = 8
STREAMS = ("tip", "front", "front_points", "cloud", "goal", "action", "time_s")


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """(two stores, one with the episodes of both)"""
    folder = tmp_path_factory.mktemp("joined")
    parts = [boxes.store(folder / f"{i}.zarr", n=2 + i, size=SIZE, seed=i) for i in range(2)]
    with Store.create(folder / "all.zarr", boxes.spec(SIZE)) as whole:
        for i in range(2):
            random = np.random.default_rng(i)
            for seed in range(2 + i):
                whole.append(boxes.episode(random, SIZE), seed + 10 * i)
    return parts, folder / "all.zarr"


def test_it_holds_what_one_store_would(paths):
    parts, path = paths
    joined, whole = Joined([Store.open(p) for p in parts]), Store.open(path)
    assert joined.episode_ends.tolist() == whole.episode_ends.tolist() and joined.spec == whole.spec
    n = whole.frames
    for rows in (
        slice(None),
        slice(20, 31),
        25,
        np.array([50, 3, 24, 23, 3]),
        np.array([[0, 59], [30, 1]]),
        slice(0, 0),
    ):
        for name in STREAMS:
            a, b = joined.stream(name), whole.stream(name)
            assert a.shape == b.shape and a.dtype == b.dtype and len(a) == n == 60
            want = b[:][rows]
            assert np.array_equal(a[rows], want) and np.shape(a[rows]) == want.shape


def test_it_is_trained_on_as_one_store_would_be(paths):
    parts, path = paths
    words = [
        "policy=flow",
        "task=own",
        "task.streams=[tip,front]",
        "task.obs_scale=limits",
        f"task.demos.path={parts[0]}",
    ]
    config = compose([*words, f"+task.demos.also=[{parts[1]}]"])
    clips = []
    for demos in (open_demos(config.task), Store.open(path)):
        spec = fit_spec(
            demos, replace(demos.spec, obs=demos.spec.obs.pick(["tip", "front"])), "limits", "limits", [0, 4], "centre"
        )
        windows = Windows(demos, spec, horizon=8, n_obs_steps=2, n_action_steps=4)
        clips.append((spec, windows.__getitems__([0, len(windows) - 1, 30])))
    (one, a), (two, b) = clips
    assert one == two and torch.equal(a.action, b.action) and all(torch.equal(a.obs[x], b.obs[x]) for x in a.obs)


def test_the_command_takes_them(paths, tmp_path, capsys):
    parts, _ = paths
    words = [
        "task=own",
        "task.streams=[tip]",
        f"task.demos.path={parts[0]}",
        "train.steps=2",
        "train.device=cpu",
        "data.constant=centre",
    ]
    words += ["policy.body.width=16", "policy.body.blocks=1", "train.batch_size=4", f"output_dir={tmp_path}"]
    assert main(["train", *words, f"+task.demos.also=[{parts[1]}]"]) == 0
    assert "4 episodes and 1 held out" in capsys.readouterr().err


def test_seeds_of_all_are_demonstrated(paths, tmp_path):
    parts, path = paths
    task = lambda *more: OmegaConf.create({"demos": {"path": str(path), "also": [str(p) for p in more]}})
    assert demonstrated([task()], [0, 2, 10, 99]) == [0, 10]
    assert demonstrated([task(parts[1])], [0, 2, 10, 99]) == [0, 2, 10]
    assert demonstrated([task(tmp_path / "gone.zarr")], [0]) is None


def test_only_what_all_hold_alike_is_shown(paths, tmp_path):
    parts, _ = paths
    spec = boxes.spec(SIZE)
    wider = Stream("goal", "state", (2,), ("x", "y"), ("m", "m"), "base")
    streams = (spec.obs["tip"], wider)
    versions = {"env": "Other-v0", "sapien": "3"}
    Store.create(
        tmp_path / "other.zarr", replace(spec, obs=replace(spec.obs, streams=streams), versions=versions)
    ).close()
    other = Store.open(tmp_path / "other.zarr")
    joined = Joined([Store.open(parts[0]), other])
    assert joined.spec.obs.names == ("tip",) and not joined.spec.versions
    assert joined.episode_ends.tolist() == [12, 24]
    Store.create(tmp_path / "none.zarr", replace(spec, obs=replace(spec.obs, streams=(wider,)))).close()
    with pytest.raises(
        UserError, match=r"none.zarr holds goal, none of them as the others hold it: join .*like worlds"
    ):
        Joined([Store.open(parts[0]), Store.open(tmp_path / "none.zarr")])
    turned = replace(spec, action=replace(spec.action, frame="world"))
    Store.create(tmp_path / "turned.zarr", turned).close()
    with pytest.raises(UserError, match=r"frame base in the first of the demonstrations, world in .*turned.zarr"):
        Joined([Store.open(parts[0]), Store.open(tmp_path / "turned.zarr")])
    with pytest.raises(UserError, match=r"task.demos.also=x.zarr: give a list of more stores"):
        open_demos(compose(["task=own", f"task.demos.path={parts[0]}", "+task.demos.also=x.zarr"]).task)
