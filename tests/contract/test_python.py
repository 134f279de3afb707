"""The Python interface: settings mean what they mean on a command line, and an agent acts as `polyarm eval` plays.

Mutations that turn this red: import torch in polyarm/__init__.py; leave `Verb` out of train.py; keep what was remembered across
a reset; seed every episode's noise alike; return rotations as they were learnt; take a picture of floats.
"""

import json
import re
import subprocess
import sys
from inspect import signature
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

import polyarm
import polyarm.sim
from polyarm import api
from polyarm.cli import main
from polyarm.config import compose, override
from polyarm.eval.rollout import make_worlds, rollout
from polyarm.eval.run import load_policy
from polyarm.policies import checkpoint
from polyarm.policies.generate.angle import linear_flow
from polyarm.policies.generate.sample import Sampler, euler
from polyarm.policies.policy import Plain
from polyarm.rotation import rows_as
from polyarm.spec import ActionSpace, ObsSpace, Scale, Stream, UserError
from polyarm.text import text_row

DOC = Path(__file__).parents[2] / "docs" / "python.md"
ONE = ["eval.n_envs=1", "eval.workers=0"]


@pytest.fixture(scope="module")
def home(tmp_path_factory, words):
    """Runs of the kinds of policies that an agent treats otherwise: memory, goals, past actions."""
    home = tmp_path_factory.mktemp("python")
    goals = ["policy.goal_steps=2", "task.streams=[joint_pos,cube]"]
    for name, more in {"flow": [], "diffusion": ["policy.sampler.angles.steps=4"], "seed": [], "beso": goals}.items():
        small = words(home / name, f"policy={name}", *more, "+task.env_kwargs.max_steps=20", "train.checkpoint_every=0")
        known = OmegaConf.to_container(compose([f"policy={name}"]).policy.body)
        polyarm.train(*(w for w in small if not w.startswith("policy.body") or w.split(".")[2].split("=")[0] in known))
    return home


def test_import_is_instant_and_the_names_are_there():
    code = """if True:
        import sys, polyarm
        names = dir(polyarm)
        heavy = [m for m in ("torch", "hydra", "omegaconf", "zarr", "numpy", "yaml", "rich", "polyarm.api") if m in sys.modules]
        print(not heavy or heavy, {"train", "evaluate", "load", "UserError"} <= set(names), hasattr(polyarm, "lod"))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True", "False"]


def test_train_is_a_module_and_a_verb():
    """In either order of importing."""
    from polyarm import train as module
    from polyarm.train import fit

    assert polyarm.train is module is sys.modules["polyarm.train"] and module.fit is fit
    assert signature(polyarm.train) == signature(api.train)
    code = "from polyarm.train import fit; import polyarm; polyarm.train(policy='flwo')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "did you mean 'flow'?" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.steps", 20), ("train.steps", np.int64(20)), ("train.lr", 1e-5), ("train.lr", np.float64(0.25)),
        ("train.resume", False), ("data.max_train_episodes", None), ("task.streams", ["joint_pos", "cube"]),
        ("task.streams", ("cube",)), ("train.betas", np.array([0.5, 0.75])), ("task.env_kwargs.cameras", []),
        ("task.demos.path", "/a, b/lr=0.1 [x] 'y' (2)"), ("task.demos.path", Path("/a,b")), ("output_dir", "2024"),
        ("output_dir", "null"), ("task.measure", "score"), ("task.env_kwargs", {"shadows": True, "image_size": [8, 9]}),
    ],
)  # fmt: skip
def test_a_value_arrives_as_it_is(key, value):
    """By its dotted name, and in a mapping of its part."""
    part, _, name = key.partition(".")
    for given in ({key: value}, {part: {name: value}} if name else {key: value}):
        found = OmegaConf.select(compose(api.words(given)), key)
        found = OmegaConf.to_container(found) if OmegaConf.is_config(found) else found
        want = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
        want = str(want) if isinstance(want, Path) else list(want) if isinstance(want, tuple) else want
        assert found == {**found, **want} if isinstance(want, dict) else found == want and type(found) is type(want)


def test_forms_of_settings_and_their_order():
    config = compose(api.words("train.steps=5", {"train.steps": 6}, {"body": {"width": 16}, "sampler": "heun"}))
    assert (config.train.steps, config.policy.body.width) == (6, 16)
    assert config.policy.sampler == compose(["sampler=heun"]).policy.sampler
    home = str(Path.home())
    assert compose(api.words({"task.demos.path": "~/x"})).task.demos.path == f"{home}/x"


@pytest.mark.parametrize(
    ("settings", "named", "says"),
    [
        (("flow",), {}, "'flow' cannot be read as a setting: write key=value"),
        ((5,), {}, "5 is no setting: give text such as 'train.steps=2000', a mapping"),
        (({"train.steps": object()},), {}, "train.steps is of type object: give text, a number"),
        (({"train.stps": 3},), {}, "did you mean 'train.steps'?"),
        ((), {"train": {"steps": "many"}}, "train.steps=many: give a whole number"),
        ((), {"policy": ["flow", "beso"]}, r"policy=\['flow', 'beso'\]: give one of actor3d,"),
        ((), {"task": None}, "task=None: give one of kitchen,"),
        ((), {"policy": "flow, beso"}, "names several values"),
        ((), {"trust": 5}, "trust=5: give the name of a module"),
        ((), {"trust": "a b"}, "give the name of a module as Python imports it"),
        ((), {"configs": "nowhere"}, "configs=nowhere is no folder"),
    ],
)
def test_settings_that_do_not_fit(settings, named, says):
    with pytest.raises(UserError, match=says) as found:
        polyarm.train(*settings, **named)
    assert "\n" not in str(found.value)


def test_the_loop_goes_on_and_results_are_those_of_the_files(home, words, tmp_path):
    small = words(tmp_path / "run", "policy=flow")
    run = polyarm.train(*small)
    assert run["step"] == 20 and run["policy"] == "flow" and run["task"] == "pick_place" and run["val_loss"] > 0
    assert Path(run["checkpoint"]).name == "step_00000020" and run["output_dir"] == str(tmp_path / "run")
    again = polyarm.train(*small, train={"steps": 25})
    assert again["step"] == 25 and Path(again["checkpoint"]).name == "step_00000025"
    found = polyarm.evaluate(run["output_dir"], *ONE, sampler="heun", eval={"episodes": 1, "videos": 0})
    assert found == json.loads((tmp_path / "run" / "eval_sampler_heun" / "result.json").read_text())
    both = polyarm.evaluate(
        [home / "flow", str(home / "diffusion")], *ONE, weights=(0.25, 0.75), eval={"episodes": 1, "videos": 0},
        output_dir=tmp_path / "mix",
    )  # fmt: skip
    assert both == json.loads((tmp_path / "mix" / "result.json").read_text()) and both["weights"] == [0.25, 0.75]


@pytest.mark.parametrize(
    ("names", "weights", "settings"),
    [
        (["flow"], None, {}),
        (["flow"], [1.0], {"sampler": "heun", "policy.sampler.angles.steps": 3, "eval.n_action_steps": 3}),
        (["diffusion"], None, {}),
        (["seed"], None, {}),
        (["beso"], None, {}),
        (["diffusion", "flow"], [0.4, 0.6], {}),
    ],
)
def test_an_agent_acts_as_an_evaluation_plays(home, names, weights, settings):
    """Two episodes by one agent, to the bit: what is remembered does not reach from one into the next."""
    folders = [checkpoint.find(home / name) for name in names]
    typed = api.words(*ONE, settings)
    config = override(checkpoint.read_config(folders[0]), typed)
    policy = load_policy(folders, config, typed, weights or [1.0], torch.device("cpu"))
    worlds = make_worlds(config, 1)
    played = rollout(policy, worlds, [3, 4], config.eval.n_action_steps)

    agent = polyarm.load([home / name for name in names], settings, weights=weights)
    world = gym.make("polyarm/PickPlace-v0", max_steps=20)
    assert agent.action_space == world.unwrapped.world_spec.action
    assert agent.obs_space == world.unwrapped.world_spec.obs.pick(agent.obs_space.names)
    for seed, episode in zip([3, 4], played, strict=True):
        obs, _ = world.reset(seed=seed)
        agent.reset(seed, goal=world.unwrapped.goal() if policy.goal_steps else None)
        actions = []
        for _ in episode.actions:
            actions.append(agent.act({**obs, "not": "looked at"}))
            obs, *_ = world.step(actions[-1])
        assert actions[0].dtype == np.float32 and np.array_equal(np.stack(actions), episode.actions)


def test_what_cannot_be_loaded(home):
    flow = home / "flow"
    for path, weights, says in (
        ("nowhere", None, "nowhere does not exist: give the output_dir"),
        ([], None, r"\[\] is no path"),
        ({"output_dir": "x"}, None, "is no path: give the output_dir"),
        (flow, [0.5], r"weights \[0.5\] sum to 0.5, not to 1"),
        ([flow, flow], [1], "1 weights for 2 policies"),
        ([flow, flow], [0.5, float("nan")], "sum to nan"),
        ([flow, flow], "half", "weights='half': give a number a policy"),
        ([flow, flow], 0.5, "weights=0.5: give a number a policy"),
    ):
        with pytest.raises(UserError, match=says):
            polyarm.load(path, weights=weights)
    with pytest.raises(UserError, match="the action's rotation layout is 'none'"):
        polyarm.load(flow, rotation="rotvec")


class Eye(Plain):
    """Sees one stream of every kind that differs; acts in 6D rotations."""

    name, n_obs_steps, n_action_steps = "eye", 1, 1
    obs_space = ObsSpace(
        (
            Stream("pose", "state", (2,), ("x", "y"), ("m", "rad"), scale=Scale.identity(2)),
            Stream("front", "image", (4, 5, 3)),
            Stream("told", "text", (6,)),
        ),
        10.0,
    )
    action_space = ActionSpace(
        ("r00", "r10", "r20", "r01", "r11", "r21", "grip"), ("1",) * 7, "base", 10.0, horizon=2,
        rotation="rot6d_columns", rotations=(0,), scale=Scale.identity(7),
    )  # fmt: skip
    sampler = Sampler(euler, linear_flow(1), None)
    row = torch.tensor([0.6, 0.8, 0, 0.8, -0.6, 0, 0.5])

    def start(self, b):
        return ()

    def encode(self, obs, state, generator=None):
        self.saw = {name: x.numpy() for name, x in obs.items()}
        return None, state

    def denoise(self, x, phi, cond):
        return self.row.expand(x.shape)


def seen(**other):
    return {"pose": [1, 2.5], "front": np.full((4, 5, 3), 7, np.uint8), "told": "on", **other}


def test_rotations_in_the_layout_that_is_asked():
    space = Eye.action_space
    for layout in (None, "rotvec", "quat_wxyz", "rot6d_rows"):
        agent = api.Agent(Eye(), rotation=layout)
        agent.reset()
        action = agent.act(seen())
        assert action.shape == (agent.action_space.width,) and agent.action_space.rotation == (layout or space.rotation)
        np.testing.assert_allclose(action, rows_as(Eye.row.numpy(), space, layout), atol=1e-6)
    with pytest.raises(UserError, match="unknown rotation layout 'euler'"):
        api.Agent(Eye(), rotation="euler")


def test_what_people_hand_over_arrives():
    """Lists, text, float64, truths; and the spaces can be read."""
    agent = api.Agent(Eye())
    agent.reset()
    agent.act(seen(pose=np.array([1, 2], np.int64), told=text_row("go", 6)))
    agent.act(seen(pose=torch.tensor([1.0, 2.5])))
    saw = agent.policy.saw
    assert saw["pose"].dtype == np.float32 and saw["pose"][0, -1].tolist() == [1, 2.5]
    assert bytes(saw["told"][0, -1]) == b"on\0\0\0\0" and saw["front"].dtype == np.uint8
    assert "eye at 10 Hz, 1 steps a chunk" in repr(agent)
    for line in ("pose: float32 (2,) with x [m], y [rad]", "front: uint8 (4, 5, 3)", "told: uint8 (6,)", "grip [1]"):
        assert line in repr(agent)


@pytest.mark.parametrize(
    ("obs", "says"),
    [
        (np.zeros(2), "the observation is of type ndarray: give a mapping with an array for each of pose, front, told"),
        ((seen(), {}), "of type tuple"),
        ({}, "the observation holds nothing, policy eye needs 'pose'"),
        ({"pose": [1, 2]}, "the observation holds pose, policy eye needs 'front': give all of pose, front, told"),
        (
            seen(pose=[1, 2, 3]),
            r"stream 'pose' has shape \(3,\): policy eye was trained on \(2,\), one step: give that",
        ),
        (seen(pose=[[1, 2]]), r"has shape \(1, 2\)"),
        (seen(pose=[1, [2]]), "is no array"),
        (seen(pose=torch.zeros(2, requires_grad=True)), "is no array"),
        (seen(pose=["a", "b"]), "is <U1: give numbers"),
        (seen(pose=None), "is object: give numbers"),
        (seen(pose=[1, np.nan]), "holds nan: give finite numbers"),
        (seen(pose=[1, 1e300]), "holds inf: give finite numbers"),
        (seen(front=np.zeros((4, 5, 3))), "stream 'front' is float64: give uint8, 0 to 255"),
        (seen(front=np.zeros((3, 4, 5), np.uint8)), r"on \(4, 5, 3\), channels last, one step: give that"),
        (seen(told="too long"), "has 8 bytes for a stream of 6"),
    ],
)
def test_observations_that_do_not_fit(obs, says):
    agent = api.Agent(Eye())
    agent.reset()
    with pytest.raises(UserError, match=says) as found:
        agent.act(obs)
    assert "\n" not in str(found.value)


def test_episodes_begin_with_a_reset():
    agent = api.Agent(Eye())
    with pytest.raises(UserError, match="act before reset"):
        agent.act(seen())
    for seed in (-1, 1.5, None, True, "1", 2**64):
        with pytest.raises(UserError, match="seed=.*: give a whole number"):
            agent.reset(seed)
    agent.reset(np.int64(3))
    with pytest.raises(UserError, match="policy eye takes no goal"):
        agent.reset(goal=seen())


def test_a_goal_is_seen_and_forgotten(home):
    """A goal of one episode is not there in the next, which is told none."""
    agent = polyarm.load(home / "beso")
    world = gym.make("polyarm/PickPlace-v0")
    obs, _ = world.reset(seed=1)

    def first(goal=None):
        agent.reset(5, goal)
        return agent.act(obs)

    free, shown = first(), first(world.unwrapped.goal())
    assert not np.array_equal(free, shown) and np.array_equal(free, first())
    with pytest.raises(UserError, match="the goal holds cube, policy .* needs 'joint_pos'"):
        first({"cube": obs["cube"]})
    assert np.array_equal(free, first()), "a reset that was refused changes nothing"


def test_energies_are_told():
    class Judge(Eye):
        def energy(self, x, cond):
            return x.new_full((len(x),), 2.5)

    agent = api.Agent(Judge())
    assert agent.energy is None
    agent.reset()
    agent.act(seen())
    assert agent.energy == 2.5


def test_the_page_works(tmp_path, monkeypatch, capsys):
    """docs/python.md from top to bottom in one process, with less of everything."""
    monkeypatch.chdir(tmp_path)
    small = {"collect.episodes=200": "collect.episodes=6", '"train.steps": 2000': '"train.steps": 20',
             '"train.val_every": 500': '"train.val_every": 10', '"episodes": 100': '"episodes": 2'}  # fmt: skip
    page = DOC.read_text()
    for long, short in small.items():
        assert long in page
        page = page.replace(long, short)
    names = {}
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert [language for language, _ in blocks] == ["", *["python"] * 6]
    for language, text in blocks:
        if language:
            exec(compile(text, str(DOC), "exec"), names)  # noqa: S102  the page is ours
        else:
            assert main([*text.split()[1:], "collect.workers=1"]) == 0
    said = capsys.readouterr().out
    assert "unknown policy 'flwo': did you mean 'flow'?" in said and "cube: float32" in said
    assert names["both"].name == "diffusion + flow" and names["result"]["n"] == 2
