"""A calibration that is made by hand says how the motors stand, whatever they carry, and makes no motor move.

Mutations that turn these red: a sign or a zero of the joint before; the encoder's wrap not seen; a homing that is added; a file
written over; a goal written.
"""

import pytest

from polyarm.cli import main
from polyarm.real_robot.calibrate import beside, by_hand, calibrate, of_twin
from polyarm.real_robot.calibration import load, so101
from polyarm.real_robot.feetech import So101
from polyarm.real_robot.so101 import SPEC
from polyarm.real_robot.twin.twin import Twin
from polyarm.spec import UserError
from tests.twins import MOUNTED, TICK_NS, plant, serving


@pytest.mark.parametrize(
    "mounted", [so101(), MOUNTED, so101((-1,) * 6, (2048,) * 6, (1200, -1500, 900, -300, 0, 2000))]
)
def test_it_finds_signs_zeros_and_ranges_and_the_arm_then_reads_right(mounted, tmp_path):
    with serving(Twin(mounted, plant(), lockstep=True), "unix") as (path, remote, _):
        remote("reset", seed=0)
        found = calibrate(path, of_twin(remote))
        assert [(motor, what) for _, motor, what, _ in remote("log")["written"] if what == "goal"] == []
        for a, b in zip(found.joints.values(), mounted.joints.values(), strict=True):
            assert a.sign == b.sign and a.id == b.id and abs(a.zero + a.homing - b.zero - b.homing) <= 1
            assert (
                abs(a.scale - b.scale) < 0.002 * b.scale
                and abs((a.range[1] - a.range[0]) - (b.range[1] - b.range[0])) <= 3
            )
        found.save(tmp_path / "mine.yaml")
        arm = So101(path, load(tmp_path / "mine.yaml"), slack_ms=2000.0, clock=lambda: plant().time_ns)
        arm.install()
        arm.open()
        q = [0.3, -0.4, 0.5, 0.2, -1.0, 0.02]
        remote("pose", q=q)
        assert arm.read().q == pytest.approx(q, abs=0.003)
        arm.enable()
        arm.close()
        with pytest.raises(UserError, match="has torque: take it off first"):
            remote("pose", q=q)
        remote("advance", dt_ns=TICK_NS)
        held = []
        calibrate(path, lambda *what: remote("pose", q=[0.0] * 6) and of_twin(remote)(*what), lambda: held.append(1))
        assert held == [1]


@pytest.mark.parametrize(
    "wrong, said",
    [
        (lambda joint, sign: (0.5 * sign if joint else 0) if joint != "elbow_flex" else 0.1 * sign, "elbow_flex was turned by 130 ticks only"),
        (lambda joint, sign: (0.9 + 0.6 * sign) if joint else 0, "lie on one side of the zero pose"),
    ],
)  # fmt: skip
def test_a_joint_that_was_not_turned_as_asked_is_said(wrong, said):
    with serving(Twin(so101(), plant(), lockstep=True), "unix") as (path, remote, _):
        remote("reset", seed=0)

        def ask(what, joint, sign):
            q = [0.0] * 6
            if joint:
                q[SPEC.joints.index(joint)] = float(SPEC.high[5] * (sign > 0) if joint == "gripper" else 1.5 * wrong(joint, sign) if joint != "elbow_flex" else wrong(joint, sign))  # fmt: skip
            remote("pose", q=q)

        with pytest.raises(UserError, match=said):
            calibrate(path, ask)


def test_a_motor_that_is_missing_or_of_another_kind_is_said():
    with serving(Twin(so101(), plant(), lockstep=True), "unix") as (path, remote, _):
        remote("become", motor=3, model=1234)
        with pytest.raises(UserError, match="motor 3 .elbow_flex. is of model 1234"):
            calibrate(path, of_twin(remote))
        remote("remove", motor=2)
        with pytest.raises(UserError, match="motor 2 .shoulder_lift. does not answer"):
            calibrate(path, of_twin(remote))


def test_a_person_is_asked_and_a_file_is_never_written_over(tmp_path):
    asked = []
    by_hand(asked.append)("turn it", "elbow_flex", 1)
    assert asked == ["turn it, hold it there and press Enter "]
    path = tmp_path / "a.yaml"
    assert beside(path) == path
    path.touch()
    assert beside(path) == tmp_path / "a.2.yaml"
    (tmp_path / "a.2.yaml").touch()
    assert beside(path) == tmp_path / "a.3.yaml"


def test_the_command_writes_a_file_beside_and_installs_only_when_asked(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    MOUNTED.save("mine.yaml")
    with serving(Twin(MOUNTED, plant(), lockstep=True), "unix") as (path, remote, _):
        remote("reset", seed=0)
        kept = lambda: [
            remote("registers", motor=i)[what] for i in range(1, 7) for what in ("homing", "low", "high", "goal")
        ]
        before = kept()
        words = ["calibrate", "robot=so101_twin", f"robot.port={path}", "robot.calibration=mine.yaml"]
        assert main(words) == 0
        assert "mine.2.yaml" in capsys.readouterr().err and load("mine.yaml") == MOUNTED
        assert kept() == before
        assert main([*words[:-1], "robot.calibration=mine.2.yaml", "--install"]) == 0
        joint = load("mine.2.yaml").joints["shoulder_pan"]
        now = remote("registers", motor=1)
        assert (now["homing"], now["low"], now["high"]) == (joint.homing, *joint.range)
    assert main(["calibrate", "robot=so101_sim"]) == 2 and "no motors" in capsys.readouterr().err
