"""The SO-101 on its bus: six STS3215 behind one serial port, or a twin's socket."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from polyarm.real_robot import calibration as calibrations
from polyarm.real_robot.arm import ArmState, PortLost, ReadFailed, Row, Stop
from polyarm.real_robot.calibration import Calibration, Joint, Number
from polyarm.real_robot.so101 import SPEC
from polyarm.real_robot.sts import Bus
from polyarm.real_robot.sts_table import MODEL_NUMBER, TICKS, described, part
from polyarm.real_robot.wire import open_wire
from polyarm.spec import UserError

FIRMWARE = 3
"""The major number that the register table is of."""
TRIES = 3
"""Reads after which HOLD leaves the last goal."""
OUTSIDE_TICKS = 20
"""How far beyond its range a limp joint may hang and still be enabled, which draws it to the end."""


class So101:
    """`port`: a serial port or a twin's socket. `calibration`: the arm's own, or the file of it.

    A goal alone switches an STS3215's torque on, so a goal is sent only after `enable` and until `stop(LIMP)`; before and after,
    `command` does nothing. `clock`: of `ArmState.t_ns`, for a twin in lock-step.
    """

    spec = SPEC

    def __init__(
        self,
        port: str,
        calibration: Calibration | Path | str,
        slack_ms: Number = 5,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.port, self.clock = str(port), clock
        self.calibration = calibration if isinstance(calibration, Calibration) else calibrations.load(calibration)
        self.calibration.require(SPEC)
        self.joints = tuple(self.calibration.joints.values())
        self.slack_s = slack_ms / 1000
        self._bus: Bus | None = None
        self._on = False
        self._firmware: tuple[str, ...] = ()
        self._ends = [_inwards(j, low, high) for j, low, high in zip(self.joints, SPEC.low, SPEC.high, strict=True)]

    @property
    def bus(self) -> Bus:
        if self._bus is None:
            raise PortLost(f"{self.port} is not open")
        return self._bus

    def open(self) -> None:
        if self._bus is None:
            self._start(self._same)

    def _start(self, judge: Callable[[list[dict[str, int]]], None]) -> None:
        """`judge` is given what each motor keeps."""
        self._bus = Bus(open_wire(self.port), [joint.id for joint in self.joints], self.slack_s)
        try:
            self._find()
            kept = [self.bus.kept(joint.id) for joint in self.joints]
            self._firmware = tuple(f"{k['firmware_major']}.{k['firmware_minor']}" for k in kept)
            for name, joint, k, volts in zip(SPEC.joints, self.joints, kept, self._read_all("voltage"), strict=True):
                _check(f"motor {joint.id} ({name})", k, volts / 10)
            judge(kept)
            self._on = all(self._read_all("torque"))
        except ReadFailed as error:
            self.close()
            raise UserError(
                f"{self.port}: {error} while it was asked who it is: check the arm's cables, then its supply"
            ) from None
        except PortLost as error:
            self.close()
            raise UserError(f"{error.args[-1]}: check the cable, and that no other process has it") from None
        except UserError:
            self.close()
            raise

    def close(self) -> None:
        if self._bus is not None:
            self._bus.wire.close()
        self._bus = None
        self._on = False

    def read(self) -> ArmState:
        sent_ns = self.clock()
        found = self.bus.read_block()
        t_ns = (sent_ns + self.clock()) // 2
        blocks = [block for _, block in found]
        each = list(zip(self.joints, blocks, strict=True))
        return ArmState(
            t_ns,
            tuple(j.angle(part(b, "position")) for j, b in each),
            tuple(part(b, "speed") * j.sign / j.scale for j, b in each),
            tuple(part(b, "load") * j.sign / 1000 for j, b in each),
            tuple(float(part(b, "temperature")) for b in blocks),
            tuple(part(b, "voltage") / 10 for b in blocks),
            tuple(error | part(b, "status") for error, b in found),
        )

    def enable(self) -> None:
        """Also takes back what bounds another program left on speed and acceleration: the plan and the filter set those. An arm
        that was limp is limp again if it fails."""
        here = self._read_all("position")
        goals = [_goal_at(*each) for each in zip(SPEC.joints, self.joints, here, strict=True)]
        try:
            self._seize(goals)
        except (ReadFailed, UserError):
            if not self._on:
                self.bus.write_torque(False)
            raise
        self._on = True

    def _seize(self, goals: list[int]) -> None:
        for joint, goal in zip(self.joints, goals, strict=True):
            for name in ("acceleration", "goal_time", "goal_speed"):
                self.bus.write(joint.id, name, 0)
            self.bus.write(joint.id, "goal", goal)
        if (said := self._read_all("goal")) != goals:
            raise UserError(f"{self.port}: motors took goals {said} for {goals}: switch the arm off and on again")
        for joint in self.joints:
            self.bus.write(joint.id, "torque", 1)

    def command(self, q: Row) -> None:
        if self._on:
            self.bus.write_goals(self._ticks(q))

    def stop(self, kind: Stop) -> None:
        """HOLD on a bus that does not answer leaves the last goal, which the motors hold by themselves. LIMP raises ReadFailed
        where a motor does not confirm it, after all were told."""
        if kind is Stop.LIMP:
            self._limp()
        elif self._on:
            for _ in range(TRIES):
                try:
                    self.bus.write_goals(self._ticks(self.read().q))
                    return
                except ReadFailed:
                    continue

    def _limp(self) -> None:
        self._on = False
        self.bus.write_torque(False)  # at once, and to those whose replies are lost
        silent = []
        for name, joint in zip(SPEC.joints, self.joints, strict=True):
            try:
                self.bus.write(joint.id, "torque", 0)
            except ReadFailed:
                silent.append(name)
        if silent:
            raise ReadFailed(f"{', '.join(silent)} did not confirm that torque is off")

    def identify(self) -> dict[str, Any]:
        return {
            "model": SPEC.model,
            "driver": "sts",
            "port": self.port,
            "motors": {name: joint.id for name, joint in self.calibration.joints.items()},
            "firmware": list(self._firmware),
            "calibration": self.calibration.hash,
        }

    def explain(self, status: tuple[int, ...]) -> str:
        return "; ".join(f"{name}: {described(bits)}" for name, bits in zip(SPEC.joints, status, strict=True) if bits)

    def install(self) -> None:
        """Write ranges and homings of the calibration into the motors, whatever they hold, for good. Takes their torque off and
        closes the arm."""
        self.close()
        self._start(lambda kept: None)
        try:
            self._limp()
            for joint in self.joints:
                self.bus.write(joint.id, "lock", 0)
                for name, value in (("homing", joint.homing), ("low", joint.range[0]), ("high", joint.range[1])):
                    self.bus.write(joint.id, name, value)
                self.bus.write(joint.id, "lock", 1)
        finally:
            self.close()

    def _ticks(self, q: Row) -> list[int]:
        return [
            min(max(round(j.ticks(x)), low), high) for j, x, (low, high) in zip(self.joints, q, self._ends, strict=True)
        ]

    def _read_all(self, name: str) -> list[int]:
        return [self.bus.read(joint.id, name) for joint in self.joints]

    def _find(self) -> None:
        """Every motor answers."""
        here = {name: self.bus.ping(joint.id) for name, joint in self.calibration.joints.items()}
        if not any(here.values()):
            raise UserError(
                f"no motor answers on {self.port}: switch the arm's supply on, check its cable, and that this is the arm's port"
            )
        if missing := [f"{self.calibration.joints[name].id} ({name})" for name, answers in here.items() if not answers]:
            raise UserError(
                f"motor {', '.join(missing)} does not answer on {self.port} and others do: check the cable that leads to it, "
                "and that it has this id"
            )

    def _same(self, kept: list[dict[str, int]]) -> None:
        """Firmware is one, and the motors carry what the calibration says of them."""
        if len(set(self._firmware)) > 1:
            listed = ", ".join(f"{name} {x}" for name, x in zip(SPEC.joints, self._firmware, strict=True))
            raise UserError(f"motors differ in firmware ({listed}): bring all to one with Feetech's FD program")
        has = [(k["homing"], (k["low"], k["high"])) for k in kept]
        want = [(joint.homing, joint.range) for joint in self.joints]
        wrong = [i for i, (a, b) in enumerate(zip(has, want, strict=True)) if a != b]
        if not wrong:
            return
        i = wrong[0]
        name, (homing, limits) = SPEC.joints[i], has[i]
        other = next((k for k in wrong if has[i] == want[k]), None)
        if other is not None:
            raise UserError(
                f"motor {self.joints[i].id} ({name}) carries the calibration of {SPEC.joints[other]}: their ids are swapped; give "
                "each motor its own id back"
            )
        raise UserError(
            f"motor {self.joints[i].id} ({name}) carries range {list(limits)} and homing {homing}, the calibration says "
            f"{list(want[i][1])} and {want[i][0]}: give this arm's own file, or make one with `polyarm calibrate`"
        )


def _check(who: str, kept: dict[str, int], volts: float) -> None:
    """A motor is of the kind that is driven here, and has power."""
    if (model := kept["model"]) != MODEL_NUMBER:
        raise UserError(
            f"{who} is of model {model}, an SO-101 has STS3215 ({MODEL_NUMBER}): give the port of an SO-101"
        )
    if kept["firmware_major"] != FIRMWARE:
        raise UserError(
            f"{who} has firmware {kept['firmware_major']}.{kept['firmware_minor']}, {FIRMWARE}.x is expected: bring it up to date with "
            "Feetech's FD program"
        )
    if (mode := kept["mode"]) != 0:
        raise UserError(f"{who} is in mode {mode}, not 0 (position): set its register 33 to 0")
    if volts < (least := kept["min_voltage"] / 10):
        raise UserError(
            f"{who} has {volts:g} V, it needs {least:g}: switch the arm's supply on or give it a stronger one"
        )


def _goal_at(name: str, joint: Joint, here: int) -> int:
    low, high = joint.range
    if not low - OUTSIDE_TICKS <= here <= high + OUTSIDE_TICKS:
        raise UserError(
            f"{name} stands at {joint.angle(here):.3f} {joint.unit}, outside {joint.angle(low):.3f} to "
            f"{joint.angle(high):.3f}: move it inside by hand, then enable"
        )
    return min(max(here, low), high)


def _inwards(joint: Joint, low: float, high: float) -> tuple[int, int]:
    """The outermost whole ticks within the joint's limits and its motor's range, so that no rounding leaves either."""
    ends = sorted((joint.ticks(low), joint.ticks(high)))
    first, last = max(math.ceil(ends[0]), joint.range[0]), min(math.floor(ends[1]), joint.range[1])
    if first > last:
        raise UserError(
            f"range {list(joint.range)} of motor {joint.id} lies outside the joint's limits ({ends[0]:.0f} to {ends[1]:.0f} of {TICKS} "
            "ticks): calibrate again"
        )
    return first, last
