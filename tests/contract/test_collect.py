"""Collecting gives the same store for any number of workers and of interruptions."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from polyarm.collect import collect
from polyarm.datasets.store import Store
from polyarm.spec import UserError

TOY = '''
import os
from pathlib import Path
import gymnasium as gym
import numpy as np
from polyarm.spec import ActionSpace, ObsSpace, Spec, Stream

Path(os.environ["TOY_PIDS"], str(os.getpid())).touch()

class Toy(gym.Env):
    """A walk whose noise, length and success follow from the seed; every third seed fails."""
    observation_space = gym.spaces.Dict({"q": gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)})
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    time_s = 0.0

    def __init__(self, version="Toy-v1", hopeless=False, breaks=False):
        self.version, self.hopeless, self.breaks = version, hopeless, breaks

    @property
    def world_spec(self):
        stream = Stream("q", "state", (2,), ("x", "y"))
        return Spec(ObsSpace((stream,), 10.0), ActionSpace(("a",), ("m",), "base", 10.0), {"env": self.version})

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seed, self.time_s, self.left = seed, 0.0, int(self.np_random.integers(3, 9))
        return self._obs(), {"is_success": False}

    def step(self, action):
        if self.breaks and self.seed == 4:
            raise RuntimeError("the cube fell through the table")
        self.time_s += 0.1
        self.left -= 1
        won = self.left == 0 and self.seed % 3 != 2 and not self.hopeless
        return self._obs(), float(won), won, self.left == 0, {"is_success": won}

    def _obs(self):
        return {"q": self.np_random.normal(size=2).astype("f4")}

class Expert:
    def __init__(self, env):
        self.env = env
    def reset(self):
        pass
    def act(self):
        return np.array([self.env.left], np.float32)

if "Toy-v0" not in gym.registry:
    gym.register("Toy-v0", entry_point="toy_world:Toy", disable_env_checker=True)
'''


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """`collect` of the toy world into tmp_path/demos.zarr; its module can be imported by workers."""
    (tmp_path / "toy_world.py").write_text(TOY)
    (tmp_path / "pids").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("TOY_PIDS", str(tmp_path / "pids"))
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(tmp_path), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    )

    def run(episodes, name="demos.zarr", env_kwargs=None, expert="toy_world.Expert", **more):
        return collect("toy_world:Toy-v0", env_kwargs or {}, expert, tmp_path / name, episodes, progress=False, **more)

    yield run
    sys.modules.pop("toy_world", None)


def content(path):
    store = Store.open(path)
    rows = {name: store.read(name).tolist() for name in ("q", "action", "time_s")}
    return {**rows, "ends": store.episode_ends.tolist(), "seeds": store.seeds.tolist(), "won": store.successes.tolist()}


def test_successes_are_stored_in_the_order_of_their_seeds(toy, tmp_path):
    found = toy(5)
    assert content(tmp_path / "demos.zarr")["seeds"] == [0, 1, 3, 4, 6]
    assert {k: found[k] for k in ("episodes", "successes", "tried")} == {"episodes": 5, "successes": 5, "tried": 7}
    assert found["frames"] == Store.open(tmp_path / "demos.zarr").frames


def test_failures_are_kept_on_demand_and_marked(toy, tmp_path):
    found = toy(4, keep_failures=True)
    held = content(tmp_path / "demos.zarr")
    assert held["seeds"] == [0, 1, 2, 3, 4] and held["won"] == [True, True, False, True, True]
    assert (found["episodes"], found["successes"], found["tried"]) == (5, 4, 5)


def test_workers_and_stops_change_nothing(toy, tmp_path):
    """Mutations that turn this red: storing episodes as they come; going on at the number of episodes, not after the seed."""
    toy(9, "whole.zarr", seed=10)
    toy(9, "many.zarr", seed=10, workers=3)
    for upto in (2, 3, 7, 9):
        found = toy(upto, "parts.zarr", seed=10)
    whole = content(tmp_path / "whole.zarr")
    assert whole == content(tmp_path / "many.zarr") == content(tmp_path / "parts.zarr")
    assert found["tried"] == whole["seeds"][-1] - 10 + 1
    assert toy(4, "parts.zarr", seed=10)["episodes"] == 9  # enough already: nothing is lost


def test_a_store_of_another_origin_is_refused(toy, tmp_path):
    toy(2)
    before = content(tmp_path / "demos.zarr")
    for change, sentence in (
        ({"env_kwargs": {"version": "Toy-v2"}}, "was collected with version of env Toy-v1, this is Toy-v2"),
        ({"env_kwargs": {"hopeless": True}}, "was collected with env_kwargs {}"),
        ({"seed": 5}, "was collected with first_seed 0, this is 5"),
    ):
        with pytest.raises(UserError, match=sentence):
            toy(4, **change)
    with pytest.raises(UserError, match="expert 'toy_world.Export' cannot be imported"):
        toy(4, expert="toy_world.Export")
    assert content(tmp_path / "demos.zarr") == before
    toy(3)  # refusing left no lock


def test_an_expert_that_only_fails_is_given_up(toy):
    with pytest.raises(UserError, match="failed 100 times in a row"):
        toy(1, env_kwargs={"hopeless": True})


def test_an_error_in_a_worker_arrives_and_what_came_before_is_kept(toy, tmp_path):
    with pytest.raises(RuntimeError, match="fell through the table"):
        toy(9, env_kwargs={"breaks": True}, workers=2)
    assert content(tmp_path / "demos.zarr")["seeds"] == [0, 1, 3]


@pytest.mark.parametrize("writes", [0, 1, 7, 10, 11, 12, 31])
def test_a_full_disk_is_one_sentence_and_costs_nothing(toy, tmp_path, monkeypatch, writes):
    """Twelve writes an episode, of which the eleventh commits it. A mutation that turns this red: an error of the disk that is not caught where it is written."""
    from polyarm.datasets.disk import Disk

    put, left = Disk.put, iter(range(writes))

    def fill(*arguments):
        if next(left, None) is None:
            raise OSError(28, "No space left on device")
        put(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Disk, "put", fill)
        with pytest.raises(
            UserError, match="demos.zarr cannot be written .No space left on device.: free space, or give a path"
        ):
            toy(5)
    assert content(tmp_path / "demos.zarr")["seeds"] == [0, 1, 3, 4, 6][: (writes + 1) // 12]
    toy(5)
    toy(5, "whole.zarr")
    assert content(tmp_path / "demos.zarr") == content(tmp_path / "whole.zarr")


def test_a_folder_that_nobody_may_write_is_one_sentence(toy, tmp_path, monkeypatch):
    """Root writes anywhere, so making the folder fails instead."""
    import zarr

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(zarr, "create_group", refuse)
    with pytest.raises(UserError, match="demos.zarr cannot be written .Permission denied.: free space, or give a path"):
        toy(2)
    assert not any("zarr" in p.name for p in tmp_path.iterdir())


def test_what_is_no_store_is_not_written_to(toy, tmp_path):
    import zarr

    (tmp_path / "page.zarr").write_text("<html>")
    (tmp_path / "folder.zarr").mkdir()
    (tmp_path / "folder.zarr/notes.txt").write_text("mine")
    zarr.create_group(tmp_path / "buffer.zarr", zarr_format=2)
    before = sorted(tmp_path.rglob("*"))
    for name in ("page.zarr", "folder.zarr", "buffer.zarr"):
        with pytest.raises(UserError, match=f"{name} is not a store of demonstrations"):
            toy(2, name)
    assert [p for p in sorted(tmp_path.rglob("*")) if "__pycache__" not in str(p) and p.parent.name != "pids"] == [
        p for p in before if "__pycache__" not in str(p) and p.parent.name != "pids"
    ]


def start(tmp_path, episodes):
    # a test run started in the background ignores Ctrl-C, and its children would too
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"from polyarm.collect import collect; collect('toy_world:Toy-v0', {{}}, 'toy_world.Expert', "
        f"{str(tmp_path / 'demos.zarr')!r}, {episodes}, workers=2)"
    )
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)


def wait_for(condition, seconds=900):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def frames(path):
    return Store.open(path).frames if (path / "zarr.json").exists() else 0


def alive(pids):
    return [
        pid for pid in pids if os.path.exists(f"/proc/{pid}") and "Z" not in open(f"/proc/{pid}/stat").read().split()[2]
    ]


def test_a_killed_collect_goes_on_and_leaves_no_workers(toy, tmp_path):
    """SIGKILL at random moments, three times. A mutation that turns this red: workers that wait for seeds for ever."""
    path, rng, have = tmp_path / "demos.zarr", np.random.default_rng(), 0
    for _ in range(3):
        with start(tmp_path, 10_000) as run:
            wait_for(lambda have=have: frames(path) > have)
            time.sleep(rng.uniform(0, 0.3))
            run.kill()
        have = frames(path)
    assert have > 0
    pids = [int(p.name) for p in (tmp_path / "pids").iterdir() if int(p.name) != os.getpid()]
    assert len(pids) >= 9  # a parent and two workers each
    wait_for(lambda: not alive(pids), 20)
    n = len(Store.open(path)) + 3
    toy(n, workers=2)
    toy(n, "whole.zarr")
    assert content(path) == content(tmp_path / "whole.zarr")


def test_ctrl_c_leaves_a_valid_store_and_says_how_to_go_on(toy, tmp_path):
    path = tmp_path / "demos.zarr"
    with start(tmp_path, 10_000) as run:
        wait_for(lambda: frames(path) > 0)
        run.send_signal(signal.SIGINT)
        said = run.communicate(timeout=900)[1]
    assert run.returncode != 0 and "run it again to go on" in said
    held = content(path)["seeds"]
    assert held == [s for s in range(held[-1] + 1) if s % 3 != 2]


def test_the_expert_of_pick_place(tmp_path):
    """The real world: two workers store what one does, and the stored actions replay to success."""
    import gymnasium as gym

    import polyarm.sim  # noqa: F401

    world, expert = "polyarm/PickPlace-v0", "polyarm.sim.experts.pick_place.PickPlaceExpert"
    for name, workers in (("one.zarr", 1), ("two.zarr", 2)):
        found = collect(world, {}, expert, tmp_path / name, 4, seed=7, workers=workers, progress=False)
    one, two = Store.open(tmp_path / "one.zarr"), Store.open(tmp_path / "two.zarr")
    for name in (*one.spec.obs.names, "action", "time_s"):
        assert np.array_equal(one.read(name), two.read(name))
    assert found["successes"] == 4 and one.seeds[0] >= 7
    env = gym.make(world)
    for seed, end, length in zip(one.seeds, one.episode_ends, one.lengths, strict=True):
        obs, _ = env.reset(seed=int(seed))
        for row in range(end - length, end):
            assert np.array_equal(obs["joint_pos"], one.stream("joint_pos")[row : row + 1][0])
            obs, _, done, _, info = env.step(one.stream("action")[row : row + 1][0])
        assert done and info["is_success"]
    env.close()


def test_workers_load_no_torch(toy, tmp_path):
    """They are started by the dozen. Only what their module loads counts."""
    code = "import sys, polyarm.collect, polyarm.sim, polyarm.sim.experts.episode; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
