"""What is known of an arm: its newest state that can be believed, and when that was."""

from __future__ import annotations

from collections import Counter

from polyarm.real_robot.arm import Arm, ArmSpec, ArmState, ReadFailed
from polyarm.spec import UserError

FASTER = 1.5
"""No joint is ever seen to move faster than this many times what is asked of it, by a hand either."""
NOISE, OUTSIDE = 0.005, 0.05
"""Shares of a joint's range: how far readings of one pose differ, and how far beyond its limits an arm may stand that is enabled."""


class Eyes:
    """`counts` gets what was not believed, by name."""

    def __init__(self, arm: Arm, counts: Counter[str]) -> None:
        self.arm, self.counts = arm, counts
        self.seen: ArmState | None = None
        self.seen_ns = 0
        spec = arm.spec
        rows = zip(spec.velocity, spec.low, spec.high, strict=True)
        self._speed = tuple(FASTER * v / 1e9 for v in spec.velocity)
        self._slack = tuple(FASTER * v / spec.rate_hz + NOISE * (high - low) for v, low, high in rows)

    def forget(self, now: int) -> None:
        self.seen, self.seen_ns = None, now

    def age_ns(self, now: int) -> int:
        return now - self.seen_ns

    def look(self, now: int) -> None:
        """Read, and believe it if a joint can have come there since: a late reply whose checksum is right is caught by that.
        Raises PortLost."""
        try:
            state = self.arm.read()
        except ReadFailed:
            self.counts["reads that failed"] += 1
            return
        if self.seen is not None and state.t_ns <= self.seen.t_ns:
            self.counts["states that came again"] += 1
        elif self.seen is not None and not self._near(state, self.seen, max(self.age_ns(now), 0)):
            self.counts["states that cannot be"] += 1
        else:
            self.seen, self.seen_ns = state, now

    def first(self, now: int, tries: int = 5) -> ArmState:
        """A reading that is believed because it agrees with the one before."""
        for _ in range(tries):
            before = self.seen
            try:
                state = self.arm.read()
            except ReadFailed:
                continue
            self.seen, self.seen_ns = state, now
            if before is not None and self._near(state, before, 0):
                return state
        raise UserError(f"{tries} reads of the arm gave no two that agree: check the cable and the power")

    def _near(self, state: ArmState, before: ArmState, since: int) -> bool:
        rows = zip(state.q, before.q, self._speed, self._slack, strict=True)
        return all(abs(a - b) <= v * since + slack for a, b, v, slack in rows)  # nan is not near


def require_inside(state: ArmState, spec: ArmSpec) -> None:
    """An arm far outside its limits is of another calibration."""
    for joint, unit, q, low, high in zip(spec.joints, spec.units, state.q, spec.low, spec.high, strict=True):
        if not low - OUTSIDE * (high - low) <= q <= high + OUTSIDE * (high - low):
            raise UserError(
                f"{joint} stands at {q:.3f} {unit}, its limits are {low:.3f} to {high:.3f}: move it there by hand, or calibrate"
            )
