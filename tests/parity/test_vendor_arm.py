"""Other people's programs on the twin, unmodified: they keep it honest where its author misread a manual.

Skipped where they are not installed: `pip install feetech-servo-sdk==1.0.0`, `pip install 'lerobot[feetech]==0.6.1'`. A mutation that
turns this red: the homing of motor 2 with the other sign in twin/servo.py.
"""

import json
import os
import subprocess
import sys
import time

import pytest

from polyarm.real_robot.twin.server import Remote
from tests.twins import MOUNTED

NAMES = tuple(MOUNTED.joints)


@pytest.fixture
def sdk():
    return pytest.importorskip("scservo_sdk", reason="needs feetech-servo-sdk")


@pytest.fixture
def twin(sdk, tmp_path):
    """(path, remote) of a twin by the clock, in a process of its own: the vendor's SDK spins while it waits."""
    MOUNTED.save(tmp_path / "arm.yaml")
    path = f"/tmp/polyarm-vendor-{os.getpid()}"
    words = [
        sys.executable,
        "-m",
        "polyarm.cli",
        "twin",
        "so101",
        "--pty",
        path,
        f"calibration={tmp_path / 'arm.yaml'}",
    ]
    child = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    try:
        while "listens at" not in (line := child.stderr.readline()):
            assert line
        remote = Remote(path)
        yield path, remote
        remote.close()
    finally:
        child.terminate()
        child.wait(60)


def until(true, port=None, seconds=120.0):
    """The SDK gives up on a reply after 34 ms, which a busy machine can need, and takes what comes later for the next one's,
    whatever its length: what is left in the port is forgotten between tries."""
    end = time.monotonic() + seconds
    while True:
        try:
            if true():
                return
        except IndexError:
            pass
        assert time.monotonic() < end
        time.sleep(0.1)
        if port is not None:
            port.ser.reset_input_buffer()


def test_the_vendors_sdk_finds_reads_and_moves_the_motors(twin, sdk):
    path, remote = twin
    port, motors = sdk.PortHandler(path), sdk.PacketHandler(0)
    assert port.openPort() and port.setBaudRate(1_000_000)
    for motor in range(1, 7):
        until(lambda motor=motor: motors.ping(port, motor) == (777, sdk.COMM_SUCCESS, 0), port)
    assert motors.ping(port, 9)[1] == sdk.COMM_RX_TIMEOUT
    reads, goals = sdk.GroupSyncRead(port, motors, 56, 8), sdk.GroupSyncWrite(port, motors, 42, 2)
    for motor in range(1, 7):
        reads.addParam(motor)
    until(lambda: reads.txRxPacket() == sdk.COMM_SUCCESS, port)
    for motor, joint, q in zip(range(1, 7), MOUNTED.joints.values(), remote("truth")["q"], strict=True):
        assert reads.getData(motor, 56, 2) == pytest.approx(joint.ticks(q), abs=1.5)
        assert reads.getData(motor, 62, 1) == 121
    for motor, joint in zip(range(1, 7), MOUNTED.joints.values(), strict=True):
        goals.addParam(motor, [(joint.zero + 50 * joint.sign) & 255, (joint.zero + 50 * joint.sign) >> 8])
    assert goals.txPacket() == sdk.COMM_SUCCESS
    until(
        lambda: all(
            abs(x - 50 / j.scale) < 8 / j.scale
            for x, j in zip(remote("truth")["q"], MOUNTED.joints.values(), strict=True)
        )
    )
    remote("heat", motor=2, celsius=80)
    until(
        lambda: motors.read1ByteTxRx(port, 2, 40) == (0, sdk.COMM_SUCCESS, 4),
        port,
    )
    port.closePort()


@pytest.mark.slow
def test_lerobots_follower_connects_reads_and_moves(twin, tmp_path, monkeypatch):
    so = pytest.importorskip("lerobot.robots.so_follower", reason="needs lerobot[feetech]", exc_type=ImportError)
    path, remote = twin
    kept = {
        name: {"id": j.id, "drive_mode": 0, "homing_offset": j.homing, "range_min": j.range[0], "range_max": j.range[1]}
        for name, j in MOUNTED.joints.items()
    }
    (tmp_path / "arm0.json").write_text(json.dumps(kept))
    monkeypatch.setattr("builtins.input", lambda *a: pytest.fail(f"asked {a}"))  # EEPROM and file agree
    arm = so.SO101Follower(so.SO101FollowerConfig(port=path, id="arm0", calibration_dir=tmp_path, num_read_retries=20))
    arm.connect()
    assert arm.is_calibrated
    degrees = lambda j, q: (j.ticks(q) - sum(j.range) / 2) * 360 / 4095
    seen, true = arm.get_observation(), remote("truth")["q"]
    for name, joint, q in zip(NAMES[:5], MOUNTED.joints.values(), true, strict=False):
        assert seen[f"{name}.pos"] == pytest.approx(degrees(joint, q), abs=0.3)
    goal = dict(zip((f"{name}.pos" for name in NAMES), (10.0, -20.0, 15.0, 30.0, -25.0, 50.0), strict=True))
    arm.send_action(goal)
    until(lambda: all(abs(arm.get_observation()[key] - x) < 2.0 for key, x in goal.items()))
    for name, joint, q in zip(NAMES[:5], MOUNTED.joints.values(), remote("truth")["q"], strict=False):
        assert degrees(joint, q) == pytest.approx(goal[f"{name}.pos"], abs=2.5)
    arm.disconnect()
    assert remote("truth")["torque"] == [0.0] * 6
