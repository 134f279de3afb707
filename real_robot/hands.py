"""What the commands that have a person at an arm share: who moves it, what the terminal says, and how it ends."""

from __future__ import annotations

import inspect
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from omegaconf import OmegaConf

from polyarm.config import part
from polyarm.ranges import NULL, SWITCH, Rule, any_of, number, require, text
from polyarm.real_robot.arm import PortLost
from polyarm.real_robot.keys import Keys, terminal
from polyarm.real_robot.limits import Limits
from polyarm.real_robot.link import ArmStopped
from polyarm.real_robot.manned import Manned, Told
from polyarm.real_robot.robot import Robot
from polyarm.real_robot.stand import Stand, brought_up
from polyarm.real_robot.station import named
from polyarm.real_robot.tape import Tape
from polyarm.real_robot.teleop import REDO, SAVE, STOP, Expert, Leader, Scripted, Teleop
from polyarm.spec import UserError, unknown

KEYS = "1 q, 2 w, ... move joints, i k j l h n the tip, escape ends"
GROUPS = ("robot", "teleop")
SHOW_S = 0.2
RULES: dict[str, Rule] = {
    "share": number(above=0, high=1),
    "catch": number(above=0, high=1),
    "tip_m_s": number(above=0, high=1),
    "patience_s": number(above=0, high=86_400),
    "rate_hz": number(1, 1000),
    "follows": SWITCH,
    "port": any_of(text("a serial port, such as /dev/ttyACM1"), NULL),
    "calibration": any_of(text("the leader's calibration file"), NULL),
}
"""Of the settings of polyarm's own teleoperators."""


def rest(settings: Sequence[str]) -> list[str]:
    """The words that name neither a station nor a teleoperator."""
    return [word for word in settings if word.lstrip("+~").partition("=")[0].partition(".")[0] not in GROUPS]


def require_none(settings: Sequence[str]) -> None:
    for word in settings:
        raise unknown(
            "setting at an arm", word.lstrip("+~").partition("=")[0], ["robot", "robot.KEY", "teleop", "teleop.KEY"]
        )


def whole[T](act: Callable[[], T]) -> T:
    """What stops an arm is a sentence for whoever started it."""
    try:
        return act()
    except (ArmStopped, PortLost) as error:
        raise UserError(f"{error}; what was recorded stays") from None


@contextmanager
def standing_at(robot: Robot, settings: Sequence[str], idle: bool = False) -> Iterator[tuple[Stand, Teleop]]:
    """The station brought up, and who moves it: as `teleop=NAME` says, by default the keyboard, `idle` until the person takes it."""
    words = [word for word in settings if word.lstrip("+~").partition("=")[0].partition(".")[0] == "teleop"]
    if not any(word.startswith("teleop=") for word in words):
        words = ["teleop=keyboard", *words]
    node = OmegaConf.to_container(part("teleop", words), resolve=True)
    assert isinstance(node, dict)
    require_person(node, robot)
    with brought_up(robot) as stand:
        given = {str(key): value for key, value in node.items() if key != "_target_"}
        yield stand, _teleop(str(node["_target_"]), given, stand, idle)


def require_person(node: dict[Any, Any], robot: Robot) -> None:
    """Before anything is brought up: keys need a terminal, the expert a twin."""
    if str(node.get("_target_", "")).endswith(".Keyboard") and not terminal():
        raise UserError(
            "teleop=keyboard reads the keys of a terminal, and there is none: run it in one, or give another teleop"
        )
    if str(node.get("_target_", "")).endswith(".expert") and robot.estimator is None:
        raise UserError(
            f"teleop=scripted knows where the cube is from a twin alone, and robot={robot.name} is none: give another teleop"
        )


def _teleop(target: str, given: dict[str, Any], stand: Stand, idle: bool) -> Teleop:
    make, station = named(target), stand.robot.station()
    takes = inspect.signature(make).parameters
    have: dict[str, Any] = {"eye": stand.truth}
    if "keys" in takes and terminal():
        have["keys"] = Keys()
    if "body" in takes and station.body:
        have["body"] = named(station.body)(Limits.of(stand.spec, **{k: _row(v) for k, v in stand.robot.limits.items()}))
    if idle and "follows" in takes:
        given = given | {"follows": False}
    for name in given:
        if name not in takes:
            raise unknown("setting of the teleoperator", f"teleop.{name}", [f"teleop.{k}" for k in takes])
    given = {name: _fitting(name, value) for name, value in given.items()}
    made = make(**given, **{k: v for k, v in have.items() if k in takes})
    if not isinstance(made, Teleop):
        raise UserError(f"{target} gives {type(made).__name__}: give what keeps polyarm.real_robot.teleop.Teleop")
    return made


def _fitting(name: str, value: Any) -> Any:
    taken = require(f"teleop.{name}", value, RULES[name]) if name in RULES else value
    return float(taken) if isinstance(taken, int) and not isinstance(taken, bool) else taken


def _row(x: Any) -> Any:
    return tuple(x) if isinstance(x, list) else x


def attended(teleop: Teleop) -> bool:
    """Whether a person is there who begins and ends episodes."""
    return not isinstance(teleop, Expert | Scripted) and not (isinstance(teleop, Leader) and teleop.keys is None)


def follow(stand: Stand, teleop: Teleop) -> dict[str, Any]:
    """The arm follows the teleoperator until the button `STOP`, or any where no person is there. {"seconds", "state", "why"} of the
    end."""
    live, ends = Live(), {STOP} if attended(teleop) else {STOP, SAVE, REDO}
    manned = Manned(stand.link, teleop, stand.tick_ns, tell=lambda told: live(told, None))
    manned.open(stand.spec)
    try:
        if stand.scene is not None:
            stand.scene.reset(0)
        stand.link.enable()
        manned.start()
        began = manned.now()
        while not manned.pressed & ends:
            whole(lambda: manned.wait(manned.now() + stand.tick_ns))
            stand.pace()
        last = stand.link.last()
        return {"seconds": (manned.now() - began) / 1e9, "state": str(last.state), "why": last.why}
    finally:
        manned.release()
        teleop.close()


class Live:
    """A line of the terminal that is written over: state, how late ticks are, how old what is seen is, and why nothing moves."""

    def __init__(self, out: Any = None) -> None:
        self.out = sys.stderr if out is None else out
        self._next = 0.0

    def __call__(self, told: Told, tape: Tape | None) -> None:
        if not self.out.isatty() or (now := time.monotonic()) < self._next:
            return
        self._next = now + SHOW_S
        seen = told.seen
        parts = [f"{seen.state:<6}", f"arm {(told.now_ns - seen.t_ns) / 1e6:.0f} ms"]
        for name, frame in (tape.newest() if tape else {}).items():
            parts.append(
                f"{name} {'no frame' if frame is None else f'{(time.monotonic_ns() - frame.t_ns) / 1e6:.0f} ms'}"
            )
        self.out.write("\r\x1b[K" + "  ".join([*parts, seen.why])[:150])
        self.out.flush()
