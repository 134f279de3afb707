"""A station: an arm with its port, limits, rates and cameras, as a file of `configs/robot` says it; `robot=NAME` names the file,
`robot.port=...` changes a line of it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import Field, dataclass, field, fields, replace
from math import inf
from typing import Any

from omegaconf import OmegaConf

from polyarm.config import part
from polyarm.ranges import NULL, Rule, any_of, mapping, number, require, several, text, words
from polyarm.real_robot import calibration
from polyarm.real_robot.calibration import Number
from polyarm.real_robot.limits import Limits
from polyarm.real_robot.states import Ages
from polyarm.real_robot.station import Station, named
from polyarm.spec import UserError, unknown

ABOVE = 65
"""Real-time priority: above the arm's process, which waits for its motors."""
START_S = 120.0
"""For a twin to load its model, on a machine that has much to do."""
AGES = tuple(f.name.removesuffix("_ns") for f in fields(Ages))
RULES: dict[str, Rule] = {
    "name": text("a name of letters, digits, - and _"),
    "driver": text("the dotted name of a driver, such as polyarm.real_robot.feetech.So101"),
    "port": any_of(text("a serial port, such as /dev/ttyACM0"), NULL),
    "calibration": any_of(text("the arm's calibration file"), NULL),
    "options": mapping("{name: value} of the driver"),
    "clock": words("wall", "lockstep"),
    "estimator": any_of(words("twin", "sim"), NULL),
    "at_end": words("hold", "limp"),
    "rate_hz": number(1, 1000),
    "between": words("lead", "hold"),
    "grace_ms": number(0, 1000),
    "ages_ms": mapping("{stale: ..., lost: ..., beat: ..., hand: ...}"),
    "stale_ms": number(10, 10_000),
    "linger_s": number(0, 86_400),
    "action_hz": number(above=0, high=1000),
    "episode_s": number(above=0, high=86_400),
    "home": any_of(several(number(), "a number a joint"), NULL),
    "home_rad_s": number(above=0, high=10),
    "limits": mapping("{name: value}, such as {floor_m: 0.02}"),
    "body": any_of(text("the dotted name of a function that makes the filter's model of the arm"), NULL),
    "cameras": mapping("{name: {_target_: polyarm.real_robot.camera.OpenCV, ...}}"),
}

LIMIT = Rule("a number, .inf for no limit", lambda x: x if x in (inf, -inf) else number().take(x))


@dataclass(frozen=True)
class Robot:
    """Plain data; what each line means stands in configs/robot/so101.yaml."""

    name: str
    driver: str
    port: str | None = None
    calibration: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    clock: str = "wall"
    estimator: str | None = None
    at_end: str = "hold"
    rate_hz: float = 100.0
    between: str = "lead"
    grace_ms: float = 50.0
    ages_ms: dict[str, Number] = field(default_factory=dict)
    stale_ms: float = 100.0
    linger_s: float = 60.0
    action_hz: float = 20.0
    episode_s: float = 8.0
    home: list[Number] | None = None
    home_rad_s: float = 0.5
    limits: dict[str, Any] = field(default_factory=dict)
    body: str | None = None
    cameras: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.clock == "lockstep" and self.estimator is None:
            raise UserError("robot.clock=lockstep: time does not stand still for a real arm; give robot.clock=wall")
        if self.clock == "wall" and self.estimator == "sim":
            raise UserError(
                "robot.clock=wall: without a wire time passes in lock-step only; give robot=so101_twin for the clock"
            )

    def station(self) -> Station:
        """What the arm's process is started with; refuses a name that can name no files."""
        given = {"port": self.port, "calibration": self.calibration}
        arm = {"_target_": self.driver, **self.options, **{k: v for k, v in given.items() if v is not None}}
        ages = {f"{name}_ns": int(1e6 * ms) for name, ms in self.ages_ms.items()}
        return Station(
            self.name, arm, self.limits, self.body or "", self.between, self.grace_ms, ages, self.rate_hz, self.stale_ms,
            linger_s=self.linger_s,
        )  # fmt: skip

    def eyes(self) -> dict[str, Any]:
        """{name: camera}, closed."""
        made = {}
        for name, node in self.cameras.items():
            if not isinstance(node, dict) or "_target_" not in node:
                raise UserError(
                    f"robot.cameras.{name}={node}: give _target_, such as polyarm.real_robot.camera.OpenCV, and its settings"
                )
            given = {key: value for key, value in node.items() if key != "_target_"}
            try:
                made[name] = named(node["_target_"])(**given)
            except TypeError as error:
                raise UserError(
                    f"robot.cameras.{name} does not take these settings ({error}): see {node['_target_']}"
                ) from None
        return made


def of_robot(word: str) -> bool:
    """Whether a word of a command line is about the station."""
    return word.lstrip("+~").partition("=")[0].partition(".")[0] == "robot"


def read(settings: Sequence[str]) -> Robot:
    """The station that `robot=NAME` and `robot.KEY=VALUE` name; other words are not looked at."""
    node = OmegaConf.to_container(part("robot", settings), resolve=True)
    assert isinstance(node, dict)
    known = {f.name: f for f in fields(Robot)}
    given = _checked(node, RULES, "robot")
    for key in ("name", "driver"):
        if key not in given:
            raise UserError(f"the station has no robot.{key}: give {RULES[key].expect}")
    _checked(given.get("limits", {}), {f.name: _limit(f) for f in fields(Limits)}, "robot.limits")
    _checked(given.get("ages_ms", {}), dict.fromkeys(AGES, number(1, 60_000)), "robot.ages_ms")
    typed: dict[str, Any] = {k: float(x) if known[k].type == "float" else x for k, x in given.items()}
    robot = Robot(**typed)
    robot.station()
    return robot


def _checked(node: Mapping[Any, Any], rules: Mapping[str, Rule], where: str) -> dict[str, Any]:
    for key in node:
        if key not in rules:
            raise unknown("setting of a station", f"{where}.{key}", [f"{where}.{name}" for name in rules])
    return {str(key): require(f"{where}.{key}", value, rules[key]) for key, value in node.items()}


def _limit(f: Field[Any]) -> Rule:
    return LIMIT if f.type == "float" else several(LIMIT, "a list of numbers, one a joint, an axis or an end")


@contextmanager
def standing(robot: Robot) -> Iterator[Robot]:
    """The station with an arm at its port: where that is a twin's and none is given, one is started, and ends with the block."""
    if robot.estimator != "twin":
        yield robot
        return
    with tempfile.TemporaryDirectory(prefix="polyarm-") as folder:
        if robot.calibration is None:
            file = os.path.join(folder, "calibration.yaml")
            calibration.so101().save(file)
            robot = replace(robot, calibration=file)
        if robot.port is not None:
            yield robot
            return
        port = os.path.join(folder, "so101")
        with _twin(port, robot):
            yield replace(robot, port=port)


@contextmanager
def _twin(port: str, robot: Robot) -> Iterator[None]:
    lockstep = ["--lockstep"] if robot.clock == "lockstep" else []
    command = [
        sys.executable,
        "-m",
        "polyarm.cli",
        "twin",
        "so101",
        "--unix",
        port,
        *lockstep,
        f"calibration={robot.calibration}",
    ]
    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=said, start_new_session=True)
        try:
            if robot.clock == "wall":  # a motor is never late because a machine has much to do
                with suppress(PermissionError):
                    os.sched_setscheduler(child.pid, os.SCHED_FIFO, os.sched_param(ABOVE))
            end = time.monotonic() + START_S
            while not os.path.exists(port):
                if child.poll() is not None or time.monotonic() > end:
                    said.seek(0)
                    last = said.read().decode(errors="replace").strip().splitlines()[-1:]
                    raise UserError(
                        last[0].removeprefix("polyarm: ") if last else f"no twin came up at {port} within {START_S:g} s"
                    )
                time.sleep(0.01)
            yield
        finally:
            child.terminate()
            child.wait()
