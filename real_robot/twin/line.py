"""The bus as its motors hear it: requests in, replies out, and what can go wrong on the way."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from polyarm.real_robot.sts import (
    ACTION,
    ALL,
    HEAD,
    PING,
    READ,
    REG_WRITE,
    SYNC_READ,
    SYNC_WRITE,
    WRITE,
    checksum,
    packet,
)
from polyarm.real_robot.sts_table import REGISTERS
from polyarm.real_robot.twin.servo import Servo

LONGEST = 250
"""Of a packet: TXPACKET_MAX_LEN of scservo_sdk."""


@dataclass
class Trouble:
    """Shares of reply packets (`drop`, `corrupt`) or of whole answers (`late`) that suffer, by chance, and how many of the next
    ones do for certain. `mute`: nothing is answered, nor heard."""

    drop: float = 0.0
    corrupt: float = 0.0
    late: float = 0.0
    drop_next: int = 0
    corrupt_next: int = 0
    late_next: int = 0
    late_ms: float = 80.0
    mute: bool = False

    def strikes(self, what: str, rng: random.Random) -> bool:
        if (left := getattr(self, f"{what}_next")) > 0:
            setattr(self, f"{what}_next", left - 1)
            return True
        share = getattr(self, what)
        return share > 0 and rng.random() < share


@dataclass
class Written:
    """Evidence: what a host asked of a motor, before any limit of the motor's."""

    t_ns: int
    motor: int
    what: str
    value: int


@dataclass
class Line:
    servos: Sequence[Servo]
    rng: random.Random
    before_read: Callable[[], None]
    """Brings the registers up to now."""
    trouble: Trouble = field(default_factory=Trouble)
    log: list[Written] = field(default_factory=list)
    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("requests", "damaged", "unknown", "dropped", "corrupted", "late"), 0)
    )
    _heard: bytearray = field(default_factory=bytearray)

    def hear(self, data: bytes) -> list[tuple[float, bytes]]:
        """(seconds that it is late, bytes) of what the motors answer to the requests that are complete now."""
        self._heard += data
        answers = []
        while (request := self._next()) is not None:
            if self.trouble.mute:
                continue
            self.counts["requests"] += 1
            if said := b"".join(self._answer(*request)):
                late = self.trouble.strikes("late", self.rng)
                self.counts["late"] += late
                answers.append((self.trouble.late_ms / 1000 if late else 0.0, said))
        return answers

    def forget(self) -> None:
        self._heard.clear()

    def _next(self) -> tuple[int, int, bytes] | None:
        """The next whole request, as (motor, instruction, parameters)."""
        heard = self._heard
        while True:
            start = heard.find(HEAD)
            if start < 0:
                del heard[: max(0, len(heard) - 1)]
                return None
            del heard[:start]
            if len(heard) < 4:
                return None
            motor, length = heard[2], heard[3]
            if motor == 0xFF or not 2 <= length <= LONGEST - 4:
                del heard[:1]
                continue
            if len(heard) < length + 4:
                return None
            if checksum(bytes(heard[2 : length + 3])) != heard[length + 3]:
                self.counts["damaged"] += 1
                del heard[:2]
                continue
            request = motor, heard[4], bytes(heard[5 : length + 3])
            del heard[: length + 4]
            return request

    def _answer(self, motor: int, word: int, p: bytes) -> list[bytes]:
        """Broadcasts are not answered, but for the ping (protocol manual 1.1 and lerobot's `_broadcast_ping`)."""
        servos = [s for s in self.servos if s.present and motor in (ALL, s.get("id"))]
        if word == PING:
            return [self._reply(s) for s in servos]
        if word == READ and motor != ALL and len(p) == 2:
            return self._reads(servos, p)
        if word == WRITE and len(p) >= 2:
            return [self._reply(s) for s in servos if self._write(s, p[0], p[1:]) and motor != ALL]
        if word == REG_WRITE and len(p) >= 2:
            for s in servos:
                s.deferred = p[0], p[1:]
                s.set("async_write", 1)
            return [self._reply(s) for s in servos if s.get("response_level") and motor != ALL]
        if word == ACTION:
            self._act(servos)
            return []
        if word == SYNC_READ and len(p) > 2:
            asked = [s for i in p[2:] for s in self.servos if s.present and s.get("id") == i]
            return self._reads(asked, p[:2])
        if word == SYNC_WRITE and len(p) > 2:
            self._sync_write(p)
            return []
        self.counts["unknown"] += 1  # assumed: a motor is silent about what it does not understand
        return []

    def _reads(self, servos: Sequence[Servo], p: bytes) -> list[bytes]:
        self.before_read()
        return [self._reply(s, data) for s in servos if (data := s.read(p[0], p[1])) is not None]

    def _write(self, servo: Servo, address: int, data: bytes) -> bool:
        """Whether the motor answers a write."""
        self.before_read()
        answers = bool(servo.get("response_level"))
        for name in ("goal", "torque"):
            register = REGISTERS[name]
            if address <= register.address and register.address + register.size <= address + len(data):
                at = register.address - address
                value = register.decode(data[at : at + register.size])
                self.log.append(Written(time.monotonic_ns(), servo.get("id"), name, value))
        servo.write(address, data)
        return answers

    def _act(self, servos: Sequence[Servo]) -> None:
        for s in servos:
            if s.deferred is not None:
                self._write(s, *s.deferred)
                s.deferred = None
                s.set("async_write", 0)

    def _sync_write(self, p: bytes) -> None:
        address, size = p[0], p[1]
        for k in range(2, len(p) - size, size + 1):
            for s in self.servos:
                if s.present and s.get("id") == p[k]:
                    self._write(s, address, p[k + 1 : k + 1 + size])

    def _reply(self, servo: Servo, parameters: bytes = b"") -> bytes:
        said = bytearray(packet(servo.get("id"), servo.status, parameters))
        if self.trouble.strikes("drop", self.rng):
            self.counts["dropped"] += 1
            return b""
        if self.trouble.strikes("corrupt", self.rng):
            self.counts["corrupted"] += 1
            said[-1 - self.rng.randrange(len(parameters) + 1)] ^= 1 << self.rng.randrange(8)
        return bytes(said)
