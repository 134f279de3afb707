"""Finding out how the motors of one arm stand: it is limp, a person puts it where he is asked to, and its encoders are read.

Nothing is moved and nothing is written to a motor but that its torque is off. What comes of it is a file; `So101.install` writes
it into the motors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from polyarm.real_robot.arm import PortLost, ReadFailed
from polyarm.real_robot.calibration import Calibration, Joint
from polyarm.real_robot.so101 import GRIPPER, SPEC
from polyarm.real_robot.sts import Bus
from polyarm.real_robot.sts_table import MODEL_NUMBER, TICKS
from polyarm.real_robot.wire import open_wire
from polyarm.spec import UserError

HALF = TICKS // 2
LEAST = 0.3
"""The share of a joint's range that it was turned through at least, or it was not turned to its ends."""
LEAST_JAW = 200
"""Ticks, of a gripper, whose motor turns by as much as its jaw is made for."""
STILL_TICKS = 6
"""A joint that a hand holds moves less than this between two reads."""
ENDS = {
    "shoulder_pan": ("to the left", "to the right"),
    "shoulder_lift": ("forward and down", "back"),
    "elbow_flex": ("down", "up"),
    "wrist_flex": ("down", "up"),
    "wrist_roll": ("counter-clockwise, seen from before the gripper", "clockwise"),
    GRIPPER: ("open", "closed"),
}
"""The upper and the lower end of each joint, for a person."""
ZERO = "upper arm straight up, fore arm and wrist straight forward, wrist not rolled, gripper closed"

Ask = Callable[[str, str, int], None]
"""(what the person is asked for; the joint and 1 or -1 for its upper or lower end, "" and 0 for the zero pose). Returns once it is done."""


def nothing() -> None:
    pass


def calibrate(
    port: str, ask: Ask, hold: Callable[[], Any] = nothing, ids: Sequence[int] = (1, 2, 3, 4, 5, 6)
) -> Calibration:
    """The calibration of the SO-101 at `port`, whatever its motors hold. `hold`: returns once the person holds an arm whose torque
    is on and goes off now. Raises `UserError` for what cannot be so."""
    bus = Bus(open_wire(port), ids, slack_s=0.02)
    try:
        before = [_homing(bus, i, name) for i, name in zip(ids, SPEC.joints, strict=True)]
        if any(bus.read(i, "torque") for i in ids):
            hold()
        bus.write_torque(False)
        for i in ids:
            bus.write(i, "torque", 0)
        ask(f"put the arm into its zero pose: {ZERO}", "", 0)
        zero = _positions(bus)
        joints = {}
        for k, name in enumerate(SPEC.joints):
            away = []
            for end, sign in zip(ENDS[name], (1, -1), strict=True):
                ask(f"turn {name} as far as it goes {end}", name, sign)
                away.append((_positions(bus)[k] - zero[k] + HALF) % TICKS - HALF)
            joints[name] = _joint(name, ids[k], zero[k] + before[k], away[0], away[1])
        return Calibration(joints)
    except (ReadFailed, PortLost) as error:
        raise UserError(
            f"{port}: {error} while the arm was calibrated: check its cables and its supply, and begin again"
        ) from None
    finally:
        bus.wire.close()


def _homing(bus: Bus, motor: int, name: str) -> int:
    """What the motor takes off its encoder now."""
    if not bus.ping(motor):
        raise UserError(
            f"motor {motor} ({name}) does not answer: switch the arm's supply on, check its cables, and that it has this id"
        )
    kept = bus.kept(motor)
    if kept["model"] != MODEL_NUMBER:
        raise UserError(
            f"motor {motor} ({name}) is of model {kept['model']}, an SO-101 has STS3215 ({MODEL_NUMBER}): give its port"
        )
    return kept["homing"]


def _positions(bus: Bus) -> list[int]:
    """Of a pose that is held: two reads that agree."""
    last: list[int] = []
    for _ in range(50):
        now = [bus.read(i, "position") for i in bus.ids]
        if last and all(abs(a - b) <= STILL_TICKS for a, b in zip(now, last, strict=True)):
            return now
        last = now
    raise UserError("the arm does not come to rest: hold it still while it is read, and begin again")


def _joint(name: str, motor: int, encoder: int, upper: int, lower: int) -> Joint:
    """`encoder`: in the zero pose; `upper`, `lower`: ticks from there to the ends."""
    i = SPEC.joints.index(name)
    low, high, unit = SPEC.low[i], SPEC.high[i], SPEC.units[i]
    scale = TICKS / math.tau if unit == "rad" else abs(upper) / high
    if abs(upper - lower) < (LEAST * (high - low) * scale if unit == "rad" else LEAST_JAW):
        raise UserError(
            f"{name} was turned by {abs(upper - lower)} ticks only: turn it from one end to the other, and begin again"
        )
    if unit == "rad" and not (upper > 0) != (lower > 0):
        raise UserError(
            f"both ends of {name} lie on one side of the zero pose: put it into its zero pose as asked, and begin again"
        )
    homing = min(
        max(encoder % TICKS - HALF, 1 - HALF), HALF - 1
    )  # zero is then in the middle, far from where the encoder wraps
    zero = (encoder - homing) % TICKS
    ends = sorted(max(0, min(TICKS - 1, zero + away)) for away in (upper, lower))
    return Joint(motor, unit, zero, 1 if upper > lower else -1, scale, homing, (ends[0], ends[1]))


def beside(path: str | Path) -> Path:
    """`path`, or where that exists a name beside it that nothing has: a calibration is never written over."""
    path = Path(path)
    tries = (path.with_name(f"{path.stem}.{k}{path.suffix}") for k in range(2, 10**6))
    return path if not path.exists() else next(p for p in tries if not p.exists())


def by_hand(read: Callable[[str], Any]) -> Ask:
    """Asks a person, who presses Enter. `read`: `input`."""
    return lambda what, joint, sign: read(f"{what}, hold it there and press Enter ") and None


def of_twin(remote: Callable[..., dict[str, Any]]) -> Ask:
    """Puts a twin where a person would put an arm."""

    def ask(what: str, joint: str, sign: int) -> None:
        q = [0.0] * len(SPEC.joints)
        if joint:
            i = SPEC.joints.index(joint)
            q[i] = SPEC.high[i] if sign > 0 else SPEC.low[i]
        remote("pose", q=q)

    return ask
