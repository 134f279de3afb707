"""What a person or a policy did at an arm is in the store, is there after a kill, and sent again does the same.

Mutations that turn these red stand at the tests.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from polyarm.cli import main
from polyarm.datasets.store import Store
from polyarm.real_robot.episode_log import survey
from polyarm.real_robot.replay import replay, scene_seed
from polyarm.real_robot.robot import Robot, read
from polyarm.real_robot.stand import brought_up
from polyarm.real_robot.tape import store_spec
from polyarm.real_robot.teleop import REDO, SAVE, STOP, Scripted
from polyarm.real_robot.twin.twin import Twin
from polyarm.record import Recording, Session, recovered
from polyarm.spec import ObsSpace, UserError
from tests.twins import MOUNTED, plant, serving

MS = 1_000_000
ROW = 50 * MS
HOME = np.array((0.0, -0.3, 0.4, 1.2, 0.0, 0.02))
WAVE = [tuple(HOME + 0.1 * np.sin(np.arange(6) + k / 3) * (1, 1, 1, 1, 1, 0.05)) for k in range(30)]


class Turns(Scripted):
    """Another script each episode."""

    def __init__(self, *scripts):
        self.scripts = list(scripts)
        self.now = None

    def open(self, spec):
        self.scripts[0].open(spec)

    def start(self):
        self.now = self.scripts.pop(0)
        self.now.start()

    def read(self, q, now_ns):
        return self.now.read(q, now_ns)


class Counted(Scripted):
    """A row each time it is asked, however long that takes a busy machine."""

    def start(self):
        super().start()
        self.n = -1

    def read(self, q, now_ns):
        self.n += 1
        return super().read(q, self.n * self.dt_ns)._replace(t_ns=now_ns)


def script(rows=WAVE[:12], press=SAVE, dt_ns=ROW, **more):
    return Scripted(rows, dt_ns, {len(rows): press}, **more)


@contextmanager
def at_twin(tmp_path, **more):
    """A stand at a twin in lock-step whose motors are mounted in many ways."""
    MOUNTED.save(tmp_path / "mounted.yaml")
    with serving(Twin(MOUNTED, plant(), lockstep=True), "unix") as (path, _, _):
        robot = replace(read(["robot=so101_twin"]), port=path, calibration=str(tmp_path / "mounted.yaml"), **more)
        with brought_up(robot) as stand:
            yield stand


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """(how, what was said, the scripts' rows) of a session at a twin: one is saved, one redone, one saved, one stopped."""
    tmp = tmp_path_factory.mktemp("recorded")
    how, said = Recording(tmp / "s.zarr", 9, "wave", seed=7), []
    turns = Turns(script(), script(press=REDO), script(WAVE[8:18]), script(press=STOP))
    with at_twin(tmp) as stand:
        done = Session(stand, how, turns, waits=False, say=said.append).run()
    assert done == {"episodes": 2, "recorded": 2, "tried": 3, "path": str(how.path)}
    return how, said


def test_what_a_person_did_is_in_the_store_row_by_row(recorded):
    """Mutations: rows a tick late; the commands after the filter in place of what was asked; what was redone kept; a label of 0."""
    how, said = recorded
    store = Store.open(how.path)
    assert store.lengths.tolist() == [12, 10] and store.successes.all()
    for episode, rows in enumerate((WAVE[:12], WAVE[8:18])):
        end = int(store.episode_ends[episode])
        part = slice(end - int(store.lengths[episode]), end)
        assert np.array_equal(store.read("action")[part], np.float32(rows))
        assert np.allclose(store.read("time_s")[part], np.arange(len(rows)) / 20)
    assert (store.read("intervention") == 1).all() and store.spec.versions["env"]
    assert np.ptp(store.read("joint_pos"), axis=0)[:5].min() > 0.05 and set(store.spec.obs.names) == {"joint_pos", "cube", "target", "intervention"}  # fmt: skip
    logs = sorted(p.name for p in how.logs.iterdir())
    assert logs == ["000000.log", "000001.redone", "000002.log", "000003.stopped"]
    assert survey(how.logs / "000002.log").header["scene_seed"] == 9 and store.attributes["record"]["task"] == "wave"
    assert sum("episode" in line for line in said) == 2


def test_a_replay_in_lock_step_equals_the_recording_to_the_bit_and_says_where_it_does_not(recorded, tmp_path):
    """Mutations: a row a tick late; the scene not laid out; joints compared with themselves."""
    how, _ = recorded
    with at_twin(tmp_path) as stand:
        for episode in (1, 0):
            found = replay(stand, how.path, episode)
            assert found["bit_equal"] and found["slips"] == found["holds"] == 0 and max(found["worst"].values()) == 0
        with pytest.raises(UserError, match="replay.episode=2: .* has 2 episodes, give one from 0 to 1"):
            replay(stand, how.path, 2)
    slow = {"velocity": [0.1] * 5 + [0.3]}
    with at_twin(tmp_path, limits=slow) as stand:
        found = replay(stand, how.path, 0)
    assert not found["bit_equal"] and found["worst"]["shoulder_pan"] > found["rms"]["shoulder_pan"] > 0.01


def test_a_replay_without_the_scene_goes_to_where_the_episode_began(recorded, tmp_path):
    """As at a table. A mutation: begun from wherever the arm is."""
    how, _ = recorded
    alone = tmp_path / "alone.zarr"
    shutil.copytree(how.path, alone)
    assert scene_seed(alone, int(Store.open(alone).seeds[0])) is None
    with brought_up(read(["robot=so101_sim"])) as stand:
        found = replay(stand, alone, 0)
    assert found["rows"] == 12 and max(found["worst"].values()) < 0.05


def test_a_replay_at_another_rate_or_of_another_arm_is_refused(recorded, tmp_path):
    how, _ = recorded
    with at_twin(tmp_path, action_hz=10.0) as stand, pytest.raises(UserError, match="give robot.action_hz=20"):
        replay(stand, how.path, 0)


def test_logs_of_a_killed_session_are_recovered_and_what_was_cut_off_is_set_aside(recorded, tmp_path):
    """Mutations: a good log that is not in the store left out; one that is, put there twice; half an episode among the
    demonstrations unasked; a file that was never a log stops the session."""
    how, _ = recorded
    mine = replace(how, path=tmp_path / "s.zarr")
    spec = Store.open(how.path).spec

    def lay_out():
        shutil.rmtree(mine.logs, ignore_errors=True)
        shutil.rmtree(mine.path, ignore_errors=True)
        shutil.copytree(how.logs, mine.logs)
        whole = (mine.logs / "000002.log").read_bytes()
        (mine.logs / "000002.log").write_bytes(whole[: len(whole) * 2 // 3])
        (mine.logs / "000004.log").write_bytes(b"")  # killed before the first byte

    with brought_up(read(["robot=so101_sim"])) as stand:
        lay_out()
        lines = recovered(mine, spec, stand)
        assert [w for line in lines for w in ("cut off after", "is set aside", "recovered:") if w in line] == [
            "cut off after", "is set aside", "recovered:",
        ]  # fmt: skip
        assert Store.open(mine.path).lengths.tolist() == [12] and recovered(mine, spec, stand) == []
        assert survey(mine.logs / "000002.interrupted").footer["outcome"] == "interrupted"
        lay_out()
        assert "recovered: " in recovered(replace(mine, recover=True), spec, stand)[-1]
        store = Store.open(mine.path)
        assert store.lengths[0] == 12 and 4 < store.lengths[1] < 10 and store.successes.tolist() == [True, False]
        assert np.array_equal(store.read("action")[12:], np.float32(WAVE[8:18])[: store.lengths[1]])


class Mind:
    """A policy that always asks for one pose, and counts."""

    def __init__(self, row):
        self.row, self.obs = np.float32(row), store_spec_of_sim()
        self.begun, self.acted = 0, []

    def sizes(self, cameras):
        return {}

    def require(self, arm):
        pass

    def restart(self, seed):
        self.begun += 1

    def act(self, obs):
        self.acted.append(obs["joint_pos"][0].copy())
        return self.row[None]


def store_spec_of_sim():
    from polyarm.real_robot.so101 import SPEC

    spec = store_spec(SPEC, 20.0)
    return ObsSpace(tuple(s for s in spec.obs.streams if not s.hidden), 20.0)


def test_who_had_the_arm_is_labelled_and_a_policy_begins_anew_once_it_has_it_again(tmp_path):
    """Mutations: the policy asked while the person acts; what it planned before goes on; no label; the policy's row where the
    person's counted."""
    away = np.array((0.1,) * 5 + (0.005,))
    pose, his = HOME + away / 2, HOME - away
    person = Scripted([tuple(his)] * 40, ROW, {35: SAVE}, lets_go=(*range(10), *range(20, 40)))
    mind, how = Mind(pose), Recording(tmp_path / "s.zarr", 1)
    with brought_up(read(["robot=so101_sim"])) as stand:
        Session(stand, how, person, mind, waits=False, say=lambda line: None).run()
    store = Store.open(how.path)
    mine = store.read("intervention")[:, 0] == 1
    actions = store.read("action")
    assert mine.tolist() == [False] * 10 + [True] * 10 + [False] * (len(mine) - 20) and len(mine) >= 35
    assert np.array_equal(actions[mine], np.tile(np.float32(his), (10, 1)))
    assert np.array_equal(actions[~mine][12:], np.tile(mind.row, ((~mine).sum() - 12, 1)))
    assert mind.begun == 2 and len(mind.acted) in range(len(mine) - 13, len(mine) - 8)
    (span,) = survey(next(how.logs.iterdir())).footer["interventions"]
    assert span[1] - span[0] == 10 * ROW and not store.successes.any()  # the cube never moved


def test_a_policy_that_does_not_get_there_is_no_demonstration(tmp_path):
    """A mutation: kept as one that was saved."""
    nobody = Scripted([tuple(HOME)], ROW, lets_go=range(1000))
    how = Recording(tmp_path / "s.zarr", 1, episode_s=0.3)
    with (
        brought_up(read(["robot=so101_sim"])) as stand,
        pytest.raises(UserError, match="20 of 20 episodes were not done"),
    ):
        Session(stand, how, nobody, Mind(HOME), waits=False, say=lambda line: None).run()
    assert not how.path.exists() and len(list(how.logs.glob("*.failed"))) == 20


def test_by_the_clock_with_a_camera_and_a_recorder_that_is_killed(tmp_path):
    """In processes, as at an arm. Mutations: a recorder that is not looked after; pictures that reach no row."""
    robot = Robot(
        f"test-{os.getpid()}", "tests.fake_arm.FakeArm", ages_ms={"stale": 5000, "lost": 50_000, "hand": 5000},
        stale_ms=10_000.0, linger_s=1.0, cameras={"front": {"_target_": "tests.fake_arm.Still"}},
    )  # fmt: skip
    rows = [(0.1 + 0.005 * k, 0.01) for k in range(60)]
    how, said, killed = Recording(tmp_path / "s.zarr", 1, image_size=(12, 16)), [], []

    def live(told, tape):
        if len(killed) == 20:
            os.kill(tape.pid, signal.SIGKILL)
        killed.append(told)

    with brought_up(robot) as stand:
        Session(stand, how, Counted(rows, 10 * MS, {len(rows): SAVE}), waits=False, say=said.append, live=live).run()
    assert any("recorder died" in line for line in said) and not any(
        "misses" in line and "of arm" in line for line in said
    )
    store = Store.open(how.path)
    assert len(store) == 1 and store.frames >= 3 and store.read("front").shape[1:] == (12, 16, 3)
    assert np.isin(store.read("action"), np.float32(rows)).all() and np.diff(store.read("action")[:, 0]).min() >= 0
    log = survey(next(how.logs.iterdir()))
    assert log.footer["outcome"] == "saved" and log.samples[0].missing == []


# the commands


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The store of a session that was killed in its second episode."""
    path = tmp_path_factory.mktemp("killed") / "s.zarr"
    words = ["record", "robot=so101_sim", "teleop=scripted", f"record.path={path}", "record.episodes=50"]
    session = subprocess.Popen([sys.executable, "-m", "polyarm.cli", *words], stderr=subprocess.DEVNULL)
    end = time.monotonic() + 240
    while not ((log := path.with_name("s.zarr.logs") / "000001.log").exists() and log.stat().st_size > 20_000):
        assert session.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    session.kill()
    session.wait()
    return path, words[:-1]


def test_a_session_that_was_killed_goes_on_and_training_reads_what_it_recorded(killed, capsys, tmp_path):
    """Mutations: the cut episode lost without a word; counted as one; a store that training does not know."""
    path, words = killed
    have = len(Store.open(path))
    assert main([*words, f"record.episodes={have + 1}", "--json"]) == 0
    out, err = capsys.readouterr()
    assert "was cut off after" in err and f'"episodes": {have + 1}' in out and '"recorded": 1' in out
    small = [
        "train.steps=1",
        "train.batch_size=4",
        "policy.body.width=16",
        "policy.body.blocks=1",
        "data.val_ratio=0.0",
    ]
    assert main(["train", "policy=flow", f"task.demos.path={path}", f"output_dir={tmp_path}/run", *small]) == 0
    assert list((tmp_path / "run").rglob("model.safetensors"))


@pytest.mark.parametrize(
    "words, said",
    [
        (["record", "robot=so101_sim", "teleop=scripted", "record.episodes=0"], "record.episodes=0"),
        (["record", "robot=so101_sim", "teleop=scripted", "recrod.path=x"], "'recrod.path'"),
        (["record", "robot=so101_sim", "teleop=scripted", "record.image_size=3"], "[height, width] in pixels"),
        (["record", "robot=so101_sim", "record.policy=no/such/run"], "no/such/run"),
        (["replay", "robot=so101_sim"], "one store of demonstrations as its first word"),
        (["replay", "no/such.zarr", "robot=so101_sim"], "no/such.zarr"),
    ],
)
def test_bad_words_are_one_sentence(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    error = capsys.readouterr().err
    assert said in error and error.startswith("polyarm: ") and error.count("\n") == 1 and not list(tmp_path.iterdir())
