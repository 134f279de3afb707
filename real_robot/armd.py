"""The process that owns an arm: reads, filters and commands on every tick, whatever becomes of the others.

It speaks through pages (`real_robot.pages`) that begin with the robot's name:

    NAME.state     writes   everything that is known of the arm, every tick
    NAME.policy    reads    a chunk; each write is a beat, and the writer's death ends what it planned
    NAME.operator  reads    one act at a time: enable, hold, go, limp, clear, estop, close
    NAME.hand      reads    where a person who holds the deadman switch wants the arm
    NAME.estop     reads    a file: while it exists the emergency stop is pressed; its text says by whom

Run as `python -m polyarm.real_robot.armd JSON`, with what `station.Station` has.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import suppress
from dataclasses import asdict

from polyarm.real_robot import pages
from polyarm.real_robot.arm import PortLost, ReadFailed, Row
from polyarm.real_robot.loop import Loop
from polyarm.real_robot.plan import Chunk
from polyarm.real_robot.realtime import Ticks, follow_parent, prioritise, settle
from polyarm.real_robot.states import ESTOP, FAULT, OFF
from polyarm.real_robot.station import Station, build_arm, build_loop, own
from polyarm.spec import UserError, unknown

ACTS = ("enable", "hold", "go", "limp", "clear", "estop", "close")
UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, OverflowError)
SLOW_NS = 2_000_000_000
"""How long an act may take: it asks every motor. Nothing moves meanwhile, and the supervisor waits for as long."""
GRIP = 60
"""Real-time priority of the arm's process; cameras lie below, the supervisor above."""


class Desk:
    """Between the loop and the pages; owns no clock either."""

    def __init__(self, name: str, loop: Loop, said: str = "") -> None:
        self.name, self.loop, self.priority = name, loop, said
        self.done = 0
        self.error = ""
        self._state = pages.Writer(f"{name}.state")
        self._pages: dict[str, pages.Reader] = {}
        self._last = dict.fromkeys(("policy", "operator", "hand"), b"")

    def take(self, now: int) -> None:
        """What the others want."""
        self._act(now)
        policy = self._page("policy")
        value = policy.read() if policy else None
        if policy and value and policy.alive:
            self.loop.beat(value.t_ns)
            if value.payload != self._last["policy"]:
                self._last["policy"] = value.payload
                self._submit(value.payload, now)
        elif policy:
            self.loop.hush()
        hand = self._page("hand")
        value = hand.read() if hand else None
        self.loop.hand(*(_hand(value) if value else (None, 0)))

    def show(self, now: int, ticks: Ticks) -> None:
        loop, seen = self.loop, self.loop.seen
        counts = {"loop": loop.counts, "filter": loop.guard.counts, "plan": loop.plan.counts}
        what = {
            "state": loop.state, "why": loop.why, "stopped_by": loop.stopped_by, "now_ns": now, "seen_ns": loop.seen_ns,
            "seen": asdict(seen) if seen else None, "sent": loop.sent, "done": self.done, "error": self.error,
            "priority": self.priority, "missed": ticks.missed, "late_ms": self._late(ticks), "counts": counts,
        }  # fmt: skip
        self._state.say(what, now)

    def close(self) -> None:
        for page in (self._state, *self._pages.values()):
            page.close()

    def _late(self, ticks: Ticks) -> dict[str, int | float]:
        if ticks.late.n % 50 == 0:
            self._figures = ticks.late.figures()
        return getattr(self, "_figures", {})

    def _page(self, kind: str) -> pages.Reader | None:
        if kind not in self._pages:
            with suppress(FileNotFoundError):
                self._pages[kind] = pages.Reader(f"{self.name}.{kind}")
        return self._pages.get(kind)

    def _act(self, now: int) -> None:
        page = self._page("operator")
        value = page.read() if page else None
        if not value or value.payload == self._last["operator"]:
            return
        self._last["operator"] = value.payload
        try:
            asked = pages.data(value)
            number, act, why = int(asked["number"]), str(asked["act"]), str(asked.get("why", ""))
        except UNREADABLE:  # alive, and nothing asked yet
            return
        self._state.again(now + SLOW_NS)
        self.error = ""
        try:
            self._do(act, why, now)
        except (UserError, ReadFailed, PortLost) as e:
            self.error = str(e)
        self.done = number

    def _do(self, act: str, why: str, now: int) -> None:
        loop = self.loop
        if act not in ACTS:
            raise unknown("act", act, ACTS)
        if act == "estop":
            loop.estop(why or "the operator")
        elif act in ("limp", "close"):
            getattr(loop, act)()
        else:
            getattr(loop, act)(now)

    def _submit(self, payload: bytes, now: int) -> None:
        try:
            asked = json.loads(payload)
            if asked is None:  # alive, and nothing planned yet
                return
            rows = tuple(tuple(map(float, row)) for row in asked["rows"])
            number, seen_ns, t_ns, dt_ns = (int(asked[k]) for k in ("number", "seen_ns", "t_ns", "dt_ns"))
        except UNREADABLE:
            self.loop.plan.counts["a chunk that cannot be read"] += 1
            return
        self.loop.submit(Chunk(number, seen_ns, t_ns, dt_ns, rows), now)


def _hand(value: pages.Value) -> tuple[Row | None, int]:
    try:
        q = pages.data(value)["q"]
        return (None if q is None else tuple(map(float, q))), value.t_ns
    except UNREADABLE:
        return None, 0


def run(station: Station, parent: int = 0) -> None:
    """Until it is told to close, or by SIGTERM; then the arm is at rest, torque as it was."""
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever started this
    if parent:
        follow_parent(parent)
    lock = own(station)
    arm = build_arm(station)
    loop = build_loop(station, arm)
    desk = Desk(station.name, loop, prioritise(GRIP))
    settle()
    ticks = Ticks(int(1e9 / (station.rate_hz or arm.spec.rate_hz)))
    loop.open(ticks.wait())
    try:
        while loop.state is not OFF:
            now = ticks.wait()
            desk.take(now)
            if asked:
                _leave(loop, now)
            loop.tick(now)
            desk.show(now, ticks)
    finally:
        desk.close()
        os.close(lock)


def _leave(loop: Loop, now: int) -> None:
    if loop.state not in (FAULT, ESTOP):
        loop.hold(now)
    if loop.guard.resting:
        loop.close()


if __name__ == "__main__":
    try:
        run(Station(**json.loads(sys.argv[1])), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    except UserError as e:
        sys.exit(f"polyarm: {e}")
