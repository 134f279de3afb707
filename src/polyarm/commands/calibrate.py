"""`polyarm calibrate`: how the motors of an arm stand."""

from __future__ import annotations

import shlex
from typing import Any

from polyarm.commands import Command, Words, say, stopping
from polyarm.progress import waiting
from polyarm.spec import UserError
from polyarm.words import Takes

DRIVER = "polyarm.real_robot.feetech.So101"


def run(words: Words) -> Any:
    with waiting("loading the driver", "hydra", "mujoco"):
        from polyarm.real_robot import hands
        from polyarm.real_robot.calibrate import beside
        from polyarm.real_robot.calibration import load
        from polyarm.real_robot.feetech import So101
        from polyarm.real_robot.robot import read

    robot = read(words.settings)
    hands.require_none(hands.rest(words.settings))
    if robot.driver != DRIVER:
        raise UserError(
            f"robot={robot.name} has no motors whose ticks would be calibrated: give a station with the driver {DRIVER}"
        )
    if "--install" in words.switches:
        if robot.calibration is None or robot.port is None:
            raise UserError(
                f"there is nothing to write into {robot.name}: give robot.port=... and robot.calibration=FILE"
            )
        So101(robot.port, load(robot.calibration)).install()
        say(f"the motors at {robot.port} carry {robot.calibration} now")
        return {"installed": robot.calibration}
    path = beside(robot.calibration or f"{robot.name}.yaml")
    with stopping("nothing was written"):
        found = _guided(robot)
    found.save(path)
    install = ["polyarm", "calibrate", *words.raw, f"robot.calibration={path}", "--install"]
    say(f"calibration in {path}; the motors still carry what they did\nwrite it to them:  {shlex.join(install)}")
    return {"calibration": str(path), "hash": found.hash}


def _guided(robot: Any) -> Any:
    from polyarm.real_robot.calibrate import by_hand, calibrate, of_twin
    from polyarm.real_robot.keys import terminal
    from polyarm.real_robot.robot import standing
    from polyarm.real_robot.twin.server import Remote

    with standing(robot) as there:
        assert there.port is not None
        if robot.estimator == "twin":
            remote = Remote(there.port)
            try:
                return calibrate(there.port, of_twin(remote))
            finally:
                remote.close()
        if not terminal():
            raise UserError(
                "a person is guided through the calibration in a terminal, and there is none: run it in one"
            )
        hold = lambda: input("the arm has torque, which goes off now: hold the arm and press Enter ")
        return calibrate(there.port, by_hand(input), hold)


COMMAND = Command(
    run,
    "Find out how an arm's motors stand, by hand, with its torque off",
    "calibrate robot=NAME [robot.port=PORT] [robot.calibration=FILE] [--install]",
    "You are asked to put the limp arm into its zero pose, and then to turn each joint to its ends. Nothing is moved. The result is a\n"
    "new file: beside robot.calibration where that exists, which is never written over.\n"
    "--install   write ranges and offsets of robot.calibration into the motors, and do nothing else\n"
    "A twin is put into the poses by its control socket.\n",
    order=83,
    groups=("robot",),
    takes=Takes(switches=("--install",)),
)
