"""What a row shows is of its last step, whatever its world said before; and a bad world is told in a sentence.

Mutations that turn this red: infos merged into those of the step before; an array a key kept with the type of its first
value; an absent number shown as 0; a success that is a number dropped; a stream that is missing left as it was.
"""

import gymnasium as gym
import numpy as np
import pytest

import tests.odd_worlds
from polyarm.sim.vector import ShardedVectorEnv
from polyarm.sim.world import make_world
from polyarm.spec import UserError

STILL = np.zeros((3, 2), np.float32)


@pytest.fixture(scope="module", params=[0, 2], ids=["here", "two workers"])
def workers(request):
    return request.param


def test_an_info_is_of_its_step_alone(workers):
    worlds = ShardedVectorEnv("test/Odd-v0", {}, 3, workers)
    for seeds in ([0, 2, 1], [1, 3, 0]):  # the second time where others succeeded before
        _, info = worlds.reset(seed=seeds)
        assert info["force"].tolist() == [0, 0, 0] and info["force"].dtype.kind == "i"
        assert info["started"].all() and "note" not in info and "contact" not in info
        first, second, third, after = (worlds.step(STILL)[4] for _ in range(4))
        assert first["force"].tolist() == [0.7] * 3 and set(first) == {"force", "is_success"}
        assert second["force"].tolist() == [2] * 3 and second["contact"].all()
        assert not first["is_success"].any() and not second["is_success"].any()
        for info in (third, after):  # a finished row keeps its last
            assert set(info) == {"is_success"} and info["is_success"].dtype == bool
            assert info["is_success"].tolist() == [seed % 2 == 0 for seed in seeds]
    worlds.close()


def test_rows_that_are_elsewhere_do_not_lend_each_other_values(workers):
    """One row at its first step, the others at their second: what a row does not say is False or NaN."""
    worlds = ShardedVectorEnv("test/Odd-v0", {}, 3, workers)
    worlds.reset(seed=0)
    worlds.step(STILL)
    worlds.reset(seed=[None, None, 5], options={"reset_mask": np.array([False, False, True])})
    info = worlds.step(STILL)[4]
    assert info["contact"].tolist() == [True, True, False] and info["force"].tolist() == [2, 2, 0.7]
    info = worlds.step(STILL)[4]
    np.testing.assert_array_equal(info["force"], [np.nan, np.nan, 2])
    assert info["is_success"].tolist() == [True, False, False]
    worlds.close()


@pytest.mark.parametrize(("show", "gave"), [("none", "it gave only"), ("narrow", r"it gave \(1,\)")])
def test_a_stream_that_is_missing_or_of_another_shape_is_refused(workers, show, gave):
    worlds = ShardedVectorEnv("test/Odd-v0", {"show": show}, 3, workers)
    worlds.reset(seed=0)
    with pytest.raises(UserError, match=rf"environment 0 was to show the stream 'state' as \(2,\), {gave}"):
        worlds.step(STILL)
    worlds.close()


def test_what_a_world_raises_arrives_with_its_words(workers):
    worlds = ShardedVectorEnv("test/Odd-v0", {"fail": "the gripper is stuck"}, 3, workers)
    worlds.reset(seed=0)
    worlds.step(STILL)
    with pytest.raises(RuntimeError, match="environment 0: the gripper is stuck"):
        worlds.step(STILL)
    worlds.close()


def test_a_world_that_cannot_be_sent_is_refused():
    gym.register("test/Local-v0", lambda: tests.odd_worlds.Odd(), disable_env_checker=True)
    try:
        with pytest.raises(UserError, match="cannot be sent to a worker process .*: give eval.workers=0"):
            ShardedVectorEnv("test/Local-v0", {}, 2, 1)
    finally:
        del gym.registry["test/Local-v0"]


@pytest.mark.parametrize(
    ("env_id", "kwargs", "said"),
    [
        ("polyarm/PikPlace-v0", {}, "did you mean 'polyarm/PickPlace-v0'"),
        ("CartPole-v9", {}, "unknown world 'CartPole-v9'"),
        ("not a name!", {}, "unknown world 'not a name!'"),
        (None, {}, "task.env_id=None: give the name of a world, one of .*polyarm/PushT-v0"),
        (3, {}, "task.env_id=3: give the name"),
        ("test/Odd-v0", {"shwo": 1}, "unknown setting of test/Odd-v0 in task.env_kwargs 'shwo': did you mean 'show'"),
        ("polyarm/PickPlace-v0", {"image_size": [1, 2, 3]}, "cannot be made with task.env_kwargs"),
        ("test/Silent-v0", {}, "test/Silent-v0 has no world_spec"),
    ],
)
def test_a_world_that_cannot_be_had_is_one_sentence(workers, env_id, kwargs, said):
    with pytest.raises(UserError, match=said) as e:
        ShardedVectorEnv(env_id, kwargs, 2, workers)
    assert "\n" not in str(e.value) and "Acrobot" not in str(e.value)


def test_an_unknown_world_lists_the_users_and_none_of_gymnasiums():
    with pytest.raises(UserError) as e:
        make_world("nothing/Like-v0", {})
    listed = str(e.value).partition("known are ")[2].split(", ")
    assert {"polyarm/Kitchen-v0", "polyarm/PushT-v0", "test/Odd-v0"} <= set(listed)
    assert not {"CartPole-v1", "Ant-v5", "FrankaKitchen-v1", "gym_pusht/PushT-v0"} & set(listed)
