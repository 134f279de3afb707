"""Who moves an arm by hand: a leader arm, the keys of a terminal (`keyboard`), or a script.

A teleoperator says on every tick where the person wants the arm, whether he holds the deadman switch, and which buttons he pressed
since he was last asked. It is told where the arm is, so that what it asks for begins there, and the time, for it has no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from polyarm.real_robot.arm import Arm, ArmSpec, PortLost, ReadFailed, Row, Stop
from polyarm.real_robot.feetech import So101
from polyarm.real_robot.keys import Keys
from polyarm.sim.experts.pick_place import PickPlaceExpert
from polyarm.sim.mujoco.pick_place import PickPlace
from polyarm.spec import UserError

SAVE, REDO, STOP = "right", "left", "escape"
"""Buttons, by the keys that lerobot has for them: the episode is good, it is to be done again, no more of them."""
TAKE = "space"
"""The key that takes the arm from a policy, and gives it back."""


class Said(NamedTuple):
    row: Row | None
    """Where the arm should be; None where the teleoperator does not know."""
    buttons: frozenset[str]
    """Pressed since the last time."""
    deadman: bool
    t_ns: int
    """When that was so."""


@runtime_checkable
class Teleop(Protocol):
    def open(self, spec: ArmSpec) -> None:
        """For an arm of this kind. Moves nothing. Raises `UserError` with the remedy."""
        ...

    def close(self) -> None:
        """Never raises; twice is once."""
        ...

    def start(self) -> None:
        """A new episode begins, with the arm in nobody's hands."""
        ...

    def read(self, q: Row, now_ns: int) -> Said:
        """`q`: where the arm is. Raises `PortLost` where nothing more will come without `open`."""
        ...


class Leader:
    """A second arm that a person moves, limp, and the first follows: joint by joint of the same name, cut to the arm's limits.

    `follows`: from the start, and not first when the key `space` takes the arm. However it is taken, the arm goes to the leader at
    the share `catch` of its joints' velocities and follows freely from when it is there.
    """

    def __init__(self, arm: Arm, keys: Keys | None = None, follows: bool = True, catch: float = 0.2) -> None:
        self.arm, self.keys, self.follows, self.catch = arm, keys, follows, catch
        self._opened = False

    def open(self, spec: ArmSpec) -> None:
        mine = dict(zip(self.arm.spec.joints, self.arm.spec.units, strict=True))
        for joint, unit in zip(spec.joints, spec.units, strict=True):
            if mine.get(joint) != unit:
                raise UserError(
                    f"the leader is of kind {self.arm.spec.model} and has no {joint} in {unit} as {spec.model} has: give one of that kind"
                )
        if not self._opened:
            self.arm.open()
            self._opened = True
            try:
                self.arm.stop(Stop.LIMP)
            except (ReadFailed, PortLost) as error:
                self.close()
                raise UserError(f"the leader cannot be moved by hand ({error}): switch its supply off and on") from None
            if self.keys:
                self.keys.open()
        self.spec, self._from = spec, [self.arm.spec.joints.index(joint) for joint in spec.joints]
        self._near = tuple(0.03 * (b - a) for a, b in zip(spec.low, spec.high, strict=True))
        self.start()

    def close(self) -> None:
        if self._opened:
            self._opened = False
            self.arm.close()
        if self.keys:
            self.keys.close()

    def start(self) -> None:
        self._has, self._there = self.follows, False
        self._at: Row | None = None
        self._row: Row | None = None
        self._t_ns = self._before_ns = 0

    def read(self, q: Row, now_ns: int) -> Said:
        buttons = frozenset(self.keys.take(now_ns)) if self.keys else frozenset()
        if TAKE in buttons:
            self._has, self._at, self._there = not self._has, None, False
        try:
            seen = self.arm.read().q
            limits = zip(self.spec.low, self._from, self.spec.high, strict=True)
            self._row, self._t_ns = tuple(min(max(seen[i], low), high) for low, i, high in limits), now_ns
        except ReadFailed:  # what it said last counts on, and ages
            pass
        if not self._has or self._row is None:
            return Said(self._row, buttons, False, self._t_ns)
        return Said(self._approach(self._row, q, now_ns), buttons, True, self._t_ns)

    def _approach(self, row: Row, q: Row, now_ns: int) -> Row:
        """The leader's pose; until the arm is there once, what is on the way to it."""
        if self._there:
            return row
        at = self._at or q
        dt, self._before_ns = (now_ns - self._before_ns) / 1e9 if self._at else 0.0, now_ns
        steps = (self.catch * v * dt for v in self.spec.velocity)
        self._at = at = tuple(a + min(max(b - a, -s), s) for a, b, s in zip(at, row, steps, strict=True))
        self._there = all(abs(b - a) <= near for a, b, near in zip(at, row, self._near, strict=True))
        return at


class Scripted:
    """Rows, one every `dt_ns` from the first that is asked for; the last one stays. `presses`: {row number: button}, `lets_go`: rows
    at which nobody holds the switch."""

    def __init__(
        self, rows: Sequence[Row], dt_ns: int, presses: Mapping[int, str] | None = None, lets_go: Sequence[int] = ()
    ) -> None:
        self.rows, self.dt_ns = [tuple(map(float, row)) for row in rows], dt_ns
        self.presses, self.lets_go = dict(presses or {}), frozenset(lets_go)
        self.start()

    def open(self, spec: ArmSpec) -> None:
        if any(len(row) != len(spec.joints) for row in self.rows):
            raise UserError(
                f"a row of the script has not {len(spec.joints)} numbers, one for each of {', '.join(spec.joints)}"
            )

    def close(self) -> None:
        pass

    def start(self) -> None:
        self._begun: int | None = None
        self._last = -1

    def read(self, q: Row, now_ns: int) -> Said:
        self._begun = now_ns if self._begun is None else self._begun
        k = (now_ns - self._begun) // self.dt_ns
        pressed = frozenset(b for i, b in self.presses.items() if self._last < i <= k)
        self._last = k
        return Said(self.rows[min(k, len(self.rows) - 1)], pressed, k not in self.lets_go, now_ns)


class Expert:
    """The scripted expert of pick_place at a twin, whose truth `eye` gives: it says that the episode is good once the cube lies on
    its target, and that it is to be done again after `patience_s`."""

    def __init__(self, eye: Callable[[], Mapping[str, Any]], patience_s: float = 8.0, rate_hz: float = 20.0) -> None:
        self.eye, self.patience_ns, self.dt_ns = eye, round(1e9 * patience_s), round(1e9 / rate_hz)
        self.world = PickPlace()
        self.world.reset(seed=0)
        self.expert = PickPlaceExpert(self.world)
        self.start()

    def open(self, spec: ArmSpec) -> None:
        if spec.model != "so101":
            raise UserError(f"the scripted expert moves an so101, not an arm of kind {spec.model}: give another teleop")

    def close(self) -> None:
        pass

    def start(self) -> None:
        self._begun: int | None = None
        self._due = 0
        self._row: Row | None = None

    def read(self, q: Row, now_ns: int) -> Said:
        """Looks anew every `1 / rate_hz` seconds: between two rows of an action nothing changes."""
        if self._begun is not None and now_ns < self._due:
            return Said(self._row, frozenset(), True, now_ns)
        truth = self.eye()
        self.world.set_state(np.array(truth["state"]))
        if self._begun is None:
            self._begun = self._due = now_ns
            self.expert.reset()
        self._due += self.dt_ns
        done = {SAVE} if truth["is_success"] else {REDO} if now_ns - self._begun > self.patience_ns else set()
        self._row = tuple(map(float, self.expert.act()))
        return Said(self._row, frozenset(done), True, now_ns)


def leader(
    port: str | None, calibration: str | None, keys: Keys | None = None, follows: bool = True, catch: float = 0.2
) -> Leader:
    """The teleoperator of `teleop=leader`."""
    if port is None or calibration is None:
        name = "port" if port is None else "calibration"
        raise UserError(f"the leader has no {name}: give teleop.{name}=..., of its own and not of the arm that follows")
    return Leader(So101(port, calibration), keys, follows, catch)


def expert(
    eye: Callable[[], Mapping[str, Any]] | None = None, patience_s: float = 8.0, rate_hz: float = 20.0
) -> Expert:
    """The teleoperator of `teleop=scripted`."""
    if eye is None:
        raise UserError(
            "teleop=scripted knows where the cube is from a twin alone: give robot=so101_twin, or another teleop"
        )
    return Expert(eye, patience_s, rate_hz)
