"""The emulated motors, byte by byte, against frames and words of the "STS3215 Memory Table" and data sheet C018; and the command.

Mutations that turn this red: a register that may be written though it is read only; a lock that keeps what is written under it;
a broadcast that is answered; an overload that a new goal does not take back; a fault that a deed only counts; a file left behind.
"""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from polyarm.cli import main
from polyarm.real_robot.sts import packet
from polyarm.real_robot.sts_table import CURRENT, HEAT, OVERLOAD, REGISTERS, VOLTAGE
from polyarm.real_robot.twin.server import Remote
from polyarm.real_robot.twin.servo import Servo
from polyarm.real_robot.twin.twin import Twin
from polyarm.spec import UserError
from tests.twins import MOUNTED, plant, rig, serving


@pytest.fixture
def twin():
    p = plant()
    p.reset(0)
    return Twin(MOUNTED, p, lockstep=True)


def ask(twin, *request):
    """What the motors answer to bytes on the bus."""
    return b"".join(said for _, said in twin.line.hear(bytes(request)))


def frame(text):
    return bytes.fromhex(text)


def test_frames_of_the_manual(twin):
    """Its examples: ping and its reply, read position of motor 1, write a goal to motor 1 with time and speed."""
    assert ask(twin, *frame("FF FF 01 02 01 FB")) == frame("FF FF 01 02 00 FC")
    said = ask(twin, *frame("FF FF 01 04 02 38 02 BE"))
    assert said[:5] == frame("FF FF 01 04 00") and len(said) == 8
    assert int.from_bytes(said[5:7], "little") == twin.servos[0].get("position")
    assert ask(twin, *frame("FF FF 02 09 03 2A E8 03 00 00 00 00 DC")) == frame("FF FF 02 02 00 FB")
    assert twin.servos[1].get("goal") == 1000
    assert ask(twin, *frame("FF FF FE 04 03 37 00 C3")) == b""  # broadcast: heard, not answered


def test_what_is_no_request_is_passed_over(twin):
    ping = frame("FF FF 01 02 01 FB")
    assert ask(twin, *frame("00 FF 13 FF FF FF"), *ping) == frame("FF FF 01 02 00 FC")
    assert ask(twin, *ping[:-1], ping[-1] ^ 1) == b""
    assert ask(twin, *ping[:3]) == b"" and ask(twin, *ping[3:]) == frame("FF FF 01 02 00 FC")
    assert ask(twin, *packet(1, 0x99)) == b"" and ask(twin, *packet(7, 1)) == b""
    assert ask(twin, *packet(1, 2, bytes([86, 2]))) == b""  # beyond the table
    assert twin.line.counts["damaged"] == twin.line.counts["unknown"] == 1


def test_all_motors_answer_the_broadcast_ping_in_turn(twin):
    assert ask(twin, *packet(0xFE, 1)) == b"".join(packet(i, 0) for i in range(1, 7))


def test_sync_reads_answer_in_the_order_of_the_request(twin):
    said = ask(twin, *packet(0xFE, 0x82, bytes([5, 1, 3, 9, 1])))
    assert said == packet(3, 0, b"\x03") + packet(1, 0, b"\x01")


def test_read_only_registers_stay(twin):
    for name, register in REGISTERS.items():
        before = twin.servos[0].get(name)
        if not register.writable:
            ask(twin, *packet(1, 3, bytes([register.address]) + b"\x55" * register.size))
            assert twin.servos[0].get(name) == before
    ask(twin, *packet(1, 3, bytes([21, 16])))
    assert twin.servos[0].get("p") == 16


def test_what_is_written_under_the_lock_is_gone_without_power(twin):
    ask(twin, *packet(1, 3, bytes([21, 16])))
    ask(twin, *packet(1, 3, bytes([55, 1])))
    ask(twin, *packet(1, 3, bytes([22, 8])))
    assert (twin.servos[0].get("p"), twin.servos[0].get("d")) == (16, 8)
    twin.do("supply", {"volts": 0.0})
    assert ask(twin, *packet(1, 1)) == b""
    twin.do("supply", {})
    assert (twin.servos[0].get("p"), twin.servos[0].get("d")) == (16, 32)
    assert twin.servos[0].get("lock") == twin.servos[0].get("torque") == 0


def test_a_deferred_write_waits_for_its_action(twin):
    assert ask(twin, *packet(2, 4, bytes([42, 0xD0, 0x07]))) == packet(2, 0)
    assert twin.servos[1].get("torque") == 0 and twin.servos[1].get("async_write") == 1
    assert ask(twin, *packet(0xFE, 5)) == b""
    assert twin.servos[1].get("goal") == 2000 and twin.servos[1].get("async_write") == 0


def test_a_quiet_motor_answers_reads_only(twin):
    assert ask(twin, *packet(1, 3, bytes([8, 0]))) == packet(1, 0)
    assert ask(twin, *packet(1, 3, bytes([21, 16]))) == b""
    assert ask(twin, *packet(1, 2, bytes([21, 1]))) == packet(1, 0, b"\x10")


def test_goals_are_cut_to_the_range_and_switch_torque_on(twin):
    low, high = MOUNTED.joints["elbow_flex"].range
    for asked, got in ((0, low), (4095, high), (2222, 2222)):
        ask(twin, *packet(3, 3, bytes([42]) + asked.to_bytes(2, "little")))
        assert (twin.servos[2].get("goal"), twin.servos[2].get("torque")) == (got, 1)
    assert [w.value for w in twin.line.log if w.what == "goal"] == [0, 4095, 2222]  # as asked


def test_torque_goes_to_an_old_goal_but_stays_where_there_is_none(twin):
    servo = twin.servos[0]
    ask(twin, *packet(1, 3, bytes([40, 1])))
    assert servo.get("goal") == servo.get("position")
    ask(twin, *packet(1, 3, bytes([42, 0xC4, 0x09])))
    ask(twin, *packet(1, 3, bytes([40, 0])))
    ask(twin, *packet(1, 3, bytes([40, 1])))
    assert servo.get("goal") == 2500


def test_128_makes_here_the_middle(twin):
    ask(twin, *packet(2, 3, bytes([40, 128])))
    twin.advance(0)
    assert twin.servos[1].get("position") == 2048
    assert twin.servos[1].get("homing") == twin.servos[1].encoder - 2048


def felt(servo, seconds, load=0.0, celsius=30.0, volts=12.0):
    for _ in range(round(seconds / 0.01)):
        servo.feel(2048, 0, load, celsius, volts, 0.01)


def ready():
    servo = Servo(1, 0, 0, 4095)
    servo.write(42, (2048).to_bytes(2, "little"))
    assert servo.power == 1.0
    return servo


def test_an_overload_of_two_seconds_leaves_a_fifth_of_the_torque_until_a_new_goal():
    servo = ready()
    felt(servo, 1.9, load=-0.85)
    felt(servo, 0.1, load=0.7)
    felt(servo, 1.9, load=0.85)
    assert servo.status == 0 and servo.power == 1.0
    felt(servo, 0.2, load=0.85)
    assert servo.status == servo.get("status") == OVERLOAD and servo.power == 0.2
    servo.write(42, (2100).to_bytes(2, "little"))
    assert servo.status == 0 and servo.power == 1.0


def test_heat_takes_torque_until_it_is_cool_and_switched_on():
    servo = ready()
    felt(servo, 0.1, celsius=71.0)
    assert servo.status == HEAT and servo.power == 0.0
    servo.write(40, b"\x01")
    felt(servo, 0.1, celsius=71.0)
    assert servo.power == 0.0
    felt(servo, 0.1, celsius=60.0)
    assert servo.status == 0 and servo.power == 0.0
    servo.write(40, b"\x01")
    assert servo.power == 1.0


def test_current_takes_torque_and_voltage_is_said_while_it_is_wrong():
    servo = ready()
    servo.write(28, (300).to_bytes(2, "little"))
    felt(servo, 2.1, load=0.75)
    assert servo.status == CURRENT and servo.power == 0.0
    servo = ready()
    felt(servo, 0.1, volts=3.9)
    assert servo.status == VOLTAGE
    felt(servo, 0.1, volts=12.0)
    assert servo.status == 0 and servo.power == 1.0


def test_a_motor_that_works_gets_warm(twin):
    twin.plant.power((1.0,) * 6)
    before = list(twin.plant.temperature_c)
    twin.plant.data.actuator_force[:] = 6.0
    twin.plant._warm(10.0)
    assert all(a > b + 5 for a, b in zip(twin.plant.temperature_c[:5], before, strict=False))


def test_deeds_are_told_by_name():
    with rig("unix") as r:
        r.arm.open()
        r.remote("freeze")
        at = r.arm.read().q
        r.arm.enable()
        r.arm.command((0.5,) * 5 + (0.01,))
        r.advance(50)
        assert r.arm.read().q == at and r.truth()["q"][0] > 0.4
        for name, given, sentence in (
            ("melt", {}, "unknown deed of a twin 'melt'.*known are"),
            ("heat", {"motor": 9}, "there is no motor 9: give one of 1, 2"),
            ("heat", {"motor": 1, "foot": 9}, "heat: .*foot"),
            ("heat", {}, "heat: .*motor"),
            ("become", {"motor": 1, "firmware": "new"}, "become: "),
            ("supply", {"volts": "much"}, "supply: "),
            ("trouble", {"drops": 1}, "unknown trouble of a line 'drops': did you mean 'drop'"),
            ("force", {"motor": 1, "bits": 64}, "status bits 64"),
        ):
            with pytest.raises(UserError, match=sentence):
                r.remote(name, **given)
        r.remote._socket.sendall(b"hello\n")
        assert "no deed" in json.loads(r.remote._lines.readline())["error"]
        assert r.remote("registers", motor=2)["homing"] == -100


def test_chance_drops_and_damages_as_often_as_told(twin):
    twin.do("trouble", {"drop": 0.25, "corrupt": 0.25})
    for _ in range(400):
        ask(twin, *packet(1, 1))
    counts = twin.do("counts", {})
    assert 70 < counts["dropped"] < 130 and 45 < counts["corrupted"] < 110


def test_a_twin_by_the_clock_moves_by_itself_and_a_paced_one_takes_the_wires_time():
    p = plant()
    p.reset(0)
    with serving(Twin(MOUNTED, p), "unix", pace_baud=1000.0) as (path, remote, server):
        from polyarm.real_robot.feetech import So101
        from polyarm.real_robot.sts import Bus
        from polyarm.real_robot.wire import open_wire

        bus = Bus(open_wire(path), range(1, 7), slack_s=30.0)
        start = time.monotonic()
        assert bus.ping(1)
        assert time.monotonic() - start > 0.06  # six bytes at 1000 baud
        bus.wire.close()
        server.pace_baud = 0
        arm = So101(path, MOUNTED, slack_ms=5000)
        arm.open()
        arm.enable()
        arm.command((0.6,) * 5 + (0.01,))
        end = time.monotonic() + 60
        while arm.read().q[0] < 0.5:
            assert time.monotonic() < end
        arm.close()
        with pytest.raises(UserError, match="--lockstep"):
            remote("advance", dt_ns=1)


@pytest.mark.parametrize(
    "words, sentence",
    [
        ((), "known are so101"),
        (("so102", "--pty"), "did you mean 'so101'"),
        (("so101",), "give one of --pty and --unix"),
        (("so101", "--pty", "--unix", "x"), "give one of --pty and --unix"),
        (("so101", "--unix"), "needs one path after --unix"),
        (("so101", "--unix", "/none/of/it"), "no folder that exists"),
        (("so101", "--unix", __file__), "exists: give a path"),
        (("so101", "--unix", "/tmp/" + "x" * 200), "give a short path"),
        (("so101", "--pty", "sead=3"), "unknown setting of a twin 'sead': did you mean 'seed'"),
        (("so101", "--pty", "seed=-1"), "seed=-1: give a whole number"),
        (("so101", "--pty", "usb_ms=nan"), "usb_ms=nan: give a number"),
        (("so101", "--pty", "calibration=/none"), "cannot be read"),
        (("so101", "--tty"), "--pty"),
    ],
)
def test_bad_words_are_one_sentence(words, sentence, capsys):
    assert main(["twin", *words]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("polyarm: ") and sentence in said


def test_the_command_says_where_it_listens_and_leaves_nothing_behind(tmp_path):
    path = os.path.join("/tmp", f"polyarm-test-{os.getpid()}")
    words = [sys.executable, "-m", "polyarm.cli", "twin", "so101", "--pty", path, "--lockstep"]
    for number, code in ((signal.SIGKILL, -9), (signal.SIGINT, 0)):  # what a killed one leaves, the next one clears
        child = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
        try:
            while "listens at" not in (line := child.stderr.readline()):
                assert line
            assert path in line and "Ctrl-C ends it" in line
            remote = Remote(path)
            assert remote("truth")["torque"] == [0.0] * 6
            remote.close()
        finally:
            child.send_signal(number)
        assert child.wait(60) == code
    assert not os.path.lexists(path) and not os.path.lexists(path + ".ctl")
