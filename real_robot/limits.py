"""How far, how fast and how hot an arm may be: what a station file says of it, checked once."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from math import inf, isfinite, isnan
from typing import Any

from polyarm.real_robot.arm import ArmSpec, Row
from polyarm.spec import UserError, unknown


@dataclass(frozen=True)
class Limits:
    """Rows have a number a joint, in the joint's unit; `inf` asks for nothing. The first four bound commands, the box bounds the
    tip and `floor_m` the wrist and elbow, in the base frame; the rest is of what is measured."""

    low: Row
    high: Row
    velocity: Row
    acceleration: Row
    box_low_m: tuple[float, float, float] = (-inf, -inf, -inf)
    box_high_m: tuple[float, float, float] = (inf, inf, inf)
    floor_m: float = -inf
    apart_m: float = 0.005
    """Links that are not neighbours stay this far apart."""
    lag: Row = ()
    """The farthest that a joint may be from where it was told to be, for `lag_s`; () is all `inf`."""
    lag_s: float = 0.3
    load: Row = ()
    """The largest share of the effort, for `load_s`; () is all `inf`. A gripper that holds something always pushes: leave it `inf`."""
    load_s: float = 2.0
    hot_c: float = 60.0
    """No further than HOLD from here on."""
    too_hot_c: float = 70.0
    """FAULT from here on."""
    voltage_v: tuple[float, float] = (0.0, inf)
    voltage_s: float = 0.2

    def __post_init__(self) -> None:
        n = len(self.low)
        for name in ("high", "velocity", "acceleration", "lag", "load"):
            row = getattr(self, name)
            if len(row) != n and not (row == () and name in ("lag", "load")):
                raise UserError(f"limits.{name} has {len(row)} numbers for {n} joints: give one a joint")
            if any(isnan(x) for x in row):
                raise UserError(f"limits.{name}={list(row)}: give numbers, or .inf for no limit")
        for name in ("velocity", "acceleration", "lag", "load"):
            if any(x <= 0 for x in getattr(self, name)):
                raise UserError(f"limits.{name}={list(getattr(self, name))}: give numbers above 0")
        for i, (low, high) in enumerate(zip(self.low, self.high, strict=True)):
            if not (isfinite(low) and isfinite(high) and low < high):
                raise UserError(
                    f"the limits of joint {i} are {low:g} to {high:g}: give two finite numbers, the lower one first"
                )
        if not all(map(isfinite, (*self.velocity, *self.acceleration))):
            raise UserError("limits.velocity and limits.acceleration are not all finite: an arm always has both")
        if any(a >= b for a, b in zip(self.box_low_m, self.box_high_m, strict=True)):
            raise UserError(
                f"the workspace from {self.box_low_m} to {self.box_high_m} m is empty: give its lower corner first"
            )

    @classmethod
    def of(cls, spec: ArmSpec, **stricter: Any) -> Limits:
        """What the arm can do, but for what is given; nothing may be given that the arm cannot."""
        for name in stricter:
            if name not in (known := [f.name for f in fields(cls)]):
                raise unknown("limit", name, known)
        given: dict[str, Any] = {
            k: tuple(map(float, x)) if isinstance(x, list | tuple) else x for k, x in stricter.items()
        }
        limits = replace(cls(spec.low, spec.high, spec.velocity, spec.acceleration), **given)
        for name, widest, sign in (("low", spec.low, -1), ("high", spec.high, 1), ("velocity", spec.velocity, 1), ("acceleration", spec.acceleration, 1)):  # fmt: skip
            for joint, x, most in zip(spec.joints, getattr(limits, name), widest, strict=True):
                if sign * (x - most) > 0:
                    raise UserError(
                        f"limits.{name} of {joint} is {x:g}, {spec.model} can do {most:g}: give no more than that"
                    )
        return limits
