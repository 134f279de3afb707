"""The filter: whatever is asked for, what is commanded keeps its promises; and what is measured stops the arm.

Mutations that turn these red: the smooth `sqrt(2 a room)` in place of `reach`; a limit left out of `_toward`; `ROUNDING` of 1;
checking the present pose in place of the one that a stop ends in; `_guarded` without its second try.
"""

import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyarm.real_robot.arm import ArmState
from polyarm.real_robot.body import so101_body
from polyarm.real_robot.limits import Limits
from polyarm.real_robot.safety import Filter, Watch, reach, stop
from polyarm.sim.mujoco import so101
from polyarm.spec import UserError

DT = 0.01
PLAIN = Limits((-1.0, 0.0, -2.5), (1.0, 0.032, 2.5), (3.0, 0.3, 2.0), (25.0, 4.0, 7.0))
ARM = Limits(
    tuple(so101.LIMITS_RAD[:, 0].tolist()) + (0.0,), tuple(so101.LIMITS_RAD[:, 1].tolist()) + (0.032,), (3.0,) * 5 + (0.3,),
    (25.0,) * 5 + (4.0,), (-0.05, -0.35, 0.004), (0.42, 0.35, 0.5), 0.02,
)  # fmt: skip
WORK = (*so101.top_down(0.2, 0.0, 0.08).tolist(), 0.02)
body = cache(lambda: so101_body(ARM))

anything = st.one_of(
    st.floats(), st.floats(-3, 3), st.sampled_from((math.nan, math.inf, -math.inf, 1e308, -1e308, 0.0))
)
goals = st.one_of(st.none(), st.tuples(anything, anything, anything), st.just((0.0, 0.0)))
streams = st.lists(st.tuples(goals, st.integers(1, 40)), min_size=1, max_size=12)  # each goal for so many ticks


def commands(guard, stream):
    """Every command, the start first."""
    return [guard.q, *(guard(goal) for goal, ticks in stream for _ in range(ticks))]


def within(rows, limits):
    """The promise, of differences of commands, as floats and without tolerance. The arm starts at rest."""
    q = np.array([rows[0], *rows])
    v = np.diff(q, axis=0) / DT
    assert (q >= limits.low).all() and (q <= limits.high).all()
    assert (np.abs(v) <= limits.velocity).all()
    assert (np.abs(np.diff(v, axis=0) / DT) <= limits.acceleration).all()


@given(streams)
@settings(max_examples=100, deadline=None)
def test_any_stream_of_goals_stays_within_position_velocity_and_acceleration(stream):
    guard = Filter(PLAIN, DT)
    within(commands(guard, stream), PLAIN)


@given(streams, st.tuples(st.floats(-1, 1), st.floats(0, 0.032), st.floats(-2.5, 2.5)))
@settings(max_examples=50, deadline=None)
def test_without_a_goal_it_comes_to_rest_within_v_over_a(stream, q):
    guard = Filter(PLAIN, DT)
    guard.start(q)
    commands(guard, stream)
    least = max(math.ceil(abs(v) / (a * DT) - 1e-6) for v, a in zip(guard.v, PLAIN.acceleration, strict=True))
    ends = guard._rest(guard.q, guard.v)
    rows = [guard(None) for _ in range(least + 1)]
    assert guard.resting and rows[-1] == rows[max(least - 1, 0)]
    np.testing.assert_allclose(rows[-1], ends, atol=1e-9)
    assert least * DT <= max(v / a for v, a in zip(PLAIN.velocity, PLAIN.acceleration, strict=True)) + DT


@given(st.floats(1e-9, 100), st.floats(0.1, 100))
def test_the_largest_speed_that_still_stops_is_exact(room, a):
    """`reach` and the way it takes are inverse: no speed is given away, none is too fast."""
    speed = reach(room, a, DT)
    assert speed * DT + stop(speed, a, DT) == pytest.approx(room, rel=1e-9)


def test_a_goal_is_reached_and_kept():
    """Red where the cap near the goal is left out: it would swing about it."""
    guard = Filter(PLAIN, DT)
    goal = (0.9, 0.03, -2.0)
    rows = [guard(goal) for _ in range(200)]
    assert rows[-1] == pytest.approx(goal, abs=1e-12) and guard.resting
    assert np.all(np.diff([r[0] for r in rows]) >= -1e-12)


def test_from_outside_the_limits_only_the_way_in_is_open():
    """An arm that was moved by hand beyond its limits must not jump, nor go further."""
    guard = Filter(PLAIN, DT)
    guard.start((1.2, 0.01, 0.0))
    assert guard(None)[0] == 1.2
    rows = [guard((5.0, 0.01, 0.0)) for _ in range(100)]
    q = np.array([1.2, *(r[0] for r in rows)])
    assert q[-1] == 1.0 and (np.diff(q) <= 1e-12).all() and (np.abs(np.diff(q, 2)) / DT**2 <= 25).all()


arm_goal = st.tuples(*(st.floats(low - 0.5, high + 0.5) for low, high in zip(ARM.low, ARM.high, strict=True)))


@given(st.lists(st.tuples(st.one_of(st.none(), arm_goal), st.integers(1, 30)), min_size=1, max_size=6))
@settings(max_examples=25, deadline=None)
def test_the_arm_always_comes_to_rest_in_the_box_above_the_floor_and_apart(stream):
    guard = Filter(ARM, DT, body())
    guard.start(WORK)
    rows = [guard.q]
    for goal, ticks in stream:
        for _ in range(ticks):
            rows.append(guard(goal))
            assert max(body().depths(guard._rest(guard.q, guard.v))) <= 1e-9 * len(rows)
    within(rows, ARM)


def test_a_goal_below_the_floor_is_reached_above_it():
    """The tip goes where it was told to along the floor, and nothing holds silently. Red without `project`."""
    guard = Filter(ARM, DT, body())
    guard.start(WORK)
    goal = (*so101.top_down(0.24, 0.06, -0.05).tolist(), 0.02)
    for _ in range(300):
        guard(goal)
    x, y, z = body().tip(guard.q)
    assert 0.004 <= z < 0.007 and math.dist((x, y), (0.24, 0.06)) < 0.03
    assert guard.counts["projected"] and not guard.refused


def test_a_way_that_leads_through_the_floor_goes_along_it():
    """Both ends are fine, the straight way of the joints is not. Red where a refused step only brakes."""
    guard = Filter(
        replace(ARM, box_low_m=(-0.05, -0.35, 0.05)), DT, so101_body(replace(ARM, box_low_m=(-0.05, -0.35, 0.05)))
    )
    down = so101.top_down(0.2, 0.0, 0.04).tolist()
    start, goal = ((*down[:3], down[3] + swing, 0.0, 0.02) for swing in (-0.6, 0.6))
    middle = tuple((a + b) / 2 for a, b in zip(start, goal, strict=True))
    assert max(guard.body.depths(start)) == max(guard.body.depths(goal)) == 0 < max(guard.body.depths(middle))
    guard.start(start)
    for _ in range(600):
        guard(goal)
    assert math.dist(guard.q[:5], goal[:5]) < 0.02


def test_links_that_would_meet_hold_and_say_so():
    """Folded so far that the hand would be in the upper arm. Red where the pose now is checked: it is too late then."""
    guard = Filter(replace(ARM, box_low_m=(-1.0, -1.0, -1.0), box_high_m=(1.0, 1.0, 1.0), floor_m=-1.0), DT, body())
    folded = next(q for q in product_of_poses() if body().depths(q)[2] > 0.002)
    guard.start((0.0, 0.0, 0.0, 0.0, 0.0, 0.02))
    said = set()
    for _ in range(300):
        guard(folded)
        said.add(guard.refused)
        assert body().depths(guard.q)[2] == 0
    assert "self-collision" in said and guard.counts["self-collision"] > 100


def product_of_poses():
    for lift in np.linspace(-1.7, 1.7, 12):
        for elbow in np.linspace(-1.65, 1.65, 12):
            for flex in np.linspace(-1.6, 1.9, 12):
                yield (0.0, float(lift), float(elbow), float(flex), 0.0, 0.02)


def test_an_arm_that_lies_on_the_table_may_rise():
    """Depth may not grow, but the way out of a bad pose is open. Red where any depth refuses."""
    guard = Filter(ARM, DT, body())
    guard.start((*so101.top_down(0.2, 0.0, -0.004).tolist(), 0.02))
    for _ in range(200):
        guard(WORK)
    assert math.dist(guard.q, WORK) < 1e-6


JOINTS = ("a", "b")


def watch(**limits):
    limits = Limits((-1.0, -1.0), (1.0, 1.0), (1.0, 1.0), (1.0, 1.0), **limits)
    return Watch(limits, JOINTS, lambda bits: f"bits {bits}")


def state(now, **what):
    return ArmState(now, (0.0, 0.0), **what)


@pytest.mark.parametrize(
    "limits, what, name, fault, after_s",
    [
        ({}, {"status": (0, 4)}, "status", True, 0.01),
        ({}, {"temperature_c": (30.0, 71.0)}, "too hot", True, 0.01),
        ({}, {"temperature_c": (61.0, 30.0)}, "hot", False, 0.01),
        ({"voltage_v": (4.5, 8.0)}, {"voltage_v": (5.0, 4.0)}, "voltage", True, 0.2),
        ({"lag": (0.4, math.inf)}, {"sent": (0.5, 0.0)}, "lag", True, 0.3),
        ({"load": (math.inf, 0.9)}, {"load": (0.0, -0.95)}, "load", False, 2.0),
    ],
)
def test_what_is_measured_is_judged_and_named(limits, what, name, fault, after_s):
    """Exactly from `after_s` on; a single reading, which may be damaged, never; once over, no more."""
    watching, sent = watch(**limits), what.pop("sent", None)
    for now in range(0, int(after_s * 1e9), 10_000_000):
        assert watching(state(now, **what), sent, now) is None
    now = int(after_s * 1e9)
    found = watching(state(now, **what), sent, now)
    assert (found.name, found.fault) == (name, fault) and watching.counts[name] == 1
    assert watching(state(now + 1), None, now + 1) is None
    assert watching(state(now + 2, **what), sent, now + 2) is None  # it starts again


def test_what_an_arm_does_not_say_is_no_alarm():
    nan = (math.nan, math.nan)
    watching = watch(voltage_v=(4.5, 8.0), load=(0.9, 0.9), lag=(0.1, 0.1))
    for now in range(10):
        assert watching(state(now * 10**9, temperature_c=nan, voltage_v=nan, load=nan), None, now * 10**9) is None
        assert watching(state(now * 10**9), None, now * 10**9) is None


@pytest.mark.parametrize(
    "wrong, says",
    [
        ({"velocity": (9.0, 0.3)}, "velocity of a is 9, fake can do 2"),
        ({"low": (-2.0, 0.0)}, "low of a is -2"),
        ({"velocity": (1.0,)}, "has 1 numbers for 2 joints"),
        ({"acceleration": (0.0, 1.0)}, "above 0"),
        ({"low": (math.nan, 0.0)}, "low"),
        ({"speed": 1}, "unknown limit 'speed'"),
        ({"box_low_m": (1.0, 0.0, 0.0), "box_high_m": (0.0, 1.0, 1.0)}, "is empty"),
    ],
)
def test_limits_that_make_no_sense_are_refused(wrong, says):
    from tests.fake_arm import SPEC

    with pytest.raises(UserError, match=says):
        Limits.of(SPEC, **wrong)
