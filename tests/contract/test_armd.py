"""The arm's process, its supervisor and who talks to them: what each does when another one dies. On a small arm, with limits of time
that a machine many times slower keeps; `python -m polyarm.real_robot.faults` measures the promises.

Mutations that turn these red: a policy's death that is not looked for; `own` without its lock; a supervisor that only waits for exits;
one that ends with whoever started it.
"""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from gymnasium import spaces

from polyarm.real_robot import pages
from polyarm.real_robot import station as stations
from polyarm.real_robot.armd import Desk
from polyarm.real_robot.daemon import Daemon
from polyarm.real_robot.plan import Chunk
from polyarm.real_robot.realtime import Late, Ticks
from polyarm.real_robot.station import Station, build_loop
from polyarm.real_robot.supervisor import Supervisor
from polyarm.real_robot.world import RobotWorld
from polyarm.spec import ActionSpace, ObsSpace, Spec, Stream, UserError
from tests.fake_arm import SPEC, FakeArm

MS = 1_000_000


@pytest.fixture
def station(tmp_path, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])  # where a process finds tests.fake_arm
    name = f"test-{os.getpid()}-{time.monotonic_ns()}"
    given = {"_target_": "tests.fake_arm.FakeArm", "log": str(tmp_path / "log")}
    ages = {"stale_ns": 10**9, "lost_ns": 10**10, "beat_ns": 3 * 10**9}  # of a machine that is busy elsewhere
    yield Station(name, given, ages=ages, stale_ms=5000.0, linger_s=1.0)
    for path in pages.FOLDER.glob(f"polyarm-{name}*"):
        path.unlink()


def until(true, seconds=60):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def log(station):
    """[(ns, [q])] of all commands."""
    with open(station.arm["log"]) as file:
        return [
            (int(t), [float(x) for x in q]) for t, *q in (line.split() for line in file) if q[0][0] in "-0123456789"
        ]


def chunk(number, q=(0.6, 0.02), seconds=30, n=1):
    now = time.monotonic_ns()
    return Chunk(number, now, now, int(seconds * 1e9 / n), (q,) * n)


# In lock-step: the desk owns no clock.


class Lock:
    def __init__(self, station):
        self.now = 0
        self.arm = FakeArm(lambda: self.now)
        self.loop = build_loop(Station(station.name, station.arm), self.arm)
        self.desk, self.ticks = Desk(station.name, self.loop), Ticks(10 * MS)
        self.loop.open(0)
        self.operator, self.policy = (pages.Writer(f"{station.name}.{kind}", 65536) for kind in ("operator", "policy"))
        self.number = 0
        self.operator.say(None)
        self.policy.again(0)

    def tick(self):
        self.desk.take(self.now)
        self.loop.tick(self.now)
        self.desk.show(self.now, self.ticks)
        self.now += 10 * MS
        return self.loop.state

    def act(self, act):
        self.number += 1
        self.operator.say({"number": self.number, "act": act})
        self.tick()
        return self.desk.error

    def plan(self, rows=((0.6, 0.02),), number=None, **other):
        self.number += 1
        what = {
            "number": self.number if number is None else number,
            "seen_ns": self.now,
            "t_ns": self.now,
            "dt_ns": 10**10,
            "rows": rows,
        }
        self.policy.say(what | other, self.now)


def test_acts_are_done_once_and_what_is_refused_says_why(station):
    lock = Lock(station)
    assert lock.act("enable") == "" and lock.loop.state == "HOLD"
    assert "enable is for LIMP" in lock.act("enable") and lock.desk.done == 2
    assert "did you mean 'limp'" in lock.act("limb")
    lock.tick()
    assert lock.arm.said.count("enable") == 1
    assert lock.act("limp") == "" and lock.tick() == "LIMP"
    said = json.loads(pages.Reader(f"{station.name}.state").read().payload)
    assert (said["state"], said["done"], said["seen"]["q"]) == ("LIMP", 4, [0.1, 0.01])


@pytest.mark.parametrize(
    "wrong",
    [
        {"rows": [[float("nan"), 0.0]]}, {"rows": [[0.1]]}, {"rows": []}, {"rows": [["x", 0.0]]}, {"rows": 3}, {"rows": None},
        {"rows": [[None, 0.0]]}, {"t_ns": "soon"}, {"t_ns": -(10**12)}, {"t_ns": 10**18}, {"dt_ns": 0}, {"dt_ns": float("inf")},
        {"number": 0}, {"rows": [[1e308, 1e308, 1]]},
    ],
)  # fmt: skip
def test_no_chunk_whatever_it_holds_ends_the_process_or_reaches_the_arm(station, wrong):
    lock = Lock(station)
    lock.act("enable")
    lock.plan(((0.1, 0.01),))
    assert lock.tick() == "RUN"
    lock.plan(**wrong)
    assert lock.tick() == "RUN" and lock.arm.goal == (0.1, 0.01)
    assert sum(n for why, n in lock.loop.plan.counts.items() if why.startswith("a chunk")) == 1
    for garbage in (b"", b"{", b"[1]", b"3", b"\xff\xfe", b'{"rows": {}}'):
        lock.policy.write(garbage, lock.now)
        lock.tick()


def test_a_policy_that_died_holds_on_the_next_tick_and_the_next_one_counts_anew(station):
    """Its page's lock is gone with it. Red where only the beat is judged: that lasts 150 ms."""
    lock = Lock(station)
    lock.act("enable")
    lock.plan(number=1000)
    assert lock.tick() == "RUN"
    lock.policy.close()
    assert lock.tick() == "HOLD"
    lock.policy = pages.Writer(f"{station.name}.policy", 65536)
    lock.tick()
    assert lock.loop.state == "HOLD"  # what the dead one planned does not come back
    lock.plan(number=1)
    assert lock.tick() == "RUN"


def test_a_hand_takes_over_and_the_latch_stops(station):
    lock = Lock(station)
    lock.act("enable")
    lock.plan()
    assert lock.tick() == "RUN"
    hand = pages.Writer(f"{station.name}.hand")
    hand.say({"q": [0.0, 0.0]}, lock.now)
    assert lock.tick() == "TELEOP"
    hand.say({"q": None}, lock.now)
    assert lock.tick() == "HOLD"
    hand.say({"q": ["x"]}, lock.now)
    assert lock.tick() == "HOLD"
    stations.press(station.name, "the pedal")
    assert lock.tick() == "ESTOP" and lock.loop.why == "the pedal"
    assert "release it first" in lock.act("clear")
    stations.release(station.name)
    assert lock.act("clear") == "" and lock.act("enable") == "" and lock.loop.state == "HOLD"


def test_two_cannot_own_one_arm(station, tmp_path):
    """By its port, whatever the robots and the links to it are called."""
    port = tmp_path / "tty"
    port.touch()
    (tmp_path / "link").symlink_to(port)
    first = stations.own(Station("one", {"port": str(port)}))
    with pytest.raises(UserError, match="another process"):
        stations.own(Station("two", {"port": str(tmp_path / "link")}))
    os.close(first)
    os.close(stations.own(Station("two", {"port": str(tmp_path / "link")})))
    for path in pages.FOLDER.glob(f"polyarm-*{tmp_path.name}*"):
        path.unlink()


def test_what_cannot_be_started_says_why(station):
    with pytest.raises(UserError, match="tests.fake_arm.NoArm cannot be had"):
        Daemon(Station(station.name, {"_target_": "tests.fake_arm.NoArm"}))
    with pytest.raises(UserError, match="names files"):
        Station("../x", {})


def test_lateness_is_counted_in_bins_and_missed_ticks_are_let_go():
    late = Late()
    for ns in [5_000] * 98 + [123_000, 70_000_000]:
        late.add(ns)
    assert (late.ms(0.5), late.ms(0.98), late.ms(0.99), late.figures()["max"]) == (0.01, 0.01, 0.13, 70.0)
    ticks = Ticks(20 * MS)
    first = ticks.wait()
    time.sleep(0.07)
    ticks.wait()
    assert ticks.missed >= 2
    n = ticks.late.n
    assert (ticks.wait() - first) % 1 == 0 and ticks.late.n == n + 1


# With processes.

CLIENT = """
import sys, time
from polyarm.real_robot import pages
policy = pages.Writer(sys.argv[1] + ".policy", 65536)
now = time.monotonic_ns()
policy.say({"number": 1, "seen_ns": now, "t_ns": now, "dt_ns": 10**11, "rows": [[-0.9, 0.02]]})
print("planned", flush=True)
while True:
    time.sleep(0.02)
    policy.again()
"""

STARTER = """
import json, sys, time
from polyarm.real_robot.station import Station
from polyarm.real_robot.daemon import Daemon
daemon = Daemon(Station(**json.loads(sys.argv[1])))
daemon.enable()
print(daemon.process.pid, flush=True)
time.sleep(600)
"""


def test_a_policy_that_is_killed_ends_with_what_it_planned(station):
    """`kill -9` on the way to a goal that is far: the arm brakes and holds, before the plan's end, and never comes there."""
    slow = Station(**vars(station) | {"limits": {"velocity": [0.05, 0.3]}})
    daemon = Daemon(slow)
    try:
        daemon.enable()
        daemon.yield_policy()
        client = subprocess.Popen([sys.executable, "-c", CLIENT, station.name], stdout=subprocess.PIPE)
        client.stdout.readline()
        until(lambda: daemon.status()["state"] == "RUN")
        os.kill(client.pid, signal.SIGKILL)
        client.wait()
        killed = time.monotonic_ns()
        until(lambda: daemon.status()["state"] == "HOLD")
        time.sleep(0.3)
        rows = log(station)
        moved = [t for (_, before), (t, q) in pairwise(rows) if q != before]
        assert moved and moved[-1] < killed + 5e9 and rows[-1][1][0] > -0.5
        q = [x[0] for _, x in rows]
        assert max(abs(b - a) for a, b in pairwise(q)) <= 0.05 * 0.01 + 1e-12
    finally:
        daemon.close()


class Nothing:
    def reset(self, seed): ...
    def see(self):
        return {}, False


def test_a_world_by_the_wall_clock_moves_the_arm_slot_by_slot(station):
    """Two episodes through the arm's process: each starts enabled, follows what it is told, and ends limp or held."""
    joints = Stream("joint_pos", "state", (2,), SPEC.joints, SPEC.units, "joint")
    spec = Spec(ObsSpace((joints,), 10.0), ActionSpace(SPEC.joints, SPEC.units, "joint", 10.0))
    box = spaces.Box(np.float32(SPEC.low), np.float32(SPEC.high), dtype=np.float32)
    daemon = Daemon(station)
    world = RobotWorld(daemon, Nothing(), spec, box, 8)
    try:
        for goal in (0.5, -0.5):
            obs, _ = world.reset(seed=[0], options={})
            before = obs["joint_pos"][0, 0]
            for _ in range(8):
                obs, _, _, cut, _ = world.step(np.array([[goal, 0.02]], np.float32))
            assert cut[0] and abs(obs["joint_pos"][0, 0] - goal) < 0.2 * abs(goal - before)
            assert len(world.late_ms) == 8 and daemon.status()["counts"]["plan"].get("a chunk of another clock", 0) == 0
        daemon.act("hold")
        assert daemon.status()["state"] == "HOLD"
    finally:
        world.close()
    assert daemon.process.returncode == 0


def test_a_machine_that_stood_still_is_no_silence_and_one_process_that_does_is(station, monkeypatch):
    """Looks every 10 ms. Mutation: the age of the last word, whoever slept."""
    monkeypatch.setattr(Supervisor, "_value", lambda self: value)
    supervisor, value, said = Supervisor.__new__(Supervisor), None, []
    supervisor.station = Station(**vars(station) | {"stale_ms": 100.0})
    supervisor._began = supervisor._looked_ns = supervisor._heard = 0
    supervisor._still_ns = supervisor._pressed_ns = supervisor._alone_ns = 0
    for t in range(10, 500, 10):
        value = pages.Value(t, t * MS - 1, b'{"state": "RUN"}')
        said.append(supervisor._silent(t * MS))
    t += 5000  # nobody ran
    said.append(supervisor._silent(t * MS))
    value = pages.Value(t, t * MS, b'{"state": "RUN"}')
    said.append(supervisor._silent((t + 10) * MS))
    assert not any(said)
    stations.press(station.name, "a person")
    since = next(k for k in range(20, 1000, 10) if supervisor._silent((t + k) * MS))
    assert 100 <= since <= 130
    stations.release(station.name)
    value = pages.Value(t + 1, (t + since + 5000) * MS, b"{}")  # it does something slow, and says so
    assert not any(supervisor._silent((t + since + k) * MS) for k in range(0, 5000, 10))
    assert any(supervisor._silent((t + since + k) * MS) for k in range(5000, 5130, 10))


@pytest.mark.parametrize("number", (signal.SIGKILL, signal.SIGSTOP))
def test_the_supervisor_holds_the_arm_when_its_process_is_killed_or_stands_still(station, number):
    daemon = Daemon(Station(**vars(station) | {"stale_ms": 1000.0}))
    try:
        daemon.enable()
        daemon.submit(chunk(1))
        until(lambda: daemon.status()["state"] == "RUN")
        owner = child_of(daemon.process.pid)
        os.kill(owner, number)
        until(lambda: daemon.status()["state"] == "FAULT")
        assert "the supervisor holds the arm" in daemon.status()["why"]
        assert Path(station.arm["log"]).read_text().splitlines()[-1].endswith("hold")
        until(lambda: not os.path.exists(f"/proc/{owner}"))
        with pytest.raises(UserError, match="only limp and close are left"):
            daemon.act("enable")
        daemon.act("limp")
    finally:
        daemon.close()
    assert daemon.process.returncode == 1
    assert not list(pages.FOLDER.glob(f"polyarm-{station.name}.policy"))


def child_of(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return int(file.read().split()[0])


def test_nobody_is_left_once_whoever_started_them_is_gone(station):
    """The one who started them is killed: the arm brakes, is held for `linger_s`, and then no process stays behind."""
    starter = subprocess.Popen([sys.executable, "-c", STARTER, station.json()], stdout=subprocess.PIPE, text=True)
    supervisor = int(starter.stdout.readline())
    owner = child_of(supervisor)
    starter.kill()
    starter.wait()
    until(lambda: not os.path.exists(f"/proc/{owner}"))
    until(lambda: not os.path.exists(f"/proc/{supervisor}") or "Z" in Path(f"/proc/{supervisor}/stat").read_text())
