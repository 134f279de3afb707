"""A twin of the SO-101: six emulated motors on the simulator's arm, and everything that can be done to them.

What it does not emulate: bounds on speed and acceleration that a host writes (goals are reached as the model's motors reach
them), modes other than position, more than one turn, another baud rate.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import asdict, fields
from math import isfinite
from typing import Any

from polyarm.real_robot.arm import Row
from polyarm.real_robot.calibration import Calibration, Number, so101
from polyarm.real_robot.plant import Plant
from polyarm.real_robot.sts_table import FAULTS, MODEL_NUMBER, REGISTERS
from polyarm.real_robot.twin.line import Line, Trouble
from polyarm.real_robot.twin.servo import Servo
from polyarm.spec import UserError, unknown

BEHIND_NS = 200_000_000
"""A twin further behind the clock lets the rest of the time go, and counts it."""
SUPPLY_V = 12.1


class Twin:
    """`calibration`: how the motors are mounted, and what stands in their EEPROM. `lockstep`: time passes by `advance` only."""

    def __init__(
        self, calibration: Calibration | None = None, plant: Plant | None = None, lockstep: bool = False, seed: int = 0
    ) -> None:
        self.mounted = tuple((so101() if calibration is None else calibration).joints.values())
        self.plant = Plant() if plant is None else plant
        self.lockstep = lockstep
        self.servos = [Servo(joint.id, joint.homing, *joint.range) for joint in self.mounted]
        self.line = Line(self.servos, random.Random(seed), self.follow)
        self.volts, self.frozen, self.lost_ns = SUPPLY_V, False, 0
        self._at_ns = time.monotonic_ns()
        self._feel(0)

    def follow(self) -> None:
        """Up to now by the clock, in whole steps of the physics."""
        if self.lockstep:
            return
        late = time.monotonic_ns() - self._at_ns
        if late > BEHIND_NS:
            self.lost_ns += late - BEHIND_NS
            self._at_ns += late - BEHIND_NS
            late = BEHIND_NS
        if late >= self.plant.step_ns:
            dt_ns = late - late % self.plant.step_ns
            self._at_ns += dt_ns
            self.advance(dt_ns)

    def advance(self, dt_ns: int) -> None:
        power = tuple(servo.power for servo in self.servos)
        if power != self.plant.share:
            self.plant.power(power)
        self.plant.goal(self._angles([servo.goal for servo in self.servos]))
        self.plant.advance(dt_ns)
        self._feel(dt_ns)

    def _angles(self, encoders: list[int]) -> Row:
        return tuple(j.angle(ticks - j.homing) for j, ticks in zip(self.mounted, encoders, strict=True))

    def _feel(self, dt_ns: int) -> None:
        if self.frozen:
            return
        p = self.plant
        seen = zip(self.servos, self.mounted, p.q, p.dq, p.load, p.temperature_c, strict=True)
        for servo, joint, q, dq, load, temperature in seen:
            encoder, speed = round(joint.ticks(q)) + joint.homing, round(joint.sign * joint.scale * dq)
            servo.feel(encoder, speed, joint.sign * load, temperature, self.volts, dt_ns / 1e9)

    # what is asked of a twin beside its bus; each answers with plain data

    def do(self, name: str, given: dict[str, Any]) -> dict[str, Any]:
        if name not in DEEDS:
            raise unknown("deed of a twin", name, DEEDS)
        try:
            return DEEDS[name](self, **given) or {}
        except UserError:
            raise
        except (TypeError, ValueError, OverflowError) as error:
            raise UserError(f"{name}: {error}; see `polyarm twin --help`") from None

    def reset(self, seed: int = 0) -> dict[str, Any]:
        """Lay the scene out anew; motors cool, healthy and without torque, the arm held at home until it has some."""
        self.plant.reset(seed)
        self.volts, self.frozen = SUPPLY_V, False
        for servo in self.servos:
            servo.forced, servo.present = 0, True
            servo.start()
        self._at_ns = time.monotonic_ns()
        self._feel(0)
        return self.truth()

    def truth(self) -> dict[str, Any]:
        self.follow()
        goals = self._angles([servo.goal for servo in self.servos])
        torque = [servo.power for servo in self.servos]
        return self.plant.truth() | {"goal": list(goals), "torque": torque, "t_ns": time.monotonic_ns()}

    def pose(self, q: list[Number]) -> dict[str, Any]:
        """A hand moves the limp arm there, and holds it."""
        if any(servo.power for servo in self.servos):
            raise UserError("a hand cannot move an arm that has torque: take it off first")
        if len(q) != len(self.servos) or not all(isfinite(x) for x in q):
            raise UserError(f"pose of {q}: give {len(self.servos)} finite numbers, one a joint")
        self.plant.pose(tuple(map(float, q)))
        self._feel(0)
        return self.truth()

    def trouble(self, **what: Any) -> None:
        for name, value in what.items():
            if name not in (known := [f.name for f in fields(Trouble)]):
                raise unknown("trouble of a line", name, known)
            setattr(self.line.trouble, name, value)

    def heat(self, motor: int, celsius: Number = 75) -> None:
        self.plant.temperature_c[self._index(motor)] = celsius
        self._feel(0)

    def force(self, motor: int, bits: int) -> None:
        """Status bits that a motor says whatever it feels: 1 voltage, 2 sensor, 4 heat, 8 current, 32 overload."""
        if bits & ~sum(FAULTS):
            raise UserError(f"status bits {bits}: known are {', '.join(f'{b} {what}' for b, what in FAULTS.items())}")
        self._servo(motor).forced = bits
        self._feel(0)

    def supply(self, volts: Number = SUPPLY_V) -> None:
        """0: off; motors are silent, lose what is not kept, and the arm is limp."""
        off_before, self.volts = self.volts <= 0, volts
        for servo in self.servos:
            servo.present = volts > 0
            if volts <= 0:
                servo.set("torque", 0)
            elif off_before:
                servo.start()
        self._feel(0)

    def freeze(self, on: bool = True) -> None:
        """Motors answer with what they last measured, for ever."""
        self.frozen = on

    def swap(self, motor: int, other: int) -> None:
        a, b = self._servo(motor), self._servo(other)
        a.set("id", other)
        b.set("id", motor)

    def remove(self, motor: int) -> None:
        """Its cable is off."""
        self._servo(motor).present = False

    def become(self, motor: int, model: int = MODEL_NUMBER, firmware: str = "3.6") -> None:
        servo = self._servo(motor)
        major, minor = firmware.split(".")
        for memory in (servo.memory, servo.kept):
            memory[0:2] = bytes([int(major), int(minor)])
            memory[3:5] = model.to_bytes(2, "little")

    def registers(self, motor: int) -> dict[str, Any]:
        return {name: self._servo(motor).get(name) for name in REGISTERS}

    def write(self, motor: int, register: str, value: int) -> None:
        """As another program once did over the bus, read-only ones too."""
        if register not in REGISTERS:
            raise unknown("register", register, REGISTERS)
        self._servo(motor).set(register, value)

    def log(self, clear: bool = True) -> dict[str, Any]:
        """What hosts wrote to goals and torques, with the clock."""
        found = [[w.t_ns, w.motor, w.what, w.value] for w in self.line.log]
        if clear:
            self.line.log.clear()
        return {"written": found}

    def counts(self) -> dict[str, Any]:
        return dict(self.line.counts) | {"lost_s": self.lost_ns / 1e9, "trouble": asdict(self.line.trouble)}

    def _servo(self, motor: int) -> Servo:
        return self.servos[self._index(motor)]

    def _index(self, motor: int) -> int:
        ids = [servo.get("id") for servo in self.servos]
        if motor not in ids:
            raise UserError(f"there is no motor {motor}: give one of {', '.join(map(str, ids))}")
        return ids.index(motor)


DEEDS: dict[str, Callable[..., dict[str, Any] | None]] = {
    name: getattr(Twin, name)
    for name in (
        "reset", "truth", "pose", "trouble", "heat", "force", "supply", "freeze", "swap", "remove", "become",
        "registers", "write", "log", "counts",
    )
}  # fmt: skip
