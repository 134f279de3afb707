"""What is planned, by absolute time: rows of chunks, spliced, and the goal of now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import NamedTuple

from polyarm.real_robot.arm import Row
from polyarm.spec import unknown


class Timed(NamedTuple):
    """A row, when it is due and when its slot is over."""

    t_ns: int
    row: Row
    until_ns: int


AHEAD_NS = 10_000_000_000
"""A chunk that begins later than this was stamped by another clock."""


@dataclass(frozen=True)
class Chunk:
    """Row k is due at `t_ns + k * dt_ns`. `seen_ns`: of the newest observation it was planned from; `number` grows."""

    number: int
    seen_ns: int
    t_ns: int
    dt_ns: int
    rows: tuple[Row, ...]


Splice = Callable[[Sequence[Timed], Chunk, Sequence[Timed]], list[Timed]]
"""(rows that are still to come, the new chunk, its rows) -> rows. Ensembling and real-time chunking are other ones."""


def replace(old: Sequence[Timed], chunk: Chunk, new: Sequence[Timed]) -> list[Timed]:
    """What was planned before the new chunk begins stays; half a slot decides where the two grids differ."""
    return [row for row in old if row.t_ns < new[0].t_ns - chunk.dt_ns // 2] + list(new)


def held(before: Timed, after: Timed | None, now: int) -> Row:
    """A row counts from when it is due until the next is, as in a simulator's step."""
    return before.row


def led(before: Timed, after: Timed | None, now: int) -> Row:
    """A row is reached when it is due; straight lines between."""
    if after is None:
        return before.row
    w = (now - before.t_ns) / (after.t_ns - before.t_ns)
    return tuple(a + w * (b - a) for a, b in zip(before.row, after.row, strict=True))


BETWEEN: dict[str, Callable[[Timed, Timed | None, int], Row]] = {"hold": held, "lead": led}


class Plan:
    """`between`: one of `BETWEEN`. A row that none follows counts for its slot and `grace_ns` more, then there is no goal."""

    def __init__(self, width: int, between: str = "hold", grace_ns: int = 50_000_000, splice: Splice = replace) -> None:
        if between not in BETWEEN:
            raise unknown("way between rows", between, BETWEEN)
        self.width, self.grace_ns, self.splice = width, grace_ns, splice
        self.counts: Counter[str] = Counter()
        self._between = BETWEEN[between]
        self._rows: list[Timed] = []
        self._last: int | None = None

    def put(self, chunk: Chunk, now: int) -> str:
        """Splice in what of it is still to come; "" or why all of it was refused, which is counted."""
        why = self._fault(chunk, now)
        if why:
            self.counts[why] += 1
            return why
        times = (chunk.t_ns + k * chunk.dt_ns for k in range(len(chunk.rows)))
        timed = [Timed(t, row, t + chunk.dt_ns) for t, row in zip(times, chunk.rows, strict=True)]
        due = [row for row in timed if row.until_ns > now]
        self.counts["rows in the past"] += len(timed) - len(due)
        self._rows = self.splice(self._coming(now), chunk, due)
        self._last = chunk.number
        return ""

    def _fault(self, chunk: Chunk, now: int) -> str:
        if not chunk.rows or chunk.dt_ns <= 0 or any(len(row) != self.width for row in chunk.rows):
            return "a chunk of another shape"
        if not all(isfinite(x) for row in chunk.rows for x in row):
            return "a chunk that is not finite"
        if self._last is not None and chunk.number <= self._last:
            return "a chunk that came before"
        if chunk.t_ns + len(chunk.rows) * chunk.dt_ns <= now:
            return "a chunk that is late"
        if chunk.t_ns > now + AHEAD_NS:
            return "a chunk of another clock"
        return ""

    def clear(self) -> None:
        """Nothing is planned; numbers go on."""
        self._rows = []

    def begin(self) -> None:
        """Nothing is planned, and any number is new."""
        self._rows, self._last = [], None

    def goal(self, now: int) -> Row | None:
        """Where to be; None before the first row, and once one has run out."""
        rows = self._rows = self._coming(now)
        if not rows or rows[0].t_ns > now or now >= rows[0].until_ns + self.grace_ns:
            return None
        follows = len(rows) > 1 and rows[1].t_ns <= rows[0].until_ns + self.grace_ns
        return self._between(rows[0], rows[1] if follows else None, now)

    def committed(self, t_ns: int, n: int) -> tuple[Row, ...]:
        """At most n rows that will run from `t_ns` on: what a planner that takes its time has to go on from."""
        return tuple(timed.row for timed in self._coming(t_ns)[:n])

    def _coming(self, now: int) -> list[Timed]:
        """The row of now and those after it."""
        first = sum(row.t_ns <= now for row in self._rows) - 1
        return self._rows[max(first, 0) :]
