"""Stations: files of configs/robot, what a word may change in them, and what is refused before anything is opened.

Mutations that turn these red: a key that no station has is passed over; a limit of another shape reaches the filter; a twin that was
started outlives its block; the port of a file wins over the one that is given; a second `robot=` is ignored.
"""

import os
from dataclasses import replace

import pytest

from polyarm.choices import options
from polyarm.real_robot.robot import read, standing
from polyarm.real_robot.station import build_arm, build_loop
from polyarm.real_robot.twin.server import Remote
from polyarm.spec import UserError


@pytest.mark.parametrize("name", options("robot"))
def test_every_file_is_a_station_whose_limits_its_arm_can_keep(name):
    robot = read([f"robot={name}", "train.steps=3"])
    assert robot.name == name
    robot = replace(robot, calibration=None)
    with standing(
        replace(robot, estimator="twin", port="/nowhere")
    ) as there:  # the calibration of a twin, none is started
        station = there.station() if "Mujoco" not in robot.driver else robot.station()
        arm = build_arm(station)
        loop = build_loop(station, arm)
    spec, limits = arm.spec, loop.guard.limits
    assert limits.floor_m == 0.02 and limits.hot_c == 60 and loop.plan.grace_ns == 50_000_000
    assert robot.home is not None and len(robot.home) == len(spec.joints)
    assert all(a <= x <= b for a, x, b in zip(spec.low, robot.home, spec.high, strict=True))


def test_a_word_changes_its_line_and_no_other(tmp_path):
    plain, other = read(["robot=so101"]), read(["robot=so101", "robot.port=/dev/ttyUSB7", "robot.limits.floor_m=0.05"])
    assert other == replace(plain, port="/dev/ttyUSB7", limits=plain.limits | {"floor_m": 0.05})
    station = other.station()
    assert station.arm == {"_target_": plain.driver, "port": "/dev/ttyUSB7", "calibration": plain.calibration}
    whole = read(["robot=so101", "robot.options={slack_ms: 9}", "robot.cameras={front: {_target_: a.b}}"])
    assert whole == replace(plain, options={"slack_ms": 9}, cameras={"front": {"_target_": "a.b"}})
    assert station.ages == {
        "stale_ns": 50_000_000,
        "lost_ns": 250_000_000,
        "beat_ns": 150_000_000,
        "hand_ns": 150_000_000,
    }


@pytest.mark.parametrize(
    "words, said",
    [
        ([], "no robot: give one robot=NAME of so101,"),
        (["robot=so11"], "did you mean 'so101'"),
        (["robot=null"], "unknown robot 'null'"),
        (["robot=so101", "robot=so101_sim"], "give one robot=NAME"),
        (["robot=so101", "robot.prt=x"], "did you mean 'robot.port'"),
        (["robot=so101", "+robot.prt=x"], "did you mean 'robot.port'"),
        (["robot=so101", "robot.port=7"], "robot.port=7: give a serial port"),
        (["robot=so101", "robot.name=a b"], "'a b' names files"),
        (["robot=so101", "robot.at_end=fall"], "give hold or limp"),
        (["robot=so101", "robot.rate_hz=0"], "robot.rate_hz=0: give a number from 1 to 1000"),
        (["robot=so101", "robot.clock=lockstep"], "does not stand still for a real arm"),
        (["robot=so101_sim", "robot.clock=wall"], "robot=so101_twin"),
        (["robot=so101", "robot.limits.velocity=3"], "robot.limits.velocity=3: give a list of numbers"),
        (["robot=so101", "+robot.limits.flor_m=3"], "did you mean 'robot.limits.floor_m'"),
        (["robot=so101", "robot.limits.floor_m=.nan"], "a number, .inf for no limit"),
        (["robot=so101", "+robot.ages_ms.stall=3"], "robot.ages_ms.stale"),
        (["robot=so101", "robot.cameras=[front]"], "robot=so101 has {} there"),
    ],
)
def test_what_is_no_station_is_one_sentence(words, said):
    with pytest.raises(UserError) as error:
        read(words)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_camera_that_cannot_be_made_is_one_sentence():
    for node, said in (({"size": [2, 2]}, "give _target_"), ({"_target_": "os.getcwd", "size": 3}, "does not take")):
        with pytest.raises(UserError, match=said):
            replace(read(["robot=so101"]), cameras={"front": node}).eyes()


def test_a_station_of_ones_own_is_a_few_lines(tmp_path):
    from polyarm.choices import adding

    (tmp_path / "robot").mkdir()
    (tmp_path / "robot" / "mine.yaml").write_text("defaults: [so101, _self_]\nname: mine\nport: /dev/a\n")
    with adding([tmp_path]):
        assert read(["robot=mine"]) == replace(read(["robot=so101"]), name="mine", port="/dev/a")


def test_a_twin_is_started_where_none_is_named_and_ends_with_the_block():
    with standing(read(["robot=so101_twin"])) as robot:
        assert robot.port and robot.calibration
        remote = Remote(robot.port)
        assert remote("advance", dt_ns=10_000_000)["time_ns"] == 10_000_000  # in lock-step
        remote.close()
        arm = build_arm(robot.station())
        arm.open()
        assert arm.identify()["port"] == robot.port
        arm.close()
    assert not os.path.exists(robot.port) and not os.path.exists(robot.calibration)
    with pytest.raises(UserError, match="no twin"):
        Remote(robot.port)
