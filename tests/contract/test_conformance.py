"""What every driver of an arm keeps, over the driver without a wire and those with one: `Arm`'s words, one by one.

Mutations that turn this red: a sign, zero or homing left out in calibration.py; `enable` switching torque on before it sets goals;
`command` after LIMP; a wire that discards its output instead of its input; a bus that takes the first reply of two, or leaves out
the error byte or the checksum; a plant on the simulator's own model; `open` that skips any one check, or leaves the port taken when it refuses.
"""

import os
import time

import numpy as np
import pytest

from polyarm.real_robot import calibration, wire
from polyarm.real_robot.arm import PortLost, ReadFailed, Stop
from polyarm.real_robot.feetech import So101
from polyarm.real_robot.mujoco_arm import MujocoArm
from polyarm.real_robot.so101 import SPEC
from polyarm.real_robot.sts import Bus
from polyarm.real_robot.twin.twin import Twin
from polyarm.sim.mujoco import mujoco
from polyarm.sim.mujoco.pick_place import PickPlace
from polyarm.spec import UserError
from tests.twins import DRIVERS, MOUNTED, TICK_NS, plant, rig, serving

HOME = (0.1, -0.3, 0.2, 1.2, 0.1, 0.02)
POSES = (
    HOME,
    (-1.2, -0.6, 0.5, 1.0, -2.0, 0.004),
    (1.5, 0.2, -0.4, 0.3, 2.5, 0.030),
    (0.0, -1.2, 0.9, -1.0, 0.7, 0.012),
)
NEAR = np.array([1e-3] * 5 + [1e-4])
TICK = np.array([2 * np.pi / 4096] * 5 + [0.032 / 782])
wired = pytest.mark.parametrize("kind", DRIVERS[1:])
every = pytest.mark.parametrize("kind", DRIVERS)


def fk(q):
    """Where the tip is at `q`, by a model of the test's own."""
    world = PickPlace()
    world.data.qpos[:5], world.data.qpos[5:7] = q[:5], q[5]
    mujoco.mj_kinematics(world.model, world.data)
    return world.tip_pos


def go(r, q, ticks=150):
    r.arm.command(tuple(q))
    r.advance(ticks)


# units, sign, zero


@every
def test_conformance_units_sign_and_zero(kind):
    with rig(kind) as r:
        r.arm.open()
        r.arm.enable()
        for pose in POSES:
            go(r, pose)
            said, true = np.array(r.arm.read().q), r.truth()
            assert (np.abs(said - true["q"]) < NEAR).all()
            assert np.abs(fk(said) - true["tip"]).max() < 1e-3
            assert (np.abs(said - pose) < 0.02).all()


@pytest.mark.parametrize(
    "motor, ticks, angle", [(1, 2148, 0.153398), (2, 2100, -0.153398), (3, 2100, 0.0), (6, 2500, 0.020453)]
)
def test_conformance_ticks_are_those_of_the_motor(motor, ticks, angle):
    """By hand: (ticks - zero) * sign * 2 pi / 4096, and 1.2 rad of motor open the gripper by 0.032 m."""
    with rig("unix") as r:
        r.arm.open()
        r.arm.enable()
        r.arm.bus.write(motor, "goal", ticks)
        r.advance(200)
        for q in (r.arm.read().q, r.truth()["q"]):
            assert q[motor - 1] == pytest.approx(angle, abs=1.6e-3 if motor < 6 else 1e-4)


# lifecycle


@every
def test_conformance_opens_ten_times_and_closes_twice(kind):
    with rig(kind) as r:
        for _ in range(10):
            r.arm.open()
            r.arm.open()
            assert len(r.arm.read().q) == 6
            r.arm.close()
            r.arm.close()
            with pytest.raises(PortLost):
                r.arm.read()


@wired
def test_conformance_open_and_close_ask_nothing_of_the_motors(kind):
    with rig(kind) as r:
        r.arm.open()
        assert not r.written()
        r.arm.enable()
        r.arm.close()
        assert r.remote("truth")["torque"] == [1.0] * 6


@every
def test_conformance_enable_does_not_move(kind):
    """From where the arm has fallen to, with the goals of before still in the motors."""
    with rig(kind) as r:
        r.arm.open()
        r.arm.enable()
        go(r, POSES[1], 60)
        r.arm.stop(Stop.LIMP)
        r.advance(400)
        before = r.truth()["q"]
        assert np.abs(np.subtract(before, POSES[1])).max() > 0.2
        r.arm.enable()
        r.advance(50)
        assert (np.abs(np.subtract(r.truth()["q"], before)) < 1.5 * TICK).all()


@wired
def test_conformance_goals_come_before_torque(kind):
    with rig(kind) as r:
        r.arm.open()
        r.arm.enable()
        wrote = r.written()
        for motor in range(1, 7):
            assert [what for m, what, _ in wrote if m == motor] == ["goal", "torque"]


# reading


@every
def test_conformance_reads_are_stamped_and_fresh(kind):
    with rig(kind) as r:
        r.arm.open()
        r.arm.enable()
        before = r.arm.read()
        for _ in range(20):
            r.arm.command(POSES[2])
            r.advance()
            state = r.arm.read()
            assert state.t_ns == before.t_ns + TICK_NS
            assert (np.abs(np.subtract(state.q, r.truth()["q"])) < NEAR).all()
            before = state
        assert state.dq[0] > 0.5 and state.load[0] != 0
        assert len(state.temperature_c) == len(state.status) == 6 and not any(state.status)


# tracking


@wired
def test_conformance_tracks_as_the_reference(kind):
    def path(k):
        return tuple(np.add(HOME, [0.5 * np.sin(2 * np.pi * 0.2 * k / 100)] * 5 + [0.005 * np.sin(k / 50)]))

    def played(r):
        r.arm.open()
        r.arm.enable()
        seen = []
        for k in range(120):
            go(r, path(k), 1)
            if k % 10 == 0:
                seen.append(r.truth()["q"])
        return np.array(seen)

    with rig("mujoco") as r:
        want = played(r)
    with rig(kind) as r:
        assert (np.abs(played(r) - want) < 2 * TICK).all()


def test_conformance_lock_step_repeats_to_the_bit():
    def played():
        with rig("unix") as r:
            r.arm.open()
            r.arm.enable()
            for k in range(20):
                go(r, POSES[k % 4], 1)
            return r.truth()["q"], r.arm.read().q

    assert played() == played()


def test_conformance_the_reference_is_the_simulator():
    arm, world, rng = MujocoArm(plant()), PickPlace(), np.random.default_rng(0)
    arm.open()
    for seed in (3, 4):
        arm.plant.reset(seed)
        arm.advance(7 * TICK_NS)  # a hand holds it
        arm.enable()
        world.reset(seed=seed)
        for _ in range(25):
            action = rng.uniform(world.action_space.low, world.action_space.high).astype(np.float32)
            world.step(action)
            arm.command(tuple(map(float, action)))
            for _ in range(5):
                arm.advance(TICK_NS)
                arm.plant.truth()
            assert arm.read().q == (*world.joints.tolist(), world.opening)
        arm.stop(Stop.LIMP)
        arm.advance(TICK_NS)
        assert (world.model.actuator_gainprm[:, 0] > 0).all()  # the simulator's own model is never limp


# limits and stops


@wired
def test_conformance_no_goal_leaves_the_limits(kind):
    """Rounding goes inwards; nan is no goal at all."""
    with rig(kind) as r:
        r.arm.open()
        r.arm.enable()
        r.written()
        for q in (SPEC.low, SPEC.high, (9.0,) * 6, (-9.0,) * 6):
            r.arm.command(q)
        joints = r.arm.joints
        goals = [(motor - 1, joints[motor - 1].angle(ticks)) for motor, what, ticks in r.written() if what == "goal"]
        assert len(goals) == 24
        for k, angle in goals:
            assert SPEC.low[k] <= angle <= SPEC.high[k]
            assert min(angle - SPEC.low[k], SPEC.high[k] - angle) < TICK[k]
        with pytest.raises(ValueError):
            r.arm.command((float("nan"),) * 6)
        assert not r.written()


@every
def test_conformance_hold_stays_and_keeps_torque(kind):
    with rig(kind) as r:
        r.arm.open()
        r.arm.enable()
        go(r, POSES[2], 20)
        r.arm.stop(Stop.HOLD)
        at = np.array(r.truth()["q"])
        r.advance(100)
        assert np.abs(r.truth()["q"] - at)[:5].max() < 0.15 < np.abs(np.subtract(POSES[2], at)[:5]).max()
        assert r.plant.share == (1.0,) * 6


@every
def test_conformance_limp_falls_and_takes_no_goal(kind):
    with rig(kind) as r:
        r.arm.open()
        r.arm.enable()
        go(r, POSES[1])
        r.arm.stop(Stop.LIMP)
        if r.remote:
            r.written()
            go(r, HOME, 60)
            assert not r.written()
        r.advance(60)
        assert r.plant.share == (0.0,) * 6
        assert np.abs(np.subtract(r.truth()["q"], POSES[1])).max() > 0.1


def test_conformance_stops_reach_those_that_answer():
    with rig("unix", slack_ms=300) as r:
        r.arm.open()
        r.arm.enable()
        r.arm.bus.slack_s = 0.02
        r.remote("trouble", drop=1.0)
        r.written()
        r.arm.stop(Stop.HOLD)
        assert not r.written()  # the motors hold what they were last told
        r.remote("trouble", drop=0.0)
        r.remote("remove", motor=2)
        r.arm.bus.slack_s = 0.3
        with pytest.raises(ReadFailed, match="^shoulder_lift did not confirm"):
            r.arm.stop(Stop.LIMP)
        r.advance()
        assert r.truth()["torque"] == [0, 1, 0, 0, 0, 0]


def test_conformance_an_enable_that_fails_leaves_the_arm_limp():
    with rig("unix") as r:
        r.arm.open()
        write = r.arm.bus.write

        def fails(motor, name, value):
            if (motor, name) == (6, "torque"):
                raise ReadFailed("no reply of motor 6")
            write(motor, name, value)

        r.arm.bus.write = fails
        with pytest.raises(ReadFailed):
            r.arm.enable()
        r.advance()
        assert r.truth()["torque"] == [0.0] * 6
        r.arm.command(HOME)
        r.advance()
        assert r.truth()["torque"] == [0.0] * 6


# who is there


def other(**changed):
    """MOUNTED but for one joint."""
    joints = dict(MOUNTED.joints)
    joints["elbow_flex"] = calibration.Joint(**vars(joints["elbow_flex"]) | changed)
    return calibration.Calibration(joints)


REFUSALS = {
    "swapped ids": ([("swap", {"motor": 2, "other": 3})], "ids are swapped"),
    "a cable is off": ([("remove", {"motor": 4})], r"motor 4 \(wrist_flex\) does not answer"),
    "no power": ([("supply", {"volts": 0.0})], "no motor answers"),
    "little power": ([("supply", {"volts": 3.5})], "has 3.5 V, it needs 4"),
    "another motor": ([("become", {"motor": 6, "model": 2825})], r"motor 6 \(gripper\) is of model 2825"),
    "old firmware": ([("become", {"motor": 1, "firmware": "2.9"})], "has firmware 2.9, 3.x is expected"),
    "a wheel": ([("write", {"motor": 5, "register": "mode", "value": 1})], "is in mode 1, not 0"),
    "two firmwares": ([("become", {"motor": 1, "firmware": "3.10"})], "differ in firmware"),
}


@pytest.mark.parametrize("what", REFUSALS)
@pytest.mark.parametrize("kind", ["unix"])
def test_conformance_refuses_another_arm_before_torque(kind, what):
    deeds, sentence = REFUSALS[what]
    with rig(kind, slack_ms=100) as r:
        for name, given in deeds:
            r.remote(name, **given)
        with pytest.raises(UserError, match=sentence) as refused:
            r.arm.open()
        assert "\n" not in str(refused.value) and ": " in str(refused.value)
        assert not r.written()
        with pytest.raises(PortLost):
            r.arm.read()


@pytest.mark.parametrize("changed", [{"range": (1100, 2900)}, {"homing": 40}], ids=str)
def test_conformance_refuses_another_arms_calibration(changed):
    with rig("unix") as r:
        arm = So101(r.arm.port, other(**changed), slack_ms=2000)
        with pytest.raises(UserError, match=r"motor 3 \(elbow_flex\) carries range .* the calibration says"):
            arm.open()
        assert not r.written()
        r.arm.open()  # the port is free again
        r.arm.close()


def test_conformance_a_calibration_is_installed_for_good():
    with rig("unix") as r:
        arm = So101(r.arm.port, other(range=(1100, 2900), homing=40), slack_ms=2000)
        arm.install()
        r.remote("supply", volts=0.0)
        r.remote("supply")
        arm.open()
        arm.close()
        with pytest.raises(UserError, match="carries range"):
            r.arm.open()


@wired
def test_conformance_a_port_has_one_owner(kind):
    with rig(kind) as r:
        r.arm.open()
        second = So101(r.arm.port, MOUNTED, slack_ms=2000)
        with pytest.raises(UserError, match="in use by another process|no other process has it"):
            second.open()
        assert len(r.arm.read().q) == 6
        r.arm.close()
        r.advance(0)
        second.open()
        second.close()


def test_conformance_wrong_ports_are_told_apart(tmp_path, monkeypatch):
    plain = tmp_path / "plain"
    plain.write_text("")
    with pytest.raises(UserError, match="there is no port .*: plug the arm in"):
        So101(str(tmp_path / "none"), MOUNTED).open()
    with pytest.raises(UserError, match="is no serial port"):
        So101(str(plain), MOUNTED).open()

    def forbidden(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(wire.os, "open", forbidden)
    with pytest.raises(UserError, match="dialout .*udev"):
        So101(str(plain), MOUNTED).open()


# the bus, and what a wire does to it


@wired
def test_conformance_a_late_reply_is_never_fresh(kind):
    """One late reply left the vendor's SDK a packet behind for ever."""
    with rig(kind) as r:
        r.arm.open()
        r.arm.enable()
        go(r, POSES[0])
        old = r.arm.read().q
        r.arm.bus.slack_s = 0.02
        r.remote("trouble", late_next=1, late_ms=600.0)
        with pytest.raises(ReadFailed, match="no reply"):
            r.arm.read()
        r.arm.bus.slack_s = 2.0
        assert r.arm.read().q == old  # a read that succeeds, and the late one comes after it
        go(r, POSES[2])
        end_s = time.monotonic() + 10
        while not r.arm.bus.wire.waiting() and time.monotonic() < end_s:
            time.sleep(0.01)
        for _ in range(5):
            state = r.arm.read()
            assert (np.abs(np.subtract(state.q, r.truth()["q"])) < NEAR).all()
            assert np.abs(np.subtract(state.q, old)).max() > 0.5


def test_conformance_of_two_replies_none_is_believed():
    """A late one that lands between request and reply: nothing in it says so but the bytes after it."""
    with serving(Twin(MOUNTED, plant(), lockstep=True), "unix") as (path, _, server):
        line, bus = server.twin.line, Bus(wire.open_wire(path), [j.id for j in MOUNTED.joints.values()], slack_s=2.0)
        hear, twice = line.hear, [True]

        def stutter(data):
            said = hear(data)
            return [(0.0, b"".join(x for _, x in said) * 2)] if twice and twice.pop() else said

        line.hear = stutter
        with pytest.raises(ReadFailed, match="more bytes"):
            bus.read_block()
        assert len(bus.read_block()) == 6
        bus.wire.close()


@wired
def test_conformance_damaged_replies_are_never_believed(kind):
    with rig(kind) as r:
        r.arm.open()
        for _ in range(60):
            r.remote("trouble", corrupt_next=1)
            with pytest.raises(ReadFailed, match="motor 1 is damaged"):
                r.arm.read()
        assert (np.abs(np.subtract(r.arm.read().q, r.truth()["q"])) < NEAR).all()
        assert r.remote("counts")["corrupted"] == 60


@wired
def test_conformance_lost_replies_are_asked_for_again(kind):
    """A tick's read says so and the next is whole; a register is asked for until it answers."""
    with rig(kind) as r:
        r.arm.open()
        r.arm.bus.slack_s = 0.05
        r.remote("trouble", drop_next=1)
        with pytest.raises(ReadFailed, match="no reply of motor 1$"):
            r.arm.read()
        r.arm.bus.slack_s = 0.5
        assert (np.abs(np.subtract(r.arm.read().q, r.truth()["q"])) < NEAR).all()
        r.arm.bus.slack_s = 0.02
        r.remote("trouble", drop_next=2)
        assert r.arm.bus.read(3, "model") == 777


@wired
def test_conformance_an_unplugged_arm_is_lost_and_found(kind):
    with rig(kind) as r:
        r.arm.open()
        r.arm.enable()
        r.remote("unplug")
        for act in (r.arm.read, lambda: r.arm.command(HOME), r.arm.read, lambda: r.arm.stop(Stop.LIMP)):
            with pytest.raises(PortLost):
                act()
        r.arm.close()
        with pytest.raises(UserError, match="there is no port"):
            r.arm.open()
        r.remote("plug")
        r.arm.open()
        assert (np.abs(np.subtract(r.arm.read().q, r.truth()["q"])) < NEAR).all()


@wired
def test_conformance_a_silent_arm_is_not_waited_for(kind):
    """Every wait has an end, also where the port lives on and says nothing."""
    with rig(kind) as r:
        r.arm.open()
        r.arm.bus.slack_s = 0.02
        r.remote("trouble", mute=True)
        for act in (r.arm.read, lambda: r.arm.bus.read(1, "model"), lambda: r.arm.bus.write(1, "torque", 0)):
            with pytest.raises(ReadFailed):
                act()
        r.remote("trouble", mute=False)
        r.arm.bus.slack_s = 2.0
        assert len(r.arm.read().q) == 6


@pytest.mark.parametrize(
    "deed, said",
    [
        (("heat", {"motor": 2, "celsius": 80.0}), "shoulder_lift: overheated"),
        (("force", {"motor": 3, "bits": 32}), "elbow_flex: overloaded"),
        (("supply", {"volts": 3.9}), "shoulder_pan: voltage out of range; shoulder_lift: voltage out of range"),
    ],
)
def test_conformance_a_motor_in_need_is_heard_in_two_reads(deed, said):
    """lerobot 0.6.1 drops the error byte: a joint that had switched itself off went unnoticed."""
    with rig("unix") as r:
        r.arm.open()
        r.arm.enable()
        assert r.arm.explain(r.arm.read().status) == ""
        r.remote(deed[0], **deed[1])
        for _ in range(2):
            r.advance()
            state = r.arm.read()
        assert r.arm.explain(state.status).startswith(said)
        r.advance()
        if deed[0] == "heat":
            assert r.truth()["torque"] == [1, 0, 1, 1, 1, 1]


def test_conformance_an_arm_outside_its_range_is_not_drawn_in():
    with rig("unix") as r:
        r.arm.open()
        r.plant.data.qpos[1] = SPEC.high[1] + 0.1
        r.advance(0)
        with pytest.raises(UserError, match="shoulder_lift stands at 1.84. rad, outside .* by hand"):
            r.arm.enable()
        assert not r.written()


def test_conformance_identity_names_calibration_and_firmware():
    with rig("unix") as r:
        r.arm.open()
        said = r.arm.identify()
        assert said["calibration"] == MOUNTED.hash != other(homing=40).hash
        assert said["firmware"] == ["3.6"] * 6 and said["motors"]["gripper"] == 6
        assert os.path.exists(said["port"])
