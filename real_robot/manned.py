"""An arm with a person at it: what he wants goes before what a policy planned, and whoever records is told what came of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from polyarm.real_robot.arm import ArmSpec, PortLost, Row
from polyarm.real_robot.link import ArmStopped, HandLink, Seen
from polyarm.real_robot.plan import Chunk
from polyarm.real_robot.states import RUN, STOPPED
from polyarm.real_robot.teleop import Teleop


class Told(NamedTuple):
    """A tick: what was seen at its begin, what was asked for, and what was commanded."""

    now_ns: int
    seen: Seen
    action: Row | None
    """The person's row, or that of the plan; None where nobody asked for anything."""
    person: bool


class Manned:
    """A `Link`. The person is asked on every tick: he has the arm, and lets go of it, within one. While he has it a row of his
    counts for `row_ns`, as a policy's does for its slot, so that what is recorded row by row can be played again; by default for a
    tick. Rows are single precision, as demonstrations are kept. Whoever mans the arm enables it, and takes the torque off: the
    `enable` and `release` of a world change nothing.
    """

    def __init__(
        self,
        link: HandLink,
        teleop: Teleop,
        tick_ns: int,
        row_ns: int = 0,
        tell: Callable[[Told], None] = lambda told: None,
    ) -> None:
        self.link, self.teleop, self.tick_ns, self.row_ns, self.tell = link, teleop, tick_ns, row_ns or tick_ns, tell
        self.lead_ns = link.lead_ns
        self.pressed: set[str] = set()
        """Buttons since whoever acts on them took them out."""
        self.taken = False
        """Whether the person had the arm at any time since this was last set to False."""
        self._hand: Row | None = None
        self._due_ns = 0
        self._chunk: Chunk | None = None

    @property
    def person(self) -> bool:
        """Whether he has the arm now."""
        return self._hand is not None

    def open(self, spec: ArmSpec) -> None:
        self.teleop.open(spec)

    def start(self) -> None:
        """A new episode: nobody has the arm."""
        self.teleop.start()
        self._let_go()
        self.taken, self._chunk = False, None
        self.pressed.clear()

    def submit(self, chunk: Chunk) -> None:
        self._chunk = chunk
        self.link.submit(chunk)

    def wait(self, t_ns: int) -> None:
        while (now := self.link.now()) < t_ns:
            self._ask(now)
            self.link.wait(min(now + self.tick_ns, t_ns))
            self._say(now)

    def now(self) -> int:
        return self.link.now()

    def enable(self) -> None:
        pass

    def release(self) -> None:
        self._let_go()

    def look(self) -> Seen:
        return self.link.look()

    def last(self) -> Seen:
        return self.link.last()

    def hand(self, q: Row | None, at_ns: int) -> None:
        self.link.hand(q, at_ns)

    def close(self) -> None:
        try:
            self._let_go()
            self.teleop.close()
        finally:
            self.link.close()

    def _ask(self, now: int) -> None:
        try:
            said = self.teleop.read(self.link.last().q, now)
        except PortLost as error:
            raise ArmStopped(f"the teleoperator is gone ({error.args[-1]}): check its cable, and start again") from None
        self.pressed |= said.buttons
        if not said.deadman or said.row is None:
            return self._let_go()
        if self._hand is None:
            self._due_ns = now
        if now + self.tick_ns // 2 >= self._due_ns:
            self._hand = tuple(np.asarray(said.row, np.float32).tolist())
            self._due_ns += self.row_ns
        self.taken = True
        self.link.hand(self._hand, said.t_ns)

    def _say(self, now: int) -> None:
        seen = self.link.last()
        if seen.state in STOPPED:
            raise ArmStopped(f"the arm is in {seen.state}: {seen.why}")
        self.tell(
            Told(now, seen, self._hand or self._row(now) if seen.state is RUN or self.person else None, self.person)
        )

    def _row(self, now: int) -> Row | None:
        """Of the plan."""
        chunk = self._chunk
        if chunk is None or now < chunk.t_ns - self.lead_ns:
            return None
        return chunk.rows[min(max(now - chunk.t_ns, 0) // chunk.dt_ns, len(chunk.rows) - 1)]

    def _let_go(self) -> None:
        if self._hand is not None:
            self._hand = None
            self.link.hand(None, self.link.now())
