"""A small arm for tests: two joints that are where they were told to be, and whatever can go wrong, when told."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import numpy as np

from polyarm.real_robot.arm import ArmSpec, ArmState, PortLost, ReadFailed, Row, Stop
from polyarm.real_robot.camera import Frame

SPEC = ArmSpec("fake", ("a", "b"), ("rad", "m"), (-1.0, 0.0), (1.0, 0.03), (2.0, 0.3), (10.0, 4.0), 100.0)


class FakeArm:
    """`faults`: what the next reads do, one a read: "late", "gone", or a function of the state. `log`: a file that gets a line of
    monotonic ns and goal for each command. It starts where the last command of the log was."""

    def __init__(self, clock: Callable[[], int] = time.monotonic_ns, log: str = "", q: Row = (0.1, 0.01)) -> None:
        self.spec, self.clock, self.q = SPEC, clock, tuple(q)
        self.goal = self.q
        self.torque = self.opened = False
        self.faults: list = []
        self.said: list = []
        self.status = (0, 0)
        self.extra: dict = {}
        self.log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600) if log else None

    def open(self) -> None:
        self.opened = True
        self.said.append("open")

    def close(self) -> None:
        self.opened = False
        self.said.append("close")

    def read(self) -> ArmState:
        state = ArmState(self.clock(), self.q, status=self.status, **self.extra)
        fault = self.faults.pop(0) if self.faults else None
        if fault == "late":
            raise ReadFailed("no reply within 6 ms")
        if fault == "gone":
            raise PortLost("the cable was pulled")
        return fault(state) if fault else state

    def enable(self) -> None:
        self.goal, self.torque = self.q, True
        self.said.append("enable")

    def command(self, q: Row) -> None:
        self.goal = tuple(q)
        self.said.append(self.goal)
        if self.torque:
            self.q = self.goal
        if self.log is not None:
            os.write(self.log, f"{time.monotonic_ns()} {' '.join(map(repr, q))}\n".encode())

    def stop(self, kind: Stop) -> None:
        self.torque = self.torque and kind is not Stop.LIMP
        self.said.append(kind)
        if self.log is not None:
            os.write(self.log, f"{time.monotonic_ns()} {kind.value}\n".encode())

    def identify(self) -> dict:
        return {"model": "fake"}

    def explain(self, status: tuple[int, ...]) -> str:
        return ", ".join(f"{name}: bits {bits:#x}" for name, bits in zip(SPEC.joints, status, strict=True) if bits)


class Still:
    """A camera whose frames come by the clock; the grey of each is its number."""

    def __init__(self, size=(24, 32), rate_hz: float = 20.0) -> None:
        self.size, self.rate_hz = tuple(size), float(rate_hz)
        self.seq = -1

    def open(self) -> None:
        self.begun = time.monotonic_ns()

    def close(self) -> None:
        pass

    def read(self, deadline_ns: int) -> Frame:
        self.seq += 1
        due = self.begun + round(self.seq * 1e9 / self.rate_hz)
        time.sleep(max(0, due - time.monotonic_ns()) / 1e9)
        return Frame(np.full((*self.size, 3), self.seq % 250, np.uint8), due, time.monotonic_ns(), self.seq)

    def identify(self) -> dict:
        return {"camera": "still"}
