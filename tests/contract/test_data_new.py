"""`polyarm data new`: the yaml of a task for a store, with which training and evaluation work as it is.

Mutations that turn it red: leave a stream out; write the path unquoted; write over a file; give a channel that never varies a scale;
take polyarm's own task of that name.
"""

import json
import shlex

import numpy as np
import pytest
from omegaconf import OmegaConf

from polyarm.choices import adding
from polyarm.cli import main
from polyarm.config import compose
from polyarm.datasets.arrays import image, numbers, write_store
from polyarm.datasets.store import Store

SMALL = [
    "policy.body.width=16", "policy.body.blocks=1", "train.steps=4", "train.batch_size=8", "train.device=cpu", "eval.samples=2",
]  # fmt: skip


def written(path, n=3, still=False, pictures=False):
    rng, streams = np.random.default_rng(0), [numbers("on", {"a": "m", "b: #": "rad"}), numbers("pose-2", {"x": "m"})]
    episodes = [
        {"on": rng.normal(size=(12, 2)), "pose-2": np.zeros((12, 1)) if still else rng.normal(size=(12, 1)), "action": rng.normal(size=(12, 1))}
        for _ in range(n)
    ]  # fmt: skip
    if pictures:
        streams.append(image("front", 8, 8))
        episodes = [{**e, "front": rng.integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)} for e in episodes]
    return write_store(path, episodes, streams=streams, action={"u": "N m"}, rate_hz=10)


@pytest.mark.parametrize("name", ["mine.zarr", "it's {mine}: #1"])
def test_training_and_evaluation_work_with_it_as_it_is(tmp_path, monkeypatch, capsys, name):
    """Also where a channel never varies, and with names that yaml would read otherwise."""
    monkeypatch.chdir(tmp_path)
    written(tmp_path / name, still=True)
    assert main(["data", "new", name, "my tasks"]) == 0
    command = shlex.split(capsys.readouterr().err.splitlines()[-1].removeprefix("next:"))
    assert command[:2] == ["polyarm", "train"] and command[3] == "my tasks"
    assert main([*command[1:], "output_dir=run", *SMALL]) == 0
    assert main(["eval", "run"]) == 0
    assert json.loads((tmp_path / "run/eval/result.json").read_text())["measure"] == "action_error"


def test_it_says_what_the_store_says_and_is_task_own_otherwise(tmp_path, capsys):
    store = written(tmp_path / "mine.zarr", pictures=True)
    assert main(["data", "new", str(store), str(tmp_path / "yaml"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    text = (tmp_path / "yaml/task/mine.yaml").read_text()
    assert found["file"] == str(tmp_path / "yaml/task/mine.yaml") and found["task"] == "mine"
    for words in (
        "3 episodes, 36 rows at 10 Hz",
        "on: b: # ",
        " rad\n",
        "front: image, 8 x 8 x 3",
        "action: u ",
        " N m\n",
    ):
        assert words in text
    with adding([tmp_path / "yaml"]):
        mine, own = compose(["task=mine"]).task, compose(["task=own"]).task
    changed = {"name": "mine", "streams": ["on", "pose-2", "front"], "demos": {**own.demos, "path": str(store)}}
    assert OmegaConf.to_container(mine) == {**OmegaConf.to_container(own), **changed}


def test_a_store_named_like_a_task_of_polyarm_s_gets_another_name(tmp_path, capsys):
    store = written(tmp_path / "pick_place.zarr")
    assert main(["data", "new", str(store), str(tmp_path)]) == 0
    assert "task=pick_place_own" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, said",
    [
        (["new"], "polyarm data new PATH"),
        (["new", "none.zarr"], "mine.zarr"),
        (["new", "field.zarr"], "polyarm.datasets.arrays"),
        (["new", "empty.zarr"], "holds no episodes"),
        (["new", "mine.zarr"], "is there already"),
        (["new", "${mine}.zarr"], "rename it"),
        (["new", "mine.zarr", "a", "b"], "'b'"),
        (["new", "mine.zarr", "mine.zarr/zarr.json"], "a file is in the way"),
        (["old", "mine.zarr"], "known are check, info, new, show"),
    ],
)
def test_what_it_cannot_do_is_one_sentence(tmp_path, monkeypatch, capsys, words, said):
    import zarr

    monkeypatch.chdir(tmp_path)
    store = written(tmp_path / "mine.zarr")
    Store.create(tmp_path / "empty.zarr", Store.open(store).spec).close()
    (tmp_path / "${mine}.zarr").symlink_to(store)
    field = zarr.create_group(tmp_path / "field.zarr", zarr_format=2)
    field["data/action"], field["meta/episode_ends"] = np.zeros((4, 1)), np.array([4])
    (tmp_path / "mine/task").mkdir(parents=True)
    (tmp_path / "mine/task/mine.yaml").write_text("kept: true")
    assert main(["data", *words]) == 2
    error = capsys.readouterr().err.splitlines()
    assert said in error[-1] and error[-1].startswith("polyarm: ")
    assert (tmp_path / "mine/task/mine.yaml").read_text() == "kept: true"


def test_help_says_how(capsys):
    assert main(["data", "--help"]) == 0
    assert "data new STORE [FOLDER]" in capsys.readouterr().out
