"""What an arm's processes are started with, and what they make of it; the emergency stop; who owns the arm."""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib import import_module
from typing import Any

from polyarm.real_robot import pages
from polyarm.real_robot.arm import Arm
from polyarm.real_robot.limits import Limits
from polyarm.real_robot.loop import Loop
from polyarm.real_robot.plan import Plan
from polyarm.real_robot.safety import Filter, Watch
from polyarm.real_robot.states import Ages
from polyarm.spec import UserError


@dataclass(frozen=True)
class Station:
    """What the arm's process and its supervisor are started with; plain data. `arm`: a driver's `_target_` and arguments."""

    name: str
    arm: dict[str, Any]
    limits: dict[str, Any] = field(default_factory=dict)
    body: str = ""
    """The function that makes the filter's `Body` of the limits."""
    between: str = "hold"
    grace_ms: float = 50.0
    ages: dict[str, int] = field(default_factory=dict)
    rate_hz: float = 0.0
    """0: the arm's own."""
    stale_ms: float = 100.0
    """After how long without a tick the supervisor ends the arm's process and holds the arm itself."""
    start_s: float = 60.0
    linger_s: float = 60.0
    """How long the arm is held for once whoever started this is gone."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", self.name):
            raise UserError(f"the robot's name {self.name!r} names files: give letters, digits, - and _")

    def json(self) -> str:
        return json.dumps(asdict(self))


def named(target: str) -> Callable[..., Any]:
    """What `module.name` names."""
    module, _, name = target.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as e:
        raise UserError(f"{target} cannot be had ({e}): give module.name of a driver") from e


def build_arm(station: Station) -> Arm:
    given = dict(station.arm)
    target = given.pop("_target_")
    try:
        return named(target)(**given)
    except TypeError as e:
        raise UserError(f"{target} does not take these settings ({e}): see its docstring for those it takes") from e


def limits_of(station: Station, arm: Arm) -> Limits:
    return Limits.of(arm.spec, **{k: _number(v) for k, v in station.limits.items()})


def build_loop(station: Station, arm: Arm) -> Loop:
    limits = limits_of(station, arm)
    body = named(station.body)(limits) if station.body else None
    guard = Filter(limits, 1 / (station.rate_hz or arm.spec.rate_hz), body)
    watch = Watch(limits, arm.spec.joints, arm.explain)
    plan = Plan(len(arm.spec.joints), station.between, int(station.grace_ms * 1e6))
    return Loop(arm, plan, guard, watch, Ages(**station.ages), latched=lambda: pressed(station.name))


def _number(x: Any) -> Any:
    """yaml's and json's words for what has none."""
    if isinstance(x, list):
        return tuple(map(_number, x))
    return float(x) if isinstance(x, int | float) or x in ("inf", "-inf") else x


# The emergency stop: a file, so that a shell, a key or a pedal can press it.


def pressed(name: str) -> str:
    """Why it is; "" where it is not."""
    try:
        with open(pages.path_of(f"{name}.estop")) as file:
            return file.readline().strip() or "it was pressed"
    except OSError:
        return ""


def press(name: str, why: str) -> None:
    pages.path_of(f"{name}.estop").write_text(why + "\n")


def release(name: str) -> None:
    pages.remove(f"{name}.estop")


def own(station: Station) -> int:
    """Hold the arm, so that no second process does: by its port where it has one. The kernel lets go with the process."""
    where = str(station.arm.get("port") or station.name)
    slug = re.sub(r"\W+", "-", os.path.realpath(where) if station.arm.get("port") else where).strip("-")[-100:]
    fd = os.open(pages.path_of(f"{slug}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise UserError(f"the arm at {where} is driven by another process: end that one first") from None
    return fd
