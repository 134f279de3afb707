"""A task's demonstrations are opened by what `task.demos._target_` names: the project's, a user's, and as old checkpoints say.

Mutations that turn these red: a branch on `fields` before the target, a world made for who does not ask, a variable written
into the message.
"""

import shlex

import numpy as np
import pytest
import zarr
from omegaconf import OmegaConf

from polyarm.cli import main
from polyarm.config import compose, override
from polyarm.datasets.replay_buffer import ReplayBuffer
from polyarm.datasets.store import Store
from polyarm.spec import ActionSpace, ObsSpace, Spec, Stream, UserError
from polyarm.task import open_demos, world_spec

MINE = '''
import numpy as np
from polyarm.datasets.store import Store

class Reversed:
    """The episodes of a store, and nothing of a path."""
    def __init__(self, store, fast=False):
        self._store = Store.open(store)
        self.spec, self.episode_ends, self.fast = self._store.spec, self._store.episode_ends, fast
    def stream(self, name):
        return self._store.read(name)

def with_spec(where, spec):
    demos = Reversed(where)
    assert demos.spec.obs.names == spec.obs.names
    return demos

def nothing(where):
    return 7

def gone(path):
    raise FileNotFoundError(f"no {path}")
'''


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "my_demos.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)


def task(opening):
    config = compose([])
    OmegaConf.set_struct(config, False)
    config.task.demos = opening
    return config.task


def test_a_users_own_opens_them(mine, demos):
    found = open_demos(task({"_target_": "my_demos.Reversed", "store": str(demos), "fast": True}))
    assert type(found).__name__ == "Reversed" and found.fast
    assert open_demos(task({"_target_": "my_demos.with_spec", "where": str(demos)})).spec.obs.names
    with pytest.raises(UserError, match="_target_=my_demos.nothing gives int: give what keeps"):
        open_demos(task({"_target_": "my_demos.nothing", "where": str(demos)}))
    with pytest.raises(UserError, match="do not exist: make them with"):
        open_demos(task({"_target_": "my_demos.gone", "path": "x"}))
    with pytest.raises(UserError, match="Reversed does not take these settings .*slow"):
        open_demos(task({"_target_": "my_demos.Reversed", "store": str(demos), "slow": True}))
    with pytest.raises(UserError, match="unknown name in my_demos 'Reverse': did you mean 'Reversed'"):
        open_demos(task({"_target_": "my_demos.Reverse", "store": str(demos)}))


def test_a_users_own_trains(mine, demos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf/task").mkdir(parents=True)
    text = OmegaConf.to_yaml(task({"_target_": "my_demos.Reversed", "store": str(demos)}))
    (tmp_path / "conf/task/mine.yaml").write_text(text)
    words = [
        "train.steps=2",
        "train.warmup_steps=1",
        "train.val_every=0",
        "policy.body.width=16",
        "policy.body.blocks=1",
    ]
    assert main(["train", "--configs", f"{tmp_path}/conf", "task=mine", *words]) == 0


def test_no_world_is_made_for_a_store(demos, monkeypatch):
    def never(_):
        raise AssertionError

    monkeypatch.setattr("polyarm.task.world_spec", never)
    assert isinstance(open_demos(compose([f"task.demos.path={demos}"]).task), Store)


def buffer(path, spec, zarr_format=2):
    """A replay buffer of a world's streams, each under its own key."""
    rng, root = np.random.default_rng(0), zarr.open_group(path, mode="w", zarr_format=zarr_format)
    data, meta = root.create_group("data"), root.create_group("meta")
    for name, width in [*((s.name, s.shape[0]) for s in spec.obs.streams), ("action", spec.action.width)]:
        data.create_array(name, data=np.cumsum(rng.normal(size=(60, width)), 0).astype("f4"), chunks=(7, width))
    meta.create_array("episode_ends", data=np.array([20, 40, 60]))
    return path


def test_what_checkpoints_said_before_there_were_targets_still_opens(demos, tmp_path):
    old = task({"path": str(demos), "fields": None})
    assert isinstance(open_demos(old), Store)
    path = buffer(tmp_path / "b.zarr", world_spec(old))
    fields = {name: {"key": name} for name in ("joint_pos", "cube", "target", "action")}
    assert isinstance(open_demos(task({"path": str(path), "fields": fields})), ReplayBuffer)
    config = compose([])
    OmegaConf.set_struct(config, False)
    config.task.demos = {"path": "elsewhere", "fields": None}
    again = override(config, [f"task.demos.path={demos}"])
    assert isinstance(open_demos(again.task), Store)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_replay_buffer_of_either_format_trains(tmp_path, zarr_format):
    path = buffer(tmp_path / "b.zarr", world_spec(compose([]).task), zarr_format)
    fields = "{" + ",".join(f"{n}:{{key:{n}}}" for n in ("joint_pos", "cube", "target", "action")) + "}"
    words = [
        f"task.demos.path={path}", "task.demos._target_=polyarm.datasets.replay_buffer.open_replay_buffer",
        f"+task.demos.fields={fields}", "train.steps=2", "train.warmup_steps=1", "policy.body.width=16", "policy.body.blocks=1",
        f"output_dir={tmp_path}/run", "train.batch_size=8",
    ]  # fmt: skip
    assert main(["train", *words]) == 0


@pytest.mark.parametrize(
    "name, variable",
    [("pusht_state", "POLYARM_PUSHT"), ("pusht_image", "POLYARM_PUSHT"), ("kitchen", "POLYARM_KITCHEN")],
)
def test_where_demonstrations_are_missing_the_remedy_exists(name, variable, tmp_path, monkeypatch):
    """Where they can be had, and a variable that is heard."""
    monkeypatch.setenv(variable, f"{tmp_path}/none.zarr")
    with pytest.raises(UserError) as e:
        open_demos(compose([f"task={name}"]).task)
    assert f"{tmp_path}/none.zarr do not exist: have them from " in str(e.value)
    assert f"and set ${variable} to where they are" in str(e.value)


def test_the_command_that_makes_them_is_the_one_for_this_path(tmp_path):
    path = f"{tmp_path}/my demos.zarr"
    with pytest.raises(UserError) as e:
        open_demos(task({"_target_": "polyarm.datasets.store.open_store", "path": path}))
    words = shlex.split(str(e.value).split("`")[1])
    assert words == ["polyarm", "collect", "task=pick_place", f"task.demos.path={path}"]


def test_a_stores_constant_channel_names_the_setting(tmp_path, capsys):
    """`data.constant=centre` and `task.scales` are settings; `constant=centre` is none."""
    spec = Spec(ObsSpace((Stream("q", "state", (1,), ("q",)),), 10.0), ActionSpace(("a",), ("m",), "base", 10.0))
    with Store.create(tmp_path / "d.zarr", spec) as store:
        for seed in range(2):
            rows = np.arange(20)[:, None] / 10
            store.append({"q": rows * 0 + 1, "action": rows, "time_s": rows[:, 0]}, seed)
    words = [f"task.demos.path={tmp_path}/d.zarr", "task.streams=[q]", f"output_dir={tmp_path}/run", "train.steps=1"]
    assert main(["train", *words]) == 2
    said = capsys.readouterr().err
    for remedy in ("+task.scales.q=identity", "data.constant=centre"):
        assert remedy in said
        compose([*words, remedy])
