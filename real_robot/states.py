"""The states of an arm, who may go where, and after how long without news."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from polyarm.spec import UserError


class State(StrEnum):
    OFF = "OFF"
    """Not open."""
    LIMP = "LIMP"
    """Open, and not enabled: torque is off, unless someone left it on."""
    HOLD = "HOLD"
    """Torque on, at rest or braking; goes on by itself when there is a goal again."""
    RUN = "RUN"
    """Follows the plan of a policy."""
    TELEOP = "TELEOP"
    """A person moves it, who holds the deadman switch."""
    FAULT = "FAULT"
    """Braked and kept where it is; a person has to clear it, and to enable again."""
    ESTOP = "ESTOP"
    """As FAULT, by a person's hand; latched."""


OFF, LIMP, HOLD, RUN, TELEOP, FAULT, ESTOP = State
GOES: dict[State, frozenset[State]] = {
    OFF: frozenset({LIMP}),
    LIMP: frozenset({OFF, HOLD, FAULT, ESTOP}),
    HOLD: frozenset({OFF, LIMP, RUN, TELEOP, FAULT, ESTOP}),
    RUN: frozenset({HOLD, TELEOP, FAULT, ESTOP}),
    TELEOP: frozenset({HOLD, FAULT, ESTOP}),
    FAULT: frozenset({OFF, LIMP, HOLD, ESTOP}),
    ESTOP: frozenset({OFF, LIMP, HOLD}),
}
"""Who may go where."""
MAY: dict[str, frozenset[State]] = {
    "open": frozenset({OFF}),
    "enable": frozenset({LIMP, FAULT, ESTOP}),
    "go": frozenset({HOLD}),
    "limp": frozenset({HOLD, FAULT, ESTOP}),
    "close": frozenset({LIMP, HOLD, FAULT, ESTOP}),
}
"""In which states a person may ask for it."""
MOVES = frozenset({HOLD, RUN, TELEOP})
STOPPED = frozenset({FAULT, ESTOP})


@dataclass(frozen=True)
class Ages:
    """After how long without it: of the arm's state no further than HOLD, and FAULT; of the policy's beat, and of the person's hand."""

    stale_ns: int = 50_000_000
    lost_ns: int = 250_000_000
    beat_ns: int = 150_000_000
    hand_ns: int = 150_000_000


def require_may(act: str, state: State) -> None:
    if state not in MAY[act]:
        raise UserError(f"the arm is {state}: {act} is for {', '.join(s for s in State if s in MAY[act])}")
