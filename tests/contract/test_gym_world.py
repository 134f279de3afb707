"""A gymnasium environment becomes a world by saying what its numbers mean; what is not said, or does not fit, is one sentence.

Mutations that turn this red: take a success that info does not name for False; cast pictures of floats; let the environment's
own reward be the score; count no steps; make the environment without its limit; draw a reset from the global generator and not
notice; let task.env_kwargs say anew what was said; look only at the space, not at what is shown.
"""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env

from polyarm.sim.gym_world import register
from polyarm.sim.trial import trial
from polyarm.sim.vector import ShardedVectorEnv
from polyarm.sim.world import Missing, make_world
from polyarm.spec import UserError
from polyarm.streams import image, numbers
from tests import gym_envs

PENDULUM = {
    "streams": [numbers("state", {"cos": "1", "sin": "1", "speed": "rad/s"})],
    "action": {"torque": "N m"},
    "rate_hz": 20,
    "success": lambda step: step.obs["state"][0] > 0.95,
}
REACH = {
    "streams": [numbers("tip", {"x": "m", "y": "m"}), image("front", 4, 6)],
    "action": {"x": "m/s", "y": "m/s"},
    "rate_hz": 10,
    "success": "success",
}


@pytest.fixture
def world(request):
    """(env, **what is said) -> the id of a world that is forgotten after the test."""
    names = []

    def make(env, base=REACH, **said):
        names.append(f"test/Gym{len(names)}-v0")
        register(names[-1], env, **{**base, **said})
        return names[-1]

    yield make
    for name in names:
        gym.registry.pop(name, None)


def moves(n, width, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (n, width)).astype(np.float32)


@pytest.mark.filterwarnings("ignore")
def test_an_environment_of_gymnasium_is_played_as_it_is(world):
    """The same numbers to the bit, in float32; its limit of steps; a score that is the success."""
    w, plain = make_world(world("Pendulum-v1", PENDULUM), {"g": 9.8}), gym.make("Pendulum-v1", g=9.8)
    check_env(w.unwrapped, skip_render_check=True)
    assert np.array_equal(w.reset(seed=3)[0]["state"], plain.reset(seed=3)[0])
    for i, a in enumerate(moves(200, 1), 1):
        obs, score, terminated, truncated, info = w.step(a)
        expected = plain.step(a)
        assert np.array_equal(obs["state"], expected[0]) and (terminated, truncated) == expected[2:4] == (
            False,
            i == 200,
        )
        assert info["is_success"] is bool(expected[0][0] > 0.95) and score == float(info["is_success"])
        assert w.unwrapped.time_s == pytest.approx(i / 20)
    spec = w.unwrapped.world_spec
    assert spec.versions == {"env": "Pendulum-v1", "gymnasium": gym.__version__} and spec.obs.rate_hz == 20
    assert w.metadata["render_fps"] == 20 and w.action_space.high == [2]
    assert w.render().dtype == np.uint8


def test_terminated_may_be_success_where_that_is_said(world):
    car = {
        "streams": [numbers("car", {"position": "1", "speed": "1"})], "action": {"force": "1"}, "rate_hz": 30,
        "success": lambda step: step.terminated, "score": lambda step: np.clip(step.obs["car"][0] + 0.5, 0, 1),
    }  # fmt: skip
    w = make_world(world("MountainCarContinuous-v0", car), {})
    obs, info = w.reset(seed=0)
    assert info == {"is_success": False}
    done = False
    while not done:
        obs, score, done, truncated, info = w.step(np.sign(obs["car"][1:]))
        assert info["is_success"] is done and not truncated and 0 <= score <= 1
    assert score > 0.9


@pytest.mark.parametrize("limit", [{}, {"max_steps": 3}, {"max_steps": 400}])
def test_an_episode_ends_where_it_was_said_to(world, limit):
    for given in ({"said": limit, "kwargs": {}}, {"said": {}, "kwargs": limit}):
        w = make_world(world("Pendulum-v1", PENDULUM, **given["said"]), given["kwargs"])
        w.reset(seed=0)
        ended = [w.step(np.zeros(1, np.float32))[3] for _ in range(limit.get("max_steps", 200))]
        assert ended[-1] and not any(ended[:-1])


def test_a_dict_gives_the_streams_that_are_named(world):
    """By its keys, or under other names; the rest is not seen. A function makes it, wrappers and all; actions are one row."""
    names = {"tip": numbers("tip_pos", {"x": "m", "y": "m"}), "front": image("front", 4, 6)}
    env = lambda **kwargs: gym.wrappers.TimeLimit(gym_envs.Reach(**kwargs), 5)
    w = make_world(world(env, streams=names, max_steps=5), {"shape": (2, 1)})
    obs, truncated = w.reset(seed=0)[0], False
    assert set(obs) == {"tip_pos", "front"} == set(w.observation_space.spaces) and w.observation_space.contains(obs)
    for _ in range(5):
        assert not truncated
        obs, _, _, truncated, info = w.step(np.array([0.1, -50], np.float32))
    assert truncated and info["force"] == 2 and "note" not in info
    np.testing.assert_allclose(obs["tip_pos"], [0.5, -5])


def test_actions_without_bounds_are_taken_as_they_are(world):
    w = make_world(world(gym_envs.Reach, max_steps=5), {"bound": np.inf})
    w.reset(seed=0)
    assert w.step(np.array([1e3, -1e3], np.float32))[0]["tip"].tolist() == [1e3, -1e3]
    with pytest.raises(UserError, match="channel 1"):
        w.step(np.array([0, np.nan], np.float32))


BAD = [
    ({"rate_hz": None}, {}, r"rate_hz has no value: give the rows a second; its dt is 0\.05 s, which would be rate_hz=20"),
    ({"rate_hz": -1}, {}, "rate_hz=-1: give the rows a second"),
    ({"success": None}, {}, "success=None: give the key of .*info that says so, or a rule"),
    ({"success": "is_success"}, {}, "says no 'is_success' in the info of step 1, it holds success, force, note: give the key"),
    ({"success": lambda step: step.obs["tip"]}, {}, r"success of Reach is \[.*\]: give True or False"),
    ({"success": lambda step: step.obs["top"]}, {}, r"the rule of success of Reach raises KeyError \('top'\)"),
    ({"score": lambda step: 2.5}, {}, "the score of Reach is 2.5: give 0 to 1"),
    ({"max_steps": None}, {}, "Reach has no limit of steps: give max_steps"),
    ({"max_steps": 0}, {}, "max_steps=0: give a whole number"),
    ({"action": {"x": "m"}}, {}, "takes actions of 2 numbers, .* and 1 channels are said: name each"),
    ({"action": {"x": "m", "y": ""}}, {}, "channel 'y' of the action has unit ''"),
    ({"action": None}, {}, "the action has channels without a name or a unit"),
    ({"streams": None}, {}, "streams says nothing of some stream"),
    ({"streams": [numbers("tpi", {"x": "m", "y": "m"})]}, {}, "unknown observation of Reach 'tpi': did you mean 'tip'"),
    ({"streams": [numbers("tip", {"x": "m"})]}, {}, r"'tip' of Reach is float64 \(2,\), .* said to be float32 \(1,\): name its 2"),
    ({"streams": [image("front", 8, 8)]}, {}, r"'front' of Reach is uint8 \(4, 6, 3\), .*: say its height and width"),
    ({"streams": [numbers("button", {"pressed": "1"})]}, {}, r"'button' of Reach is Discrete\(2\): policies see arrays"),
    ({}, {"picture": "float"}, r"is float32 \(4, 6, 3\), .* uint8 \(4, 6, 3\): give \(x \* 255\)\.round"),
    ({}, {"picture": "chw"}, r"is uint8 \(3, 4, 6\), .*: channels come last, give np\.moveaxis\(x, 0, -1\)"),
    ({}, {"picture": "grey"}, r"is uint8 \(4, 6\), .*: it has no three channels"),
    ({}, {"picture": "alpha"}, r"is uint8 \(4, 6, 4\), .*: it has a fourth channel"),
    ({}, {"picture": "bits"}, "with nothing above 1, which is black"),
    ({}, {"lies": "float"}, r"'front' of Reach is float64 \(4, 6, 3\), the stream was said to be uint8"),
    ({}, {"lies": "missing"}, "gave tip, button and no 'front', which its observation_space has"),
    ({}, {"actions": "discrete"}, r"takes actions of Discrete\(4\): policies give rows of real numbers"),
    ({}, {"actions": "whole"}, "takes actions of Box int64"),
    ({}, {"chance": True}, "shows another 'tip' at step 0 when it is reset to seed 0 again: draw all that is random"),
    ({}, {"shwo": 1}, "cannot be made with task.env_kwargs shwo=1 .*unexpected keyword"),
    ({}, {"said": 1}, "said=1: what an environment's numbers mean is said where it is registered"),
    ({"env": 3}, {}, "env=3: give the id of a gymnasium environment"),
    ({"env": dict}, {}, "env gives a dict: give a function that makes a gymnasium.Env"),
    ({"env": "Pendulm-v1"}, {}, "unknown world 'Pendulm-v1': did you mean 'Pendulum-v1'"),
    ({"env": "Pendulum-v1"}, {"gg": 1}, "unknown setting of Pendulum-v1 in task.env_kwargs 'gg': did you mean 'g'"),
    ({"env": "Pendulum-v1"}, {}, r"Pendulum-v1 shows one array, Box float32 \(3,\), and 2 streams are said"),
    ({"env": "CartPole-v1", "streams": [numbers("s", dict.fromkeys("xvao", "1"))]}, {}, r"CartPole-v1 takes actions of Discrete\(2\)"),
]  # fmt: skip


@pytest.mark.parametrize(("said", "kwargs", "sentence"), BAD, ids=lambda x: x if isinstance(x, str) else "")
def test_what_does_not_fit_is_one_sentence_before_anything_is_trained(world, said, kwargs, sentence):
    said = {"max_steps": 5, **said}
    name = world(said.pop("env", gym_envs.Reach), **said)
    with pytest.raises(UserError, match=sentence) as e:
        trial(name, kwargs)
    assert "\n" not in str(e.value)


def test_a_missing_package_is_told_from_a_wrong_name(world):
    with pytest.raises(Missing, match="LunarLander-v3 cannot be loaded .*: install what is missing"):
        pytest.importorskip("gymnasium")
        trial(world("LunarLander-v3", PENDULUM), {"continuous": True})
    with pytest.raises(UserError, match="needs the module no_such_module, which does not exist here") as e:
        trial(world("no_such_module:X-v0"), {})
    assert not isinstance(e.value, Missing)


def test_what_is_not_the_same_twice_is_made_and_not_moved(world):
    """It may be a real arm. Mutation: reset it all the same."""
    assert trial(world(gym_envs.Reach, max_steps=5, nondeterministic=True), {"chance": True, "still": True})


@pytest.mark.parametrize("workers", [0, 2])
def test_many_are_played_together(workers):
    """By module:Id, which workers import themselves: rules may be lambdas, which nothing could send them."""
    worlds = ShardedVectorEnv("tests.gym_envs:test/GymReach-v0", {}, 3, workers)
    alone = [make_world("tests.gym_envs:test/GymReach-v0", {}) for _ in range(3)]
    assert worlds.replays and worlds.world_spec == alone[0].unwrapped.world_spec
    obs, _ = worlds.reset(seed=5)
    for i, w in enumerate(alone):
        assert np.array_equal(w.reset(seed=5 + i)[0]["tip"], obs["tip"][i])
    for action in np.stack([moves(5, 2, seed) for seed in range(3)], 1):
        obs, reward, terminated, truncated, info = worlds.step(action)
        for i, w in enumerate(alone):
            one = w.step(action[i])
            assert all(np.array_equal(one[0][name], obs[name][i]) for name in obs)
            assert one[1:4] == (reward[i], terminated[i], truncated[i])
            assert one[4]["is_success"] == info["is_success"][i]
    assert truncated.all()
    assert worlds.render_rows([1])[0].shape == (8, 8, 3)
    worlds.close()


def test_a_world_without_success_is_not_one_that_always_fails():
    """Written from scratch, and silent: refused where it is asked first, and at the end of its episode. Mutation: take it for False."""
    for env in (gym_envs.Mute, gym_envs.Wrong, gym_envs.Chooses):
        gym.register(f"test/{env.__name__}-v0", f"tests.gym_envs:{env.__name__}", disable_env_checker=True)
    with pytest.raises(UserError, match=r"never said info\['is_success'\], its last info holds force"):
        trial("test/Mute-v0", {})
    worlds = ShardedVectorEnv("test/Mute-v0", {}, 1, 0)
    worlds.reset(seed=0)
    with pytest.raises(UserError, match=r"environment 0 \(test/Mute-v0\) ended an episode and never said"):
        for _ in range(3):
            worlds.step(np.zeros((1, 2), np.float32))
    with pytest.raises(
        UserError, match="unknown stream in the observation_space of test/Wrong-v0 'state': did you mean 'stat'"
    ):
        ShardedVectorEnv("test/Wrong-v0", {}, 1, 0)
    with pytest.raises(UserError, match=r"test/Chooses-v0 takes actions of Discrete\(3\)"):
        trial("test/Chooses-v0", {})
    for env in ("Mute", "Wrong", "Chooses"):
        del gym.registry[f"test/{env}-v0"]


def test_spaces_are_told_shortly():
    from polyarm.sim.world import kind

    assert kind(spaces.Box(-1, 1, (3,), np.float32)) == "Box float32 (3,)" and kind(spaces.Discrete(4)) == "Discrete(4)"
