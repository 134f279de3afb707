"""The way from whoever acts to an arm's loop: in this process under a clock that is advanced, or in its own by the wall clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, NamedTuple, Protocol, runtime_checkable

from polyarm.real_robot.arm import Row
from polyarm.real_robot.loop import Loop
from polyarm.real_robot.plan import Chunk
from polyarm.real_robot.states import MOVES, OFF, State


class ArmStopped(RuntimeError):
    """The arm will not go on by itself; the message says why."""


class Seen(NamedTuple):
    q: Row
    t_ns: int
    """When that was so."""
    state: State
    why: str
    now_ns: int = 0
    """Of the tick that says so."""
    sent: Row | None = None
    """The last command; None where the arm is not enabled."""


@runtime_checkable
class Link(Protocol):
    """The way to an arm's loop, and its clock."""

    lead_ns: int
    """How long before its slot a row has to be there to be in time."""

    def now(self) -> int: ...
    def enable(self) -> None: ...
    def release(self) -> None: ...
    def submit(self, chunk: Chunk) -> None: ...
    def wait(self, t_ns: int) -> None: ...
    def look(self) -> Seen: ...
    def close(self) -> None: ...


@runtime_checkable
class HandLink(Link, Protocol):
    """One that a person can reach through too."""

    def last(self) -> Seen:
        """What the newest tick saw, without another read."""
        ...

    def hand(self, q: Row | None, at_ns: int) -> None:
        """Where a person who holds the deadman switch wants the arm; None: nobody does."""
        ...


class Inline:
    """`advance`: lets so many ns pass for the arm."""

    lead_ns = 0

    def __init__(self, loop: Loop, advance: Callable[[int], None]) -> None:
        self.loop, self.advance = loop, advance
        self.dt_ns = int(1e9 / loop.arm.spec.rate_hz)
        self._now = self._next = 0

    def now(self) -> int:
        return self._now

    def enable(self) -> None:
        if self.loop.state is OFF:
            self.loop.open(self._now)
        self.loop.enable(self._now)

    def release(self) -> None:
        if self.loop.state in MOVES:
            self.loop.hold(self._now)
            while not self.loop.guard.resting:
                self.wait(self._now + self.dt_ns)
            self.loop.limp()

    def submit(self, chunk: Chunk) -> None:
        self.loop.submit(chunk, self._now)

    def wait(self, t_ns: int) -> None:
        """Ticks of before `t_ns`; then it is `t_ns`."""
        while self._next < t_ns:
            self._now = self._next
            self.loop.beat(self._now)
            self.loop.tick(self._now)
            self.advance(self.dt_ns)
            self._next += self.dt_ns
        self._now = t_ns

    def look(self) -> Seen:
        loop = self.loop
        loop.look(self._now)
        return self.last()

    def last(self) -> Seen:
        loop = self.loop
        assert loop.seen is not None
        return Seen(loop.seen.q, loop.seen_ns, loop.state, loop.why, self._now, loop.sent)

    def hand(self, q: Row | None, at_ns: int) -> None:
        self.loop.hand(q, at_ns)

    def status(self) -> dict[str, Any]:
        """As the arm's own process says it (`armd.Desk.show`), of what there is without one."""
        loop = self.loop
        counts = {"loop": loop.counts, "filter": loop.guard.counts, "plan": loop.plan.counts}
        seen = asdict(loop.seen) if loop.seen else None
        return {"state": loop.state, "why": loop.why, "seen": seen, "late_ms": {}, "priority": "", "counts": counts}

    def close(self) -> None:
        self.release()
        if self.loop.state is not OFF:
            self.loop.close()
