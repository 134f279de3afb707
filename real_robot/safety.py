"""What every command passes, every tick, and what every reading is judged by. On unless a simulator is to equal itself.

`Filter` looks at what is asked for: a goal that is not finite, or of another number of joints, is none; position (with the way that
a stop takes), velocity and acceleration are cut to the limits; a goal whose tip leaves the workspace or the floor is moved to the
nearest that does not; and if the arm would still come to rest outside, or its links too near each other, it brakes: `refused` says
why, and the loop goes to HOLD. `Watch` looks at what is measured and says HOLD or FAULT.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from math import copysign, isfinite, sqrt
from typing import NamedTuple, Protocol, runtime_checkable

from polyarm.real_robot.arm import ArmState, Row
from polyarm.real_robot.limits import Limits

CHECKS = ("workspace", "floor", "self-collision")

ROUNDING = 1 - 1e-9
"""Velocity and acceleration are kept this much below their limits, so that differences of the commands obey them as floats too."""

THERE = 1e-12
"""So near its goal a joint is at it: what is left over is rounding."""


@runtime_checkable
class Body(Protocol):
    def depths(self, q: Row) -> tuple[float, ...]:
        """How far a pose is beyond each of `CHECKS`, m; 0 where it is not."""
        ...

    def project(self, q: Row) -> Row:
        """`q` if its tip is in the box, otherwise a pose near it whose tip is, as far as that can be reached."""
        ...


@runtime_checkable
class Guard(Protocol):
    counts: Counter[str]
    refused: str
    """Why the last goal was not followed at all; "" if it was."""

    def start(self, q: Row) -> None: ...
    def __call__(self, goal: Row | None) -> Row: ...
    @property
    def resting(self) -> bool: ...


class Filter:
    """State: position and velocity of the last command, so that what is promised holds of the commands whatever the arm does."""

    def __init__(self, limits: Limits, dt_s: float, body: Body | None = None) -> None:
        self.limits, self.dt, self.body = limits, dt_s, body
        self.counts: Counter[str] = Counter()
        self.refused = ""
        self._a = tuple(a * ROUNDING for a in limits.acceleration)
        self._top = tuple(v * ROUNDING for v in limits.velocity)
        self.start(tuple((a + b) / 2 for a, b in zip(limits.low, limits.high, strict=True)))

    def start(self, q: Row) -> None:
        """At rest at `q`. Outside the limits, as an arm that was moved by hand may be, only the way in is open."""
        self.q, self.v, self.refused = tuple(map(float, q)), (0.0,) * len(q), ""
        self.depths = self.body.depths(self.q) if self.body else ()

    @property
    def resting(self) -> bool:
        return not any(self.v)

    def __call__(self, goal: Row | None) -> Row:
        """The command of this tick. `goal`: where to be; None to brake, which ends after at most v / a."""
        self.refused = ""
        goal = self._sane(goal)
        q, v = self._toward(goal) if goal is None or self.body is None else self._guarded(goal, self.body)
        self.q, self.v = q, v
        return q

    def _sane(self, goal: Row | None) -> Row | None:
        if goal is None:
            return None
        if len(goal) != len(self.q) or not all(map(isfinite, goal)):
            self.refused = "a goal of another shape" if len(goal) != len(self.q) else "a goal that is not finite"
            self.counts[self.refused] += 1
            return None
        low, high = self.limits.low, self.limits.high
        inside = tuple(min(max(g, a), b) for g, a, b in zip(goal, low, high, strict=True))
        self.counts["position"] += inside != tuple(goal)
        return inside

    def _guarded(self, goal: Row, body: Body) -> tuple[Row, Row]:
        wanted = body.project(goal)
        self.counts["projected"] += wanted is not goal
        stop = goal
        for _ in range(2):
            q, v = self._toward(wanted)
            stop = self._rest(q, v)
            depths = body.depths(stop)
            worse = [name for name, new, old in zip(CHECKS, depths, self.depths, strict=True) if new > old + 1e-9]
            if not worse:
                self.depths = depths
                return q, v
            wanted = body.project(stop)  # between two good poses the way may lead below the floor: along it, then
        self.counts[worse[0]] += 1
        self.refused = worse[0]
        return self._toward(None)  # comes to rest where the last command would have: that was good

    def _toward(self, goal: Row | None) -> tuple[Row, Row]:
        """The next position and velocity of every joint by itself."""
        dt, limits = self.dt, self.limits
        nq, nv, fast, hard = [], [], False, False
        for i, (q, v) in enumerate(zip(self.q, self.v, strict=True)):
            a = self._a[i]
            low, high = min(limits.low[i], q), max(limits.high[i], q)
            want = 0.0
            if goal is not None:
                way = goal[i] - q
                top = reach(abs(way), a, dt)
                fast = fast or top > self._top[i]
                want = copysign(min(self._top[i], top), way)
            hard = hard or abs(want - v) > a * dt
            x = min(max(want, v - a * dt), v + a * dt)
            x = max(min(x, reach(high - q, a, dt)), -reach(q - low, a, dt))
            y = min(max(q + x * dt, low), high)
            nq.append(goal[i] if goal is not None and abs(goal[i] - y) < THERE else y)
            nv.append(x)
        self.counts["velocity"] += fast
        self.counts["acceleration"] += hard and goal is not None
        return tuple(nq), tuple(nv)

    def _rest(self, q: Row, v: Row) -> Row:
        """Where braking from here on ends."""
        ends = (y + copysign(stop(abs(x), a, self.dt), x) for y, x, a in zip(q, v, self._a, strict=True))
        return tuple(
            min(max(y, min(low, was)), max(high, was))
            for y, low, high, was in zip(ends, self.limits.low, self.limits.high, q, strict=True)
        )


class Through:
    """Passes goals on as they are, and holds the last where there is none. For a simulator only: it keeps no promise."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.refused = ""
        self.resting = True

    def start(self, q: Row) -> None:
        self.q = q

    def __call__(self, goal: Row | None) -> Row:
        self.q = self.q if goal is None else goal
        return self.q


def reach(room: float, a: float, dt: float) -> float:
    """The largest speed of a tick from which a stop ends within `room`, this tick included, when each one after takes `a dt` off.

    In units of `a dt` and `a dt^2` a speed u needs (n + 1)(u - n / 2) with n = floor(u), a line between whole n; this is its
    inverse. The smooth sqrt(2 a room) brakes too late: by 12.5 % of the acceleration.
    """
    r = room / (a * dt * dt)
    n = int((sqrt(1 + 8 * r) - 1) / 2)
    return (r / (n + 1) + n / 2) * a * dt


def stop(speed: float, a: float, dt: float) -> float:
    """The way that braking from `speed` still takes, after the tick that had it."""
    u = speed / (a * dt)
    n = int(u)
    return (n * u - n * (n + 1) / 2) * a * dt * dt


class Trouble(NamedTuple):
    name: str
    fault: bool
    """FAULT, otherwise HOLD for as long as it lasts."""
    text: str


class Watch:
    """Judges what is measured. A reading that is alone with its alarm is not believed: the next has to say it too."""

    def __init__(self, limits: Limits, joints: Sequence[str], explain: Callable[[tuple[int, ...]], str]) -> None:
        self.limits, self.joints, self.explain = limits, joints, explain
        self.counts: Counter[str] = Counter()
        self._since: dict[str, int] = {}

    def start(self) -> None:
        self._since.clear()

    def __call__(self, state: ArmState, sent: Row | None, now: int) -> Trouble | None:
        """The worst of what has lasted long enough. `sent`: the last command, None where torque is off."""
        limits = self.limits
        found = [
            self._lasting("status", True, 0.0, now, self.explain(state.status) if any(state.status) else ""),
            self._lasting("too hot", True, 0.0, now, self._hot(state, limits.too_hot_c)),
            self._lasting("voltage", True, limits.voltage_s, now, self._voltage(state)),
            self._lasting("lag", True, limits.lag_s, now, self._lag(state, sent)),
            self._lasting("load", False, limits.load_s, now, self._load(state)),
            self._lasting("hot", False, 0.0, now, self._hot(state, limits.hot_c)),
        ]
        worst = next((x for x in found if x), None)
        if worst:
            self.counts[worst.name] += 1
        return worst

    def _lasting(self, name: str, fault: bool, seconds: float, now: int, text: str) -> Trouble | None:
        """What is said once it has been so for `seconds`, and at two readings at least."""
        if not text:
            self._since.pop(name, None)
            return None
        lasted = now - self._since.setdefault(name, now)
        return Trouble(name, fault, text) if lasted >= max(1, seconds * 1e9) else None

    def _over(self, row: Row, most: Row) -> int | None:
        """The first joint whose number is above its limit; NaN, which a motor does not say, is not."""
        return next((i for i, (x, top) in enumerate(zip(row, most, strict=False)) if x > top), None)

    def _hot(self, state: ArmState, most: float) -> str:
        i = self._over(state.temperature_c, (most,) * len(state.temperature_c))
        return (
            ""
            if i is None
            else f"{self.joints[i]} is at {state.temperature_c[i]:.0f} degC, {most:.0f} is the limit: let it cool"
        )

    def _voltage(self, state: ArmState) -> str:
        low, high = self.limits.voltage_v
        i = next((i for i, x in enumerate(state.voltage_v) if x < low or x > high), None)
        if i is None:
            return ""
        return f"{self.joints[i]} has {state.voltage_v[i]:.1f} V, {low:g} to {high:g} is right: check the power supply"

    def _lag(self, state: ArmState, sent: Row | None) -> str:
        away = () if sent is None else tuple(abs(a - b) for a, b in zip(state.q, sent, strict=True))
        i = self._over(away, self.limits.lag)
        return (
            "" if i is None else f"{self.joints[i]} is {away[i]:.2f} from where it was told to be: see what blocks it"
        )

    def _load(self, state: ArmState) -> str:
        i = self._over(tuple(map(abs, state.load)), self.limits.load)
        return (
            ""
            if i is None
            else f"{self.joints[i]} pushes with {abs(state.load[i]):.0%} of its effort: see what blocks it"
        )
