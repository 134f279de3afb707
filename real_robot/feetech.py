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
        if self._bus is not None:
            return
        self._bus = Bus(open_wire(self.port), [joint.id for joint in self.joints], self.slack_s)
        try:
            self._find()
            self._firmware = tuple(self._check(name, joint) for name, joint in self.calibration.joints.items())
            self._same()
            self._on = all(self._read_all("torque"))
        except ReadFailed as error:
            self.close()
            raise UserError(f"{self.port}: {error}, though it did: check the arm's cables, then its supply") from None
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
        """Also takes back what bounds another program left on speed and acceleration: the plan and the filter set those."""
        goals = []
        for (name, joint), here in zip(self.calibration.joints.items(), self._read_all("position"), strict=True):
            low, high = joint.range
            if not low - OUTSIDE_TICKS <= here <= high + OUTSIDE_TICKS:
                raise UserError(
                    f"{name} stands at {joint.angle(here):.3f} {joint.unit}, outside {joint.angle(low):.3f} to "
                    f"{joint.angle(high):.3f}: move it inside by hand, then enable"
                )
            goals.append(min(max(here, low), high))
        for joint in self.joints:
            for name in ("acceleration", "goal_time", "goal_speed"):
                self.bus.write(joint.id, name, 0)
        for joint, goal in zip(self.joints, goals, strict=True):
            self.bus.write(joint.id, "goal", goal)
        if (said := self._read_all("goal")) != goals:
            self.stop(Stop.LIMP)
            raise UserError(f"{self.port}: motors took goals {said} for {goals}: switch the arm off and on again")
        for joint in self.joints:
            self.bus.write(joint.id, "torque", 1)
        self._on = True

    def command(self, q: Row) -> None:
        if self._on:
            self.bus.write_goals(self._ticks(q))

    def stop(self, kind: Stop) -> None:
        """HOLD on a bus that does not answer leaves the last goal, which the motors hold by themselves."""
        if kind is Stop.LIMP:
            self._on = False
            self.bus.write_torque(False)  # at once, and to those whose replies are lost
            for joint in self.joints:
                self.bus.write(joint.id, "torque", 0)
        elif self._on:
            self.bus.write_goals(self._ticks(self.read().q))

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
        """Write ranges and homings of the calibration into the motors, for good. Takes their torque off."""
        self.stop(Stop.LIMP)
        for joint in self.joints:
            self.bus.write(joint.id, "lock", 0)
            for name, value in (("homing", joint.homing), ("low", joint.range[0]), ("high", joint.range[1])):
                self.bus.write(joint.id, name, value)
            self.bus.write(joint.id, "lock", 1)

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

    def _check(self, name: str, joint: Joint) -> str:
        """One motor is of the kind that is driven here and has power; its firmware."""
        read = lambda register: self.bus.read(joint.id, register)
        who = f"motor {joint.id} ({name})"
        if (model := read("model")) != MODEL_NUMBER:
            raise UserError(
                f"{who} is of model {model}, an SO-101 has STS3215 ({MODEL_NUMBER}): give the port of an SO-101"
            )
        major, minor = read("firmware_major"), read("firmware_minor")
        if major != FIRMWARE:
            raise UserError(
                f"{who} has firmware {major}.{minor}, {FIRMWARE}.x is expected: bring it up to date with Feetech's FD program"
            )
        if (mode := read("mode")) != 0:
            raise UserError(f"{who} is in mode {mode}, not 0 (position): set its register 33 to 0")
        if (volts := read("voltage")) < (least := read("min_voltage")):
            raise UserError(
                f"{who} has {volts / 10:g} V, it needs {least / 10:g}: switch the arm's supply on or give it a stronger one"
            )
        return f"{major}.{minor}"

    def _same(self) -> None:
        """Firmware is one, and the motors carry what the calibration says of them."""
        if len(set(self._firmware)) > 1:
            listed = ", ".join(f"{name} {x}" for name, x in zip(SPEC.joints, self._firmware, strict=True))
            raise UserError(f"motors differ in firmware ({listed}): bring all to one with Feetech's FD program")
        has = [
            (r("homing"), (r("low"), r("high")))
            for j in self.joints
            for r in [lambda name, j=j: self.bus.read(j.id, name)]
        ]
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
