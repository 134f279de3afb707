"""Every registered world keeps the contract of `polyarm.sim.world`.

Mutations that turn these red: a stream left out of the spec, an observation in float64, randomness from the global
generator, a world that forgets to clip or to truncate.
"""

import subprocess
import sys
from importlib.util import find_spec

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import polyarm.sim
from polyarm.sim.world import make_world
from polyarm.spec import UserError

OURS = sorted(name for name in gym.registry if name.startswith("polyarm/"))
MORE = [
    ("polyarm/PickPlace-v0", {"cameras": ["front", "wrist"], "image_size": [48, 64]}),
    ("polyarm/PushT-v0", {"streams": ["keypoint", "agent_pos", "image", "state"]}),
    ("polyarm/PushT-v0", {"legacy_reset": True}),
    ("polyarm/Kitchen-v0", {"tasks": ["kettle", "top burner"], "streams": ["object_vel", "joint_vel", "joint_pos"]}),
]
CASES = [(name, {}) for name in OURS] + MORE


@pytest.fixture(params=CASES, ids=lambda case: "-".join([case[0].split("/")[1], *case[1]]))
def case(request):
    if request.param[0] == "polyarm/Kitchen-v0" and find_spec("gymnasium_robotics") is None:
        pytest.skip("the extra kitchen (gymnasium-robotics) is not installed")
    return request.param


@pytest.fixture
def world(case):
    env = make_world(*case)
    yield env
    env.close()


def actions(world, n, seed=0):
    space = world.action_space
    return np.random.default_rng(seed).uniform(space.low, space.high, (n, *space.shape)).astype(np.float32)


def run(world, seed, moves):
    """Every observation, stacked by stream."""
    seen = [world.reset(seed=seed)[0]]
    seen += [world.step(a)[0] for a in moves]
    return {name: np.stack([o[name] for o in seen]) for name in seen[0]}


def test_worlds_are_registered_without_loading_a_simulator():
    code = "import sys, polyarm.sim; print(sorted({'mujoco', 'pygame', 'pymunk', 'torch'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_the_spec_describes_every_observation_and_action(world):
    spec = world.unwrapped.world_spec
    obs, _ = world.reset(seed=0)
    assert tuple(obs) == spec.obs.names
    assert set(obs) == set(world.observation_space.spaces)
    for stream in spec.obs.streams:
        assert obs[stream.name].shape == stream.shape
        assert obs[stream.name].dtype == (np.float32 if stream.low_dim else np.uint8)
        assert stream.frame
        if stream.low_dim:
            assert len(stream.names) == len(set(stream.names)) == len(stream.units) == stream.shape[0]
    assert spec.action.horizon == 1
    assert world.action_space.shape == (spec.action.width,) == (len(spec.action.units),)
    assert spec.obs.rate_hz == spec.action.rate_hz == world.metadata["render_fps"]
    assert "env" in spec.versions
    assert world.observation_space.contains(obs)


def test_the_same_seed_and_actions_give_the_same_bits(case):
    worlds = [make_world(*case) for _ in range(2)]
    moves = actions(worlds[0], 12)
    first, second = (run(w, 7, moves) for w in worlds)
    again = run(worlds[0], 7, moves)
    for name in first:
        assert np.array_equal(first[name], second[name]), name
        assert np.array_equal(first[name], again[name]), f"{name} remembers the episode before"


def test_other_seeds_start_elsewhere(world):
    starts = [np.concatenate([v.ravel() for v in world.reset(seed=s)[0].values()]) for s in range(5)]
    assert len({s.tobytes() for s in starts}) == 5


def test_resets_without_a_seed_follow_from_the_last_seed(world):
    follow = []
    for _ in range(2):
        world.reset(seed=3)
        follow.append(np.concatenate([v.ravel() for v in world.reset()[0].values()]))
    assert np.array_equal(*follow)
    assert not np.array_equal(follow[0], np.concatenate([v.ravel() for v in world.reset()[0].values()]))


def test_it_ends_itself_at_max_steps_and_its_clock_counts(case):
    world = make_world(case[0], case[1] | {"max_steps": 6})
    _, info = world.reset(seed=1)
    assert info["is_success"] is False
    rate = world.unwrapped.world_spec.action.rate_hz
    for i, a in enumerate(actions(world, 6), 1):
        _, reward, terminated, truncated, info = world.step(a)
        assert 0.0 <= reward <= 1.0
        assert isinstance(info["is_success"], bool)
        assert terminated == info["is_success"]
        assert truncated == (i == 6)
        assert world.unwrapped.time_s == pytest.approx(i / rate)


def test_actions_beyond_the_limits_are_clipped_to_them(case):
    space = make_world(*case).action_space
    for edge, beyond in ((space.high, space.high + 100), (space.low, space.low - 100)):
        at_edge, clipped = (run(make_world(*case), 2, [a] * 4) for a in (edge, beyond))
        assert all(np.array_equal(at_edge[name], clipped[name]) for name in at_edge)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_actions_that_are_not_finite_are_refused(world, bad):
    world.reset(seed=0)
    action = world.action_space.low.copy()
    action[-1] = bad
    with pytest.raises(UserError, match=f"channel {len(action) - 1}"):
        world.step(action)
    with pytest.raises(UserError, match="shape"):
        world.step(np.append(action, 0.0))


@pytest.mark.filterwarnings("ignore")
def test_gymnasium_has_no_complaint(world):
    check_env(world.unwrapped)


def test_its_picture_for_people_shows_what_moved(world):
    world.reset(seed=0)
    before = world.render()
    assert before.dtype == np.uint8
    assert before.ndim == 3
    assert before.shape[2] == 3
    for a in actions(world, 5):
        world.step(a)
    changed = (world.render() != before).any(-1).mean()
    assert 0.001 < changed < 0.5


def test_an_unknown_world_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'polyarm/PickPlace-v0'"):
        make_world("polyarm/PikPlace-v0", {})
    with pytest.raises(UserError, match="front, wrist"):
        make_world("polyarm/PickPlace-v0", {"cameras": ["top"]})
    with pytest.raises(UserError, match="did you mean 'keypoint'"):
        make_world("polyarm/PushT-v0", {"streams": ["keypoints"]})
    assert polyarm.sim
