"""An arm as the rest of polyarm speaks to one: what it is, what it says, and what can be asked of it.

A driver holds one vendor's client or bus, blocks, is used from one thread and decides nothing: limits, plans and states are
`safety` and `loop`. Numbers are plain floats, six of them are too few for numpy: rad and m by joint as `units` says, rad/s, rad/s^2,
Nm, degC, V; time is `time.monotonic_ns()`, which all processes of a machine share.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol, runtime_checkable

Row = tuple[float, ...]
"""A number a joint, in the order of `ArmSpec.joints`."""


class Stop(Enum):
    HOLD = "hold"
    """Stay where the arm is, torque on."""
    LIMP = "limp"
    """Torque off: an arm without brakes falls."""


class ReadFailed(RuntimeError):
    """This read gave no state that can be believed (late, damaged, a joint silent); the next may."""


class PortLost(OSError):
    """The way to the arm is gone; nothing more will come of it without `open`."""


@dataclass(frozen=True)
class ArmSpec:
    """What an arm can do. `velocity` and `acceleration`: the largest that it is asked for."""

    model: str
    joints: tuple[str, ...]
    units: tuple[str, ...]
    low: Row
    high: Row
    velocity: Row
    acceleration: Row
    rate_hz: float
    """Ticks a second: reads and commands."""
    watchdog: bool = False
    """Whether the arm stops by itself when nothing is said to it."""


@dataclass(frozen=True, slots=True)
class ArmState:
    """What one read said; `t_ns` is the middle of the exchange. NaN or an empty row: the arm does not say."""

    t_ns: int
    q: Row
    dq: Row = ()
    load: Row = ()
    """Share of the largest effort, signed."""
    temperature_c: Row = ()
    voltage_v: Row = ()
    status: tuple[int, ...] = ()
    """Fault bits a joint, as the motor says them; 0 is well."""


@runtime_checkable
class Arm(Protocol):
    """What every driver keeps; held by the conformance suite."""

    spec: ArmSpec

    def open(self) -> None:
        """Find every motor and check that it is the one expected. Moves nothing. Raises UserError with the remedy."""
        ...

    def close(self) -> None:
        """Torque stays as it is. Never raises; twice is once."""
        ...

    def read(self) -> ArmState:
        """Raises ReadFailed or PortLost, within a few ms of the wire's time."""
        ...

    def enable(self) -> None:
        """Torque on without moving: the goal is first set to what is measured, and read back."""
        ...

    def command(self, q: Row) -> None:
        """The goal of now, within the limits already. Raises PortLost."""
        ...

    def stop(self, kind: Stop) -> None: ...

    def identify(self) -> dict[str, Any]:
        """Model, firmware, ids, calibration: what a recording keeps and a deployment compares."""
        ...

    def explain(self, status: tuple[int, ...]) -> str:
        """Which joint says what, for a person: "elbow_flex: overheated"."""
        ...
