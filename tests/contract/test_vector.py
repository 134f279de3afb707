"""Many worlds on few processes behave as so many single ones."""

import os
import signal
import subprocess
import sys
import time

import gymnasium as gym
import numpy as np
import pytest

from polyarm.sim.vector import ShardedVectorEnv
from polyarm.sim.world import make_world
from polyarm.spec import UserError

PICK, PUSHT = "polyarm/PickPlace-v0", "polyarm/PushT-v0"
N = 5


@pytest.fixture(scope="module", params=[0, 2], ids=["here", "two workers"])
def workers(request):
    return request.param


@pytest.fixture
def vector(workers):
    env = ShardedVectorEnv(PICK, {"max_steps": 6}, N, workers)
    yield env
    env.close()


def moves(space, steps):
    return np.random.default_rng(0).uniform(space.low, space.high, (steps, *space.shape)).astype(np.float32)


def test_rows_equal_single_worlds_to_the_bit(workers):
    """Red when rows are joined in another order, or an answer shares the shard's buffers."""
    kwargs = {"streams": ["keypoint", "image"], "max_steps": 8}
    vector = ShardedVectorEnv(PUSHT, kwargs, N, workers)
    singles = [make_world(PUSHT, kwargs) for _ in range(N)]
    seeds = [10, 3, 77, 5, 6]
    steps = [vector.reset(seed=seeds)]
    alone = [[env.reset(seed=s) for env, s in zip(singles, seeds, strict=True)]]
    for action in moves(vector.action_space, 6):
        steps.append(vector.step(action))
        alone.append([env.step(a) for env, a in zip(singles, action, strict=True)])
    for together, rows in zip(steps, alone, strict=True):
        for i, row in enumerate(rows):
            assert all(np.array_equal(together[0][name][i], row[0][name]) for name in row[0])
            assert [x[i] for x in together[1:-1]] == list(row[1:-1])
            assert {name: values[i] for name, values in together[-1].items()} == row[-1]
    vector.close()


def test_a_finished_row_is_frozen_and_the_others_go_on(vector):
    """Red when a row resets itself, steps past its end, or pays its last reward again."""
    vector.reset(seed=list(range(N)))
    hold = np.concatenate([vector.call_rows("joints", range(N)), np.full((N, 1), 0.028)], 1)
    for _ in range(3):
        vector.step(hold)
    keep = np.array([False, True, True, False, False])
    vector.reset(seed=[9, None, None, 9, 9], options={"reset_mask": ~keep})
    for _ in range(3):
        last = vector.step(hold)
    obs, _, _, truncated, _ = last
    assert np.array_equal(truncated, keep)
    again, reward, _, truncated, _ = vector.step(hold + 0.3)
    assert np.array_equal(truncated, keep)
    assert not reward[keep].any()
    moved = np.abs(again["joint_pos"] - obs["joint_pos"]).max(1) > 1e-3
    assert np.array_equal(moved, ~keep)


def test_success_stays_on_a_frozen_row_and_its_reward_is_paid_once(workers):
    vector = ShardedVectorEnv(PUSHT, {}, 3, workers)
    vector.reset(seed=0, options={"state": [450, 60, 256, 256, np.pi / 4]})
    stay = np.tile(np.float32([450, 60]), (3, 1))
    for paid in (1.0, 0.0, 0.0):
        _, reward, terminated, _, info = vector.step(stay)
        assert terminated.all()
        assert info["is_success"].dtype == bool
        assert info["is_success"].all()
        assert (reward == paid).all()
    _, info = vector.reset(seed=[1, None, None], options={"reset_mask": np.array([True, False, False])})
    assert info["is_success"].tolist() == [False, True, True]
    assert vector.step(stay)[2].tolist() == [False, True, True]
    vector.close()


def test_a_mask_resets_its_rows_alone(vector):
    before, _ = vector.reset(seed=100)
    mask = np.array([True, False, False, False, True])
    after, info = vector.reset(seed=[200, None, None, None, 300], options={"reset_mask": mask})
    assert info["is_success"].shape == (N,)
    for i in range(N):
        assert np.array_equal(before["cube"][i], after["cube"][i]) != mask[i]
    single = make_world(PICK, {})
    assert np.array_equal(after["cube"][4], single.reset(seed=300)[0]["cube"])
    assert np.array_equal(before["cube"][3], single.reset(seed=103)[0]["cube"])


def test_it_describes_itself_as_its_worlds_do(vector):
    single = make_world(PICK, {})
    assert vector.world_spec == single.unwrapped.world_spec
    assert vector.single_observation_space == single.observation_space
    assert vector.single_action_space == single.action_space
    obs, _ = vector.reset(seed=0)
    assert vector.observation_space.contains(obs)
    assert vector.metadata["autoreset_mode"] is gym.vector.AutoresetMode.DISABLED


def test_rows_are_called_by_number_in_the_order_asked(vector):
    obs, _ = vector.reset(seed=0)
    found = vector.call_rows("target_pos", [4, 0, 3])
    np.testing.assert_allclose(np.array(found), obs["target"][[4, 0, 3]], atol=1e-7)
    pictures = vector.render_rows([3, 1])
    single = make_world(PICK, {})
    for seed, picture in zip([3, 1], pictures, strict=True):
        single.reset(seed=seed)
        assert np.array_equal(picture, single.render())
    with pytest.raises(UserError, match="0 to 4"):
        vector.call_rows("target_pos", [5])


def test_an_error_of_a_row_arrives_as_itself_with_the_row(vector):
    """Red when the worker dies of it, its type is lost, or a later answer is taken for this one."""
    obs, _ = vector.reset(seed=0)
    bad = np.zeros((N, 6), np.float32)
    bad[3, 2] = np.nan
    with pytest.raises(UserError, match=r"environment 3: .*channel 2"):
        vector.step(bad)
    with pytest.raises(AttributeError, match="environment 4"):
        vector.call_rows("no_such_thing", [4])
    again, _ = vector.reset(seed=0)
    assert all(np.array_equal(obs[name], again[name]) for name in obs)


def test_misuse_is_refused_in_a_sentence(vector):
    with pytest.raises(UserError, match="before reset"):
        vector.step(np.zeros((N, 6)))
    with pytest.raises(UserError, match="leaves out row 1"):
        vector.reset(seed=0, options={"reset_mask": np.array([True, False, True, True, True])})
    with pytest.raises(UserError, match="2 seeds"):
        vector.reset(seed=[1, 2])
    vector.reset(seed=0)
    with pytest.raises(UserError, match=r"\(5, 6\)"):
        vector.step(np.zeros((N, 5)))


def test_bad_arguments_of_the_world_are_told_at_birth(workers):
    with pytest.raises(UserError, match="unknown camera 'top'"):
        ShardedVectorEnv(PICK, {"cameras": ("top",)}, 2, workers)
    with pytest.raises(UserError, match="did you mean"):
        ShardedVectorEnv("polyarm/PushT-v1", {}, 2, workers)


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pids, within_s):
    until = time.monotonic() + within_s
    while any(map(alive, pids)) and time.monotonic() < until:
        time.sleep(0.02)
    return not any(map(alive, pids))


def test_a_dead_worker_is_named():
    vector = ShardedVectorEnv(PICK, {}, 4, 2)
    vector.reset(seed=0)
    os.kill(vector._rows[1].process.pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="environments 2 to 3 ended with exit code -9"):
        for _ in range(2):
            vector.step(np.zeros((4, 6)))
    vector.close()


def test_close_ends_the_workers():
    vector = ShardedVectorEnv(PICK, {}, 4, 2)
    pids = [rows.process.pid for rows in vector._rows]
    assert all(map(alive, pids))
    vector.close()
    assert gone(pids, 0.0)


PARENT = """
import sys, time, numpy as np
from polyarm.sim.vector import ShardedVectorEnv
vector = ShardedVectorEnv("polyarm/PickPlace-v0", {}, 4, 2)
vector.reset(seed=0)
modules = [line for rows in vector._rows for line in open(f"/proc/{rows.process.pid}/maps") if "libtorch" in line]
print(len(modules), *[rows.process.pid for rows in vector._rows], flush=True)
while True:
    vector.step(np.zeros((4, 6))) if sys.argv[1] == "busy" else time.sleep(1)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("how", ["busy", "idle"])
def test_workers_die_with_a_killed_parent_and_never_load_torch(how):
    """Red when a worker keeps its own copy of the parent's end of the pipe: it would then wait for ever."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT, how], stdout=subprocess.PIPE, text=True)
    torch, *pids = map(int, parent.stdout.readline().split())
    assert torch == 0
    assert len(pids) == 2
    assert all(map(alive, pids))
    parent.kill()
    parent.wait()
    assert gone(pids, 300.0)  # milliseconds on an idle machine; a worker that waits for ever is what is looked for


def test_a_script_without_a_main_guard_may_use_workers(tmp_path):
    """Red with multiprocessing's spawn, which runs the caller's script again in every worker."""
    script = tmp_path / "script.py"
    script.write_text(
        "print('begun')\nfrom polyarm.sim.vector import ShardedVectorEnv\n"
        "vector = ShardedVectorEnv('polyarm/PickPlace-v0', {}, 2, 1)\nprint(vector.reset(seed=0)[0]['cube'].shape)\nvector.close()\n"
    )
    assert subprocess.check_output([sys.executable, script], text=True) == "begun\n(2, 5)\n"
