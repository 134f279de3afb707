"""The loop of an arm under a clock that the test advances: every transition, every age, exact.

Mutations that turn these red: an entry of `GOES`; `>` for `>=` in an age; a plan that survives a person's hand; `clear` that enables;
`enable` that asks nobody; a state that is believed because its checksum is right.
"""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyarm.real_robot.arm import Stop
from polyarm.real_robot.limits import Limits
from polyarm.real_robot.loop import Loop
from polyarm.real_robot.plan import Chunk, Plan
from polyarm.real_robot.safety import Filter, Watch
from polyarm.real_robot.states import GOES, State
from polyarm.spec import UserError
from tests.fake_arm import SPEC, FakeArm

MS = 1_000_000
OFF, LIMP, HOLD, RUN, TELEOP, FAULT, ESTOP = State
LIMITS = Limits.of(SPEC, lag=(0.3, math.inf), voltage_v=(4.5, 8.0))


class Bench:
    """A loop, its arm, its clock at 10 ms a tick, and a latch."""

    def __init__(self, body=None):
        self.now, self.pressed, self.number = 0, "", 0
        self.arm = FakeArm(lambda: self.now)
        watch = Watch(LIMITS, SPEC.joints, self.arm.explain)
        guard = Filter(LIMITS, 0.01, body)
        self.loop = Loop(self.arm, Plan(2), guard, watch, latched=lambda: self.pressed)

    def tick(self, n=1, beat=True):
        for _ in range(n):
            if beat:
                self.loop.beat(self.now)
            self.loop.tick(self.now)
            self.now += 10 * MS
        return self.loop.state

    def submit(self, *rows, seen=None, dt_ms=1000):
        self.number += 1
        seen = self.now if seen is None else seen
        return self.loop.submit(Chunk(self.number, seen, self.now, dt_ms * MS, rows or ((0.5, 0.02),)), self.now)

    def to(self, state):
        """Bring it there from OFF."""
        loop = self.loop
        if state is OFF:
            return self
        loop.open(self.now)
        if state is LIMP:
            return self
        loop.enable(self.now)
        if state is RUN:
            self.submit()
        if state is TELEOP:
            loop.hand((0.2, 0.02), self.now)
        if state is FAULT:
            self.arm.status = (0, 32)
        if state is ESTOP:
            self.pressed = "a key"
        self.tick(3)
        assert loop.state is state
        self.arm.status, self.pressed = (0, 0), ""
        return self


ACTS = {
    "open": lambda b: b.loop.open(b.now),
    "enable": lambda b: b.loop.enable(b.now),
    "hold": lambda b: b.loop.hold(b.now),
    "go": lambda b: b.loop.go(b.now),
    "limp": lambda b: b.loop.limp(),
    "clear": lambda b: b.loop.clear(b.now),
    "estop": lambda b: b.loop.estop("a pedal"),
    "close": lambda b: b.loop.close(),
    "chunk": lambda b: (b.submit(), b.tick()),
    "deadman": lambda b: (b.loop.hand((0.2, 0.02), b.now), b.tick()),
    "let go": lambda b: (b.loop.hand(None, b.now), b.tick()),
    "wait": lambda b: b.tick(beat=True),
    "status bits": lambda b: (setattr(b.arm, "status", (4, 0)), b.tick(3)),
    "port lost": lambda b: (b.arm.faults.append("gone"), b.tick()),
    "latch": lambda b: (setattr(b, "pressed", "a key"), b.tick()),
}
TABLE = {  # what each act makes of each state; no: it is refused
    # from:         OFF    LIMP   HOLD   RUN    TELEOP FAULT  ESTOP
    "open":        "LIMP   no     no     no     no     no     no",
    "enable":      "no     HOLD   no     no     no     no     no",
    "hold":        "OFF    LIMP   HOLD   HOLD   HOLD   FAULT  ESTOP",
    "go":          "no     no     HOLD   no     no     no     no",
    "limp":        "no     no     LIMP   no     no     LIMP   LIMP",
    "clear":       "no     no     no     no     no     FAULT  ESTOP",
    "estop":       "OFF    ESTOP  ESTOP  ESTOP  ESTOP  ESTOP  ESTOP",
    "close":       "no     OFF    OFF    no     no     OFF    OFF",
    "chunk":       "OFF    LIMP   RUN    RUN    TELEOP FAULT  ESTOP",
    "deadman":     "OFF    LIMP   TELEOP TELEOP TELEOP FAULT  ESTOP",
    "let go":      "OFF    LIMP   HOLD   RUN    HOLD   FAULT  ESTOP",
    "wait":        "OFF    LIMP   HOLD   RUN    TELEOP FAULT  ESTOP",
    "status bits": "OFF    FAULT  FAULT  FAULT  FAULT  FAULT  ESTOP",
    "port lost":   "OFF    FAULT  FAULT  FAULT  FAULT  FAULT  ESTOP",
    "latch":       "OFF    ESTOP  ESTOP  ESTOP  ESTOP  ESTOP  ESTOP",
}  # fmt: skip


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("act", TABLE)
def test_every_act_in_every_state(act, state):
    bench, said = Bench().to(state), TABLE[act].split()[list(State).index(state)]
    expected = state if said == "no" else State(said)
    if said == "no":
        with pytest.raises(UserError):
            ACTS[act](bench)
    else:
        ACTS[act](bench)
    assert bench.loop.state is expected
    assert expected is state or expected in GOES[state]


@given(st.lists(st.tuples(st.sampled_from(sorted(ACTS)), st.integers(0, 30)), max_size=15))
@settings(max_examples=25, deadline=None)
def test_no_order_of_acts_leaves_the_table_or_the_limits_or_moves_a_stopped_arm(acts):
    bench, stopped = Bench(), False
    for act, ticks in acts:
        before = len(bench.arm.said)
        try:
            ACTS[act](bench)
        except UserError:
            pass
        stopped = bool(bench.loop.stopped_by)
        bench.arm.status, bench.pressed = (0, 0), ""
        bench.tick(ticks)
        if stopped:
            assert bench.loop.state in (FAULT, ESTOP, LIMP, OFF)
        assert all(-1 <= x[0] <= 1 and 0 <= x[1] <= 0.03 for x in bench.arm.said[before:] if isinstance(x, tuple))
    steps = [k for k in bench.loop.counts if " to " in k]
    assert all(State(b) in GOES[State(a)] for a, b in (k.split(" to ") for k in steps))


def test_told_to_hold_it_holds_whatever_is_planned_until_told_to_go_on():
    """Red where only the plan is forgotten: the policy's next chunk would run. A hand may move it meanwhile."""
    bench = Bench().to(RUN)
    bench.loop.hold(bench.now)
    assert bench.submit() == "" and bench.tick(5) is HOLD and bench.loop.why == "told to hold"
    bench.loop.hand((0.1, 0.01), bench.now)
    assert bench.tick() is TELEOP
    bench.loop.hand(None, bench.now)
    bench.submit()
    assert bench.tick(2) is HOLD
    bench.loop.go(bench.now)
    assert bench.tick() is HOLD  # what was planned before is forgotten
    assert bench.submit() == "" and bench.tick() is RUN


@pytest.mark.parametrize("state", (FAULT, ESTOP))
def test_a_stop_ends_by_a_person_who_clears_and_enables(state):
    bench = Bench().to(state)
    bench.submit()
    assert bench.tick(50) is state
    bench.loop.clear(bench.now)
    assert bench.tick(50) is state  # cleared is not enabled
    bench.loop.enable(bench.now)
    assert bench.tick(20) is HOLD and bench.submit() == "" and bench.tick() is RUN


def test_limp_is_no_way_round_clearing():
    bench = Bench().to(FAULT)
    bench.tick(20)
    bench.loop.limp()
    with pytest.raises(UserError, match="clear it"):
        bench.loop.enable(bench.now)


def test_what_still_is_wrong_is_not_cleared():
    bench = Bench().to(FAULT)
    bench.arm.status = (4, 0)
    with pytest.raises(UserError, match="a: bits 0x4"):
        bench.loop.clear(bench.now)
    bench = Bench().to(ESTOP)
    bench.pressed = "a key"
    with pytest.raises(UserError, match="is pressed"):
        bench.loop.clear(bench.now)


def test_enabling_does_not_move_and_asks_for_a_pose_inside():
    bench = Bench()
    bench.loop.open(0)
    bench.loop.enable(0)
    assert bench.tick(30) is HOLD
    assert {x for x in bench.arm.said if isinstance(x, tuple)} == {(0.1, 0.01)}
    bench = Bench()
    bench.arm.q = (1.2, 0.01)
    bench.loop.open(0)
    with pytest.raises(UserError, match="a stands at 1.200 rad, its limits are -1.000 to 1.000"):
        bench.loop.enable(0)
    assert bench.loop.state is LIMP and not bench.arm.torque


def test_enabling_believes_no_single_reading():
    bench = Bench()
    bench.loop.open(0)
    bench.arm.faults = ["late", lambda s: replace(s, q=(-0.9, 0.01)), None]
    bench.loop.enable(0)
    assert bench.loop.guard.q == (0.1, 0.01)


def test_ages_are_judged_to_the_tick():
    """50 ms old still runs, older holds, 250 ms old still holds, older is a fault; and it goes on by itself from HOLD."""
    bench = Bench().to(RUN)
    bench.arm.faults = ["late"] * 20
    assert [bench.tick() for _ in range(7)] == [RUN] * 5 + [HOLD] * 2
    bench.arm.faults = []
    assert bench.tick() is RUN
    bench.arm.faults = ["late"] * 40
    assert [bench.tick() for _ in range(27)] == [RUN] * 5 + [HOLD] * 20 + [FAULT] * 2
    assert "260 ms" in bench.loop.why


def test_the_policys_beat_is_judged_to_the_tick():
    bench = Bench().to(RUN)
    last = bench.now
    bench.loop.beat(last)
    states = [bench.tick(beat=False) for _ in range(20)]
    assert states == [RUN] * 16 + [HOLD] * 4 and "policy" in bench.loop.why  # 0 to 150 ms, then 160


def test_a_plan_that_runs_out_holds_after_the_grace():
    bench = Bench().to(HOLD)
    bench.submit((0.1, 0.02), dt_ms=100)
    assert [bench.tick() for _ in range(18)] == [RUN] * 15 + [HOLD] * 3


def test_one_damaged_or_late_state_is_never_believed():
    """Its checksum may be right. Red without `_near`; nan, which compares with nothing, too."""
    bench = Bench().to(HOLD)
    bench.loop.counts.clear()
    for q in ((0.9, 0.01), (math.nan, 0.01), (0.1, -0.02)):
        bench.arm.faults = [lambda s, q=q: replace(s, q=q)]
        assert bench.tick() is HOLD and bench.loop.seen.q == (0.1, 0.01)
    bench.arm.faults = [lambda s: replace(s, t_ns=s.t_ns - 50 * MS, q=(0.11, 0.01))]  # an old one, served again
    bench.tick()
    assert bench.loop.seen.q == (0.1, 0.01)
    assert bench.loop.counts["states that cannot be"] == 3 and bench.loop.counts["states that came again"] == 1


def test_a_real_jump_is_believed_once_there_was_time_for_it():
    bench = Bench().to(HOLD)
    bench.arm.torque, bench.arm.q = False, (0.4, 0.01)
    bench.tick(15)
    assert bench.loop.seen.q == (0.4, 0.01)


def test_a_person_takes_over_within_one_tick_and_gives_back_only_to_what_saw_it():
    bench = Bench().to(RUN)
    bench.tick(10)
    planned = bench.now
    bench.loop.hand((-0.5, 0.0), bench.now)
    was = bench.arm.goal[0]
    assert bench.tick() is TELEOP
    for _ in range(80):
        bench.loop.hand((-0.5, 0.0), bench.now)
        bench.tick()
        assert bench.arm.goal[0] <= was + 0.21  # brakes, then comes back: no jump
    assert bench.arm.goal[0] < 0 and bench.loop.plan.goal(bench.now) is None
    bench.loop.hand(None, bench.now)
    assert bench.tick() is HOLD
    assert "observed before" in bench.submit(seen=planned) and bench.tick() is HOLD
    assert bench.submit(seen=bench.now) == "" and bench.tick() is RUN


def test_a_hand_that_is_gone_lets_go():
    """The teleoperator was killed with the switch held."""
    bench = Bench().to(TELEOP)
    states = [bench.tick() for _ in range(20)]
    assert states[-1] is HOLD and states.count(TELEOP) == 13  # 150 ms from the hand's stamp, three ticks before


def test_a_stop_brakes_at_the_limit_and_then_stays_where_it_really_is():
    bench = Bench().to(HOLD)
    bench.submit((1.0, 0.02))
    bench.tick(20)
    assert bench.loop.guard.v[0] == pytest.approx(2.0)
    before = len(bench.arm.said)
    bench.loop.estop("a pedal")
    bench.tick(60)
    said = bench.arm.said[before:]
    assert said[-1] is Stop.HOLD and said.count(Stop.HOLD) == 1 and len(said) == 1 + 20  # v / a = 200 ms


def test_a_goal_that_is_refused_holds_and_says_why():
    class Wall:
        def depths(self, q):
            return (max(0.0, q[0] - 0.3), 0.0, 0.0)

        def project(self, q):
            return q

    bench = Bench(Wall()).to(HOLD)
    bench.submit((0.9, 0.01))
    bench.tick(100)
    assert (bench.loop.state, bench.loop.why) == (HOLD, "workspace") and 0.25 < bench.arm.goal[0] <= 0.3
    bench.submit((0.0, 0.01))
    assert bench.tick() is RUN


def test_an_unplugged_arm_comes_back_by_a_person_only():
    bench = Bench().to(RUN)
    bench.arm.faults = ["gone"]
    assert bench.tick() is FAULT and "the cable was pulled" in bench.loop.why
    said = len(bench.arm.said)
    assert bench.tick(20) is FAULT and len(bench.arm.said) == said  # nothing is sent into nothing
    bench.loop.clear(bench.now)
    assert bench.arm.said[said:] == ["close", "open"]
    bench.loop.enable(bench.now)
    assert bench.tick() is HOLD


@pytest.mark.parametrize(
    "what, ticks, state, says",
    [
        ({"temperature_c": (61.0, 30.0)}, 2, HOLD, "a is at 61 degC"),
        ({"temperature_c": (30.0, 75.0)}, 2, FAULT, "b is at 75 degC"),
        ({"voltage_v": (5.0, 3.0)}, 21, FAULT, "b has 3.0 V"),
    ],
)
def test_what_is_measured_stops_the_arm(what, ticks, state, says):
    bench = Bench().to(RUN)
    bench.arm.extra = what
    assert [bench.tick() for _ in range(ticks)] == [RUN] * (ticks - 1) + [state] and says in bench.loop.why


def test_an_arm_that_is_blocked_is_a_fault():
    bench = Bench().to(HOLD)
    bench.arm.torque = False  # it does not follow
    bench.submit((0.8, 0.01))
    assert bench.tick(25) is RUN and bench.tick(60) is FAULT and "see what blocks it" in bench.loop.why
