"""What runs on every tick of an arm, without a clock or a process of its own: read, judge, choose the goal of now, filter, command.

Whoever has a clock calls `tick(now_ns)`: the arm's process with the machine's, a lock-step world with one that it advances. All is
judged by age and not by counts, which mean another time at another rate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from polyarm.real_robot.arm import Arm, ArmState, PortLost, ReadFailed, Row, Stop
from polyarm.real_robot.eyes import Eyes, require_inside
from polyarm.real_robot.plan import Chunk, Plan
from polyarm.real_robot.safety import Guard, Watch
from polyarm.real_robot.states import (
    ESTOP,
    FAULT,
    GOES,
    HOLD,
    LIMP,
    MOVES,
    OFF,
    RUN,
    STOPPED,
    TELEOP,
    Ages,
    State,
    require_may,
)
from polyarm.spec import UserError

TOLD = "told to hold"


class Loop:
    """`latched`: why the emergency stop is pressed, "" if it is not. `at_stop`: what the arm does once it came to rest in ESTOP."""

    def __init__(
        self, arm: Arm, plan: Plan, guard: Guard, watch: Watch | None = None, ages: Ages = Ages(),  # noqa: B008  frozen
        latched: Callable[[], str] = str, at_stop: Stop = Stop.HOLD,
    ) -> None:  # fmt: skip
        self.arm, self.plan, self.guard, self.watch, self.ages = arm, plan, guard, watch, ages
        self.latched, self.at_stop = latched, at_stop
        self.state, self.why = OFF, ""
        self.counts: Counter[str] = Counter()
        self.eyes = Eyes(arm, self.counts)
        self.sent: Row | None = None
        """The last command; None where the arm is not enabled."""
        self.stopped_by = ""
        """Why nobody may enable before a person cleared it."""
        self._beat_ns: int | None = None
        self._hand: tuple[int, Row] | None = None
        self._free_ns = 0
        self._held = ""
        self._gone = self._settled = self._paused = False

    # What a person does. Refused with a UserError where the state does not allow it.

    def open(self, now: int) -> None:
        require_may("open", self.state)
        self.arm.open()
        self.eyes.forget(now)
        self._gone = False
        self._to(LIMP, "opened")

    def enable(self, now: int) -> None:
        """Torque on where the arm stands: it does not move."""
        require_may("enable", self.state)
        if self.stopped_by:
            raise UserError(f"the arm is stopped ({self.stopped_by}): see to it, clear it, then enable")
        self.eyes.forget(now)
        require_inside(self.eyes.first(now), self.arm.spec)
        self.arm.enable()
        state = self.eyes.first(now)
        self.guard.start(state.q)
        if self.watch:
            self.watch.start()
        self.sent, self._held, self._hand = state.q, "", None
        self._settled = self._paused = False
        self.plan.begin()
        self._stand(now)
        self._to(HOLD, "enabled")

    def hold(self, now: int) -> None:
        """Brake, and stay so whatever is planned until told to go on; a person's hand may move it."""
        self._stand(now)
        self._paused = True
        if self.state in (RUN, TELEOP):
            self._to(HOLD, TOLD)

    def go(self, now: int) -> None:
        """What is observed from now on runs again."""
        require_may("go", self.state)
        self._stand(now)
        self._paused = False

    def limp(self) -> None:
        """Torque off: the arm falls."""
        require_may("limp", self.state)
        if not self.guard.resting:
            raise UserError("the arm still moves: wait until it is at rest, then take the torque off")
        self.arm.stop(Stop.LIMP)
        self.sent = None
        self._to(LIMP, "told to be limp")

    def clear(self, now: int) -> None:
        """A person has seen to what stopped the arm; it stays where it is until it is enabled."""
        if not self.stopped_by:
            raise UserError(f"the arm is {self.state} and nothing stopped it: there is nothing to clear")
        if pressed := self.latched():
            raise UserError(f"the emergency stop is pressed ({pressed}): release it first")
        if self._gone:
            self.arm.close()
            self.arm.open()
            self._gone = False
        self.eyes.forget(now)
        state = self.eyes.first(now)
        if any(state.status):
            raise UserError(f"the arm says {self.arm.explain(state.status)}: see to it, then clear again")
        self.stopped_by = ""

    def estop(self, why: str) -> None:
        if self.state not in (OFF, ESTOP):
            self._end(ESTOP, why)

    def close(self) -> None:
        require_may("close", self.state)
        self.arm.close()
        self.sent = None
        self._to(OFF, "closed")

    # What policies and teleoperators do.

    def beat(self, at_ns: int) -> None:
        """The policy was alive then."""
        self._beat_ns = at_ns

    def hush(self) -> None:
        """The policy is gone, and with it what it planned; another one counts its chunks anew."""
        self._beat_ns = None
        self.plan.begin()

    def submit(self, chunk: Chunk, now: int) -> str:
        """A sign of life too. "" or why it was refused."""
        self._beat_ns = now
        why = ""
        if self.state not in MOVES:
            why = "a chunk for an arm that is not enabled"
        elif chunk.seen_ns < self._free_ns:
            why = "a chunk that was observed before a person let go"
        if why:
            self.plan.counts[why] += 1
        return why or self.plan.put(chunk, now)

    def hand(self, q: Row | None, at_ns: int) -> None:
        """Where a person who holds the deadman switch wants the arm to be; None: nobody does."""
        self._hand = None if q is None else (at_ns, q)

    # The tick.

    def tick(self, now: int) -> None:
        self.counts["ticks"] += 1
        if self.state is OFF:
            return
        self.look(now)
        if (pressed := self.latched()) and self.state is not ESTOP:
            self._end(ESTOP, pressed)
        if self.state not in STOPPED:
            self._judge(now)
        if self.state in STOPPED:
            self._settle()
        elif self.state is not LIMP:
            self._move(now)

    def look(self, now: int) -> None:
        """Read, and believe it if it can be."""
        if not self._gone:
            try:
                self.eyes.look(now)
            except PortLost as e:
                self._lose(e)

    @property
    def seen(self) -> ArmState | None:
        return self.eyes.seen

    @property
    def seen_ns(self) -> int:
        return self.eyes.seen_ns

    def _judge(self, now: int) -> None:
        age = self.eyes.age_ns(now)
        if age > self.ages.lost_ns:
            return self._end(
                FAULT, f"nothing believable was read for {age / 1e6:.0f} ms: check the cable and the power"
            )
        if self.watch and self.seen and age == 0:
            trouble = self.watch(self.seen, self.sent, now)
            self._held = trouble.text if trouble else ""
            if trouble and trouble.fault:
                return self._end(FAULT, trouble.text)

    def _move(self, now: int) -> None:
        state, goal, why = self._choose(now)
        command = self.guard(goal)
        if self.guard.refused:
            state, why = HOLD, self.guard.refused
        self._to(state, why)
        self._command(command)

    def _choose(self, now: int) -> tuple[State, Row | None, str]:
        """The state of this tick, its goal, and why there is none."""
        hand = self._hand
        driven = hand is not None and now - hand[0] <= self.ages.hand_ns
        if driven or self.state is TELEOP:
            self._stand(now)  # nothing that was seen up to now may run later
        age = self.eyes.age_ns(now)
        if age > self.ages.stale_ns:
            return HOLD, None, f"the state is {age / 1e6:.0f} ms old"
        if self._held:
            return HOLD, None, self._held
        if hand is not None and driven:
            return TELEOP, hand[1], "a person moves it"
        if self.state is TELEOP:
            return HOLD, None, "the person let go"
        if self._paused:
            return HOLD, None, TOLD
        if self._beat_ns is None or now - self._beat_ns > self.ages.beat_ns:
            return HOLD, None, "the policy says nothing"
        goal = self.plan.goal(now)
        return (HOLD, None, "nothing is planned") if goal is None else (RUN, goal, "")

    def _settle(self) -> None:
        """Brake; once at rest the arm's own way to stay, from where it really is."""
        if self._settled or self._gone or self.sent is None:
            return
        if not self.guard.resting:
            return self._command(self.guard(None))
        try:
            self.arm.stop(self.at_stop if self.state is ESTOP else Stop.HOLD)
            self._settled = True
        except ReadFailed:  # the next tick tries again
            self.counts["reads that failed"] += 1
        except PortLost as e:
            self._lose(e)

    def _command(self, q: Row) -> None:
        try:
            self.arm.command(q)
            self.sent = q
        except PortLost as e:
            self._lose(e)

    def _lose(self, error: PortLost) -> None:
        self._gone = True
        self._end(FAULT, f"the port is lost: {error}")

    def _end(self, state: State, why: str) -> None:
        if self.state in STOPPED and state is FAULT:
            return
        self.stopped_by, self._settled = why, False
        self.plan.clear()
        self._to(state, why)

    def _stand(self, now: int) -> None:
        self.plan.clear()
        self._free_ns = now

    def _to(self, state: State, why: str) -> None:
        if state is not self.state:
            assert state in GOES[self.state], f"{self.state} to {state}"
            self.counts[f"{self.state} to {state}"] += 1
        self.state, self.why = state, why
