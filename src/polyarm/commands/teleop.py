"""`polyarm teleop`: an arm moved by hand."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from polyarm.commands import Command, Words, say
from polyarm.progress import waiting


def run(words: Words) -> Any:
    with waiting("loading the driver", "hydra", "mujoco"):
        from polyarm.real_robot import hands
    from polyarm.real_robot.robot import read

    robot, rest = read(words.settings), hands.rest(words.settings)
    hands.require_none(rest)
    with hands.standing_at(robot, words.settings) as (stand, teleop), suppress(KeyboardInterrupt):
        say(f"{robot.name}: {hands.KEYS}")
        return hands.follow(stand, teleop)
    return None


COMMAND = Command(
    run,
    "Move an arm by hand: with a leader arm, or the keys of a terminal",
    "teleop robot=NAME [teleop=leader|keyboard|scripted] [robot.KEY=VALUE ...] [teleop.KEY=VALUE ...]",
    "teleop=leader     a second SO-101, limp: teleop.port=/dev/ttyACM1 teleop.calibration=leader.yaml\n"
    "teleop=keyboard   1 q, 2 w, 3 e, ... each joint there and back; i k j l h n the tip forward, back, left, right, up, down\n"
    "teleop=scripted   the expert of pick_place, at a twin\n"
    "escape or Ctrl-C: the arm brakes, then stays or falls as robot.at_end says. Every row passes the limits of the station.\n",
    order=84,
    groups=("robot", "teleop"),
)
