"""An arm moved by the keys of a terminal: joint by joint, and its tip along the axes of the base.

A key that is held repeats itself, which is all that a terminal tells: each press moves the arm for a moment, and the deadman switch
counts as held until a little after the last one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import numpy as np

from polyarm.real_robot.arm import ArmSpec, Row
from polyarm.real_robot.keys import Keys
from polyarm.real_robot.teleop import Said

JOINT_KEYS = ("1q", "2w", "3e", "4r", "5t", "6y", "7u")
"""Of each joint the key towards its upper end and the one back."""
TIP_KEYS: Mapping[str, tuple[int, int]] = {
    "i": (0, 1),
    "k": (0, -1),
    "j": (1, 1),
    "l": (1, -1),
    "h": (2, 1),
    "n": (2, -1),
}
"""(axis of the base frame, sign): x forward, y to the left, z up."""
PRESS_NS = 100_000_000
"""How long a press moves the arm for."""
GRIP_NS = 600_000_000
"""How long the switch counts as held: longer than it takes a key to begin to repeat."""
DAMPING = 0.02
LATE_NS = 50_000_000
"""Of two ticks that lie further apart no more than this is moved."""


@runtime_checkable
class Tip(Protocol):
    def jacobian(self, q: Row) -> np.ndarray:
        """[3 n] of the tip's x y z in the base frame, m a unit of each joint."""
        ...


class Keyboard:
    """`share`: of each joint's velocity that a key moves it at, and the most that any joint moves at. `body` knows where the tip
    goes; without one the keys move joints only."""

    def __init__(self, keys: Keys, body: Tip | None = None, share: float = 0.2, tip_m_s: float = 0.08) -> None:
        self.keys, self.body, self.share, self.tip_m_s = keys, body, share, tip_m_s
        self.start()

    def open(self, spec: ArmSpec) -> None:
        self.spec, self.tip_keys = spec, TIP_KEYS if self.body else {}
        self.joint_keys = {key: (i, sign) for i, (_, pair) in enumerate(zip(spec.joints, JOINT_KEYS, strict=False)) for key, sign in zip(pair, (1, -1), strict=True)}  # fmt: skip
        self.moves = {*self.joint_keys, *self.tip_keys}
        self.keys.open()

    def close(self) -> None:
        self.keys.close()

    def start(self) -> None:
        self._until: dict[str, int] = {}
        self._row: Row | None = None
        self._before_ns = self._held_ns = 0

    def read(self, q: Row, now_ns: int) -> Said:
        pressed = self.keys.take(now_ns)
        for key in pressed:
            if key in self.moves:
                self._until[key] = now_ns + PRESS_NS
                self._held_ns = now_ns + GRIP_NS
        if now_ns >= self._held_ns:
            self._row = None
            return Said(None, frozenset(pressed), False, now_ns)
        dt = min(now_ns - self._before_ns, LATE_NS) / 1e9 if self._row else 0.0
        self._before_ns = now_ns
        self._row = self._moved(self._row or q, [k for k, until in self._until.items() if until > now_ns], dt)
        return Said(self._row, frozenset(pressed), True, now_ns)

    def _moved(self, row: Row, keys: list[str], dt: float) -> Row:
        speed, twist = np.zeros(len(row)), np.zeros(3)
        for key in keys:
            if key in self.tip_keys:
                axis, sign = self.tip_keys[key]
                twist[axis] += sign * self.tip_m_s
            else:
                i, sign = self.joint_keys[key]
                speed[i] += sign * self.share * self.spec.velocity[i]
        if twist.any() and self.body is not None:
            jac = self.body.jacobian(row)
            speed += jac.T @ np.linalg.solve(jac @ jac.T + DAMPING**2 * np.eye(3), twist)
        speed /= max(1.0, float((np.abs(speed) / self.share / self.spec.velocity).max()))  # slower, along the same way
        return tuple(np.clip(np.array(row) + dt * speed, self.spec.low, self.spec.high).tolist())
