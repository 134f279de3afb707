"""Whether all of a station is there and well, before a motor moves: one row a thing, each with what to do about it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

from polyarm.real_robot.arm import Arm, ReadFailed
from polyarm.real_robot.feetech import So101
from polyarm.real_robot.limits import Limits
from polyarm.real_robot.robot import Robot, standing
from polyarm.real_robot.station import build_arm, limits_of, own
from polyarm.real_robot.sts import Bus
from polyarm.real_robot.sts_table import MODEL_NUMBER
from polyarm.real_robot.wire import open_wire
from polyarm.spec import UserError

Row = tuple[str, bool, str, str]
"""What, whether it is well, what was found, what to do."""
PRIORITY = "from polyarm.real_robot.realtime import prioritise; print(prioritise(60))"
SLOW = 0.8
"""The share of a camera's rate that is enough."""


def preflight(robot: Robot) -> Iterator[Row]:
    """Opens everything and closes it again; no torque is switched."""
    with standing(robot) as there:
        try:
            arm = build_arm(there.station())
            limits = limits_of(there.station(), arm)
        except UserError as error:
            yield _bad("station", error)
        else:
            yield "station", True, f"{robot.name}: {arm.spec.model}, {robot.rate_hz:g} Hz", ""
            yield from _arm(there, arm, limits)
        yield _priority()
        for name in robot.cameras:
            yield _tried(f"camera {name}", lambda name=name: _camera(robot, name))  # type: ignore[misc]


def _arm(robot: Robot, arm: Arm, limits: Limits) -> Iterator[Row]:
    row = _tried("owner", lambda: _free(robot))
    yield row
    if not row[1]:
        return
    if isinstance(arm, So101):
        try:
            yield from _motors(arm)
        except (UserError, ReadFailed, OSError) as error:
            yield _bad("port", error)
            return
    try:
        arm.open()
    except UserError as error:
        yield _bad("arm", error)
        return
    with closing(arm):
        yield "arm", True, ", ".join(f"{k} {v}" for k, v in arm.identify().items() if isinstance(v, str)), ""
        yield from _state(arm, limits)


def _motors(arm: So101) -> Iterator[Row]:
    """What can be asked of the bus before the arm is known to be whole."""
    wire = open_wire(arm.port)
    try:
        yield "port", True, arm.port, ""
        motors = arm.calibration.joints.items()
        bus = Bus(wire, [joint.id for _, joint in motors], arm.slack_s)
        here = {name: joint.id for name, joint in motors if bus.ping(joint.id)}
        gone = [f"{joint.id} ({name})" for name, joint in motors if name not in here]
        found = f"{len(here)} of {len(motors)} answer" + (f"; {', '.join(gone)} does not" if gone else "")
        yield (
            "motors",
            not gone,
            found,
            "switch the supply on, check the cables in their order, and that each motor has its id",
        )
        kept = {name: bus.kept(motor) for name, motor in here.items()}
        versions = {name: f"{k['firmware_major']}.{k['firmware_minor']}" for name, k in kept.items()}
        models = {k["model"] for k in kept.values()}
        found = ", ".join(sorted(set(versions.values()))) + (
            "" if models <= {MODEL_NUMBER} else f"; models {sorted(models)}"
        )
        yield "firmware", len(set(versions.values())) == 1 and models == {MODEL_NUMBER}, found, "bring all motors to one with Feetech's FD program"  # fmt: skip
        volts = {name: bus.read(motor, "voltage") / 10 for name, motor in here.items()}
        low = [name for name, v in volts.items() if v < kept[name]["min_voltage"] / 10]
        if volts:
            found = f"{min(volts.values()):g} to {max(volts.values()):g} V" + (
                f"; too low at {', '.join(low)}" if low else ""
            )
            yield "supply", not low, found, "switch the arm's supply on, or give it a stronger one"
    finally:
        wire.close()


def _state(arm: Arm, limits: Limits) -> Iterator[Row]:
    try:
        state = arm.read()
    except ReadFailed as error:
        yield _bad("reading", error)
        return
    hot = max(state.temperature_c, default=0.0)
    yield "temperature", hot < limits.hot_c, f"{hot:g} °C", f"let it cool below {limits.hot_c:g} °C"
    yield (
        "faults",
        not any(state.status),
        arm.explain(state.status) or "none",
        "see to it, then switch the arm off and on",
    )
    low, high = arm.spec.low, arm.spec.high
    out = [name for name, q, a, b in zip(arm.spec.joints, state.q, low, high, strict=True) if not a - 0.05 * (b - a) <= q <= b + 0.05 * (b - a)]  # fmt: skip
    yield "pose", not out, f"outside its limits: {', '.join(out)}" if out else "within its limits", "move it inside by hand, or calibrate again"  # fmt: skip


def _free(robot: Robot) -> str:
    os.close(own(robot.station()))
    return "no other process"


def _priority() -> Row:
    """Of a process like the arm's: this one stays as it is."""
    said = subprocess.run([sys.executable, "-c", PRIORITY], capture_output=True, text=True, check=False).stdout.strip()
    found, _, remedy = said.partition(": ")
    return "priority", said.startswith("real-time"), found, remedy


def _camera(robot: Robot, name: str) -> str:
    eye = robot.eyes()[name]
    with closing(eye):
        eye.open()
        end, n = time.monotonic() + 1.0, 0
        while time.monotonic() < end:
            try:
                eye.read(time.monotonic_ns() + 200_000_000)
                n += 1
            except ReadFailed:
                continue
    if n < SLOW * eye.rate_hz:
        raise UserError(
            f"{n} frames in a second of {eye.rate_hz:g}: give it more light, another cable, or a lower rate_hz"
        )
    return f"{eye.size[1]} x {eye.size[0]}, {n} frames a second"


def _tried(name: str, check: Callable[[], str]) -> Row:
    try:
        return name, True, check(), ""
    except (UserError, ReadFailed, OSError) as error:
        return _bad(name, error)


def _bad(name: str, error: Exception) -> Row:
    """A sentence that ends with its remedy, in its two parts."""
    found, _, remedy = str(error).rpartition(": ")
    return name, False, found or remedy, remedy if found else ""


def table_of(rows: Iterator[Row]) -> dict[str, Any]:
    return {name: {"ok": ok, "found": found, "remedy": "" if ok else remedy} for name, ok, found, remedy in rows}
