"""One rule for naming a world, `Id` or `module:Id`, wherever one is needed; and it is asked before training.

Mutations that turn this red: import the module without looking at the trust; let `find` forget module:Id; leave --configs off
the path, or on it afterwards; ask the world at evaluation only; refuse to train where a package is missing, or train where the
name is wrong; take a missing file of the user's own for a missing package; train for a world that shows something else.
"""

import re
import sys

import gymnasium as gym
import numpy as np
import pytest

import polyarm.trust
from polyarm.cli import main
from polyarm.config import compose
from polyarm.datasets.arrays import numbers, write_store
from polyarm.job import prepare
from polyarm.sim.world import Missing, find, make_world
from polyarm.spec import UserError

WORLD = """
from polyarm.sim.gym_world import register
from polyarm.streams import numbers
from tests.gym_envs import Reach

register(
    "{name}/Reach-v0", lambda **kwargs: Reach(**kwargs), streams=[numbers("tip", {{"x": "m", "y": "m"}})],
    action={{"x": "m/s", "y": "m/s"}}, rate_hz=10, success="success", max_steps=5,
)
"""
TASK = """
name: reach
env_id: {name}:{name}/Reach-v0
env_kwargs: {{}}
streams: [tip]
expert: null
demos: {{_target_: polyarm.datasets.store.open_store, path: {store}}}
measure: success
obs_scale: limits
action_scale: limits
"""
SMALL = ["train.steps=2", "train.batch_size=4", "train.log_every=2", "train.device=cpu", "data.val_ratio=0.34",
         "policy.body.width=8", "policy.body.blocks=1"]  # fmt: skip
PLAY = ["eval.episodes=2", "eval.n_envs=2", "eval.workers=2", "eval.videos=1"]


@pytest.fixture(autouse=True)
def nothing_trusted(monkeypatch):
    monkeypatch.setattr(polyarm.trust, "_trusted", set())


@pytest.fixture
def mine(tmp_path):
    """(folder, module): a user's folder with a world, by a name that no other test uses, and its task."""
    name, folder = f"reach_{abs(hash(str(tmp_path)))}", tmp_path / "mine"
    (folder / "task").mkdir(parents=True)
    (folder / f"{name}.py").write_text(WORLD.format(name=name))
    rng = np.random.default_rng(0)
    store = write_store(
        tmp_path / "demos.zarr", [{"tip": rng.normal(size=(20, 2)), "action": rng.normal(size=(20, 2))} for _ in range(3)],
        streams=[numbers("tip", {"x": "m", "y": "m"})], action={"x": "m/s", "y": "m/s"}, rate_hz=10,
    )  # fmt: skip
    (folder / "task" / "reach.yaml").write_text(TASK.format(name=name, store=store))
    yield folder, name
    forget(name)


def forget(name):
    sys.modules.pop(name, None)
    gym.registry.pop(f"{name}/Reach-v0", None)


def test_the_folder_of_configs_is_enough_and_is_needed(mine, tmp_path, capsys):
    """Trained, resumed, judged and filmed with worker processes; and never imported without a word."""
    folder, name = mine
    run, path = str(tmp_path / "run"), list(sys.path)
    assert main(["train", "--configs", str(folder), "task=reach", f"output_dir={run}", *SMALL]) == 0
    assert f"next:    polyarm eval {run} --configs {folder}" in capsys.readouterr().err
    assert main(["eval", run, "--configs", str(folder), *PLAY]) == 0
    assert len(list((tmp_path / "run/eval/clips").glob("*.mp4"))) == 1
    assert sys.path == path
    forget(name)
    for words, said in (
        ([], f"names {name}:{name}/Reach-v0 at task.env_id, which is blocked: "),
        (["--trust", "something_else"], "which is blocked"),
        (["--trust", name], f"needs the module {name}, which does not exist here"),
    ):
        assert main(["eval", run, *words, *PLAY]) == 2
        assert said in capsys.readouterr().err.splitlines()[-1] and name not in sys.modules


def test_a_module_on_the_path_is_found_too(mine, tmp_path, monkeypatch, capsys):
    folder, name = mine
    monkeypatch.syspath_prepend(str(folder))
    assert find(f"{name}:{name}/Reach-v0").id == f"{name}/Reach-v0"
    with pytest.raises(UserError, match=rf"unknown world of module {name} 'Rech-v0': .*known are .*{name}/Reach-v0"):
        find(f"{name}:Rech-v0")
    assert make_world(f"{name}:polyarm/PushT-v0", {}).unwrapped.world_spec


@pytest.mark.parametrize(
    ("env_id", "text", "missing", "said"),
    [
        ("MODULEX:X-v0", "", False, "needs the module MODULEX, which does not exist here: correct the name, or say where"),
        ("MODULE.parts:X-v0", "", False, "needs the module MODULE.parts, which does not exist here"),
        ("MODULE:X-v0", "import no_such_simulator.parts", True, "cannot be loaded .No module named 'no_such_simulator'"),
        ("MODULE:X-v0", "raise ImportError('libGL.so.1: cannot open', name='cv2.cv2')", True, "libGL.so.1"),
        ("MODULE:X-v0", "import polyarm.sim.gym_wrld", False, "raises ModuleNotFoundError"),
        ("MODULE:X-v0", "from polyarm.spec import Streem", False, "raises ImportError .cannot import name 'Streem'"),
        ("MODULE:X-v0", "from MODULE.helpers import x", False, "raises ModuleNotFoundError"),
        ("MODULE:X-v0", "1 / 0", False, "MODULE raises ZeroDivisionError .division by zero.: correct it"),
        ("MODULE:X-v0", "x = (", False, "MODULE raises SyntaxError"),
        ("MODULE:X-v0", "", False, "unknown world of module MODULE 'X-v0'"),
        ("a/b.py:X-v0", "", False, "names the module 'a/b.py': give it as Python imports it"),
        (".a:X-v0", "", False, "give it as Python imports it"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_module_is_one_sentence(mine, tmp_path, monkeypatch, env_id, text, missing, said):
    """Only a package that a right name needs is missing; all else is to be corrected."""
    folder, name = mine
    (folder / f"{name}.py").write_text(text.replace("MODULE", name))
    monkeypatch.syspath_prepend(str(folder))
    with pytest.raises(UserError, match=said.replace("MODULE", name)) as e:
        find(env_id.replace("MODULE", name))
    assert isinstance(e.value, Missing) is missing and "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("task.env_id=polyarm/PikPlace-v0", "did you mean 'polyarm/PickPlace-v0'"),
        ("task.env_id=no_such_module:X-v0", "needs the module no_such_module, which does not exist here"),
        ("task.env_id=polyarm/PushT-v0", "the policy needs observation stream 'tip', the world gives keypoint"),
        ("task.env_id=Pendulum-v1", "Pendulum-v1 has no world_spec"),
        ("+task.env_kwargs.shwo=1", "unexpected keyword argument 'shwo'"),
        ("+task.env_kwargs.picture=chw", None),
        ("+task.env_kwargs.actions=discrete", r"takes actions of Discrete\(4\)"),
        ("+task.env_kwargs.chance=true", "shows another 'tip' at step 0"),
    ],
)
def test_a_world_is_asked_before_training(mine, tmp_path, capsys, change, said):
    folder, _ = mine
    words = ["train", "--configs", str(folder), "task=reach", f"output_dir={tmp_path}/run", *SMALL, change]
    assert main(words) == (2 if said else 0)
    if said:
        assert re.search(said, capsys.readouterr().err.splitlines()[-1]) and not (tmp_path / "run").exists()


def test_training_goes_on_where_only_a_package_is_missing(mine, tmp_path, monkeypatch, capsys):
    """As on a machine without the simulator; but not where the training itself would play."""
    folder, name = mine
    (folder / f"{name}.py").write_text("import no_such_simulator")
    monkeypatch.setenv("POLYARM_CONFIGS", str(folder))
    monkeypatch.syspath_prepend(str(folder))
    config = compose(["task=reach", *SMALL])
    assert len(prepare(config).windows)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "no_such_simulator" in line]
    assert line.endswith("install what is missing; `polyarm eval` will need it, training goes on without")
    with pytest.raises(UserError, match=r"install what is missing, or give train\.rollout_every=0"):
        prepare(compose(["task=reach", *SMALL, "train.rollout_every=1"]))
    capsys.readouterr()
    prepare(compose(["task=reach", *SMALL, "task.measure=action_error"]))
    assert not capsys.readouterr().err


def test_training_on_pictures_goes_on_without_opengl(monkeypatch):
    """The world is there, and cannot be seen. Mutation: let render raise what is no Missing."""
    from polyarm.sim.mujoco import render
    from polyarm.sim.trial import trial

    def broken(*_):
        raise ImportError("libEGL.so.1: cannot open shared object file")

    monkeypatch.setattr(render, "_backend", broken)
    with pytest.raises(Missing, match="no picture can be drawn"):
        trial("polyarm/PickPlace-v0", {"cameras": ["front"], "image_size": [7, 9]})
