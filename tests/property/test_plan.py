"""Rows by absolute time: what of a chunk is executed, and when. All exact.

Mutations that turn these red: `<` for `<=` in `_coming`; no grace; half a slot left out of `replace`; a chunk refused row by row.
"""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyarm.real_robot.plan import AHEAD_NS, Chunk, Plan
from polyarm.spec import UserError

MS = 1_000_000
SLOT = 50 * MS


def chunk(number, t_ms, *rows, seen_ms=0, dt=SLOT):
    return Chunk(number, seen_ms * MS, t_ms * MS, dt, tuple((float(x),) for x in rows))


def run(plan, *at_ms):
    goals = [plan.goal(t * MS) for t in at_ms]
    return [g and g[0] for g in goals]


def test_a_row_counts_from_its_time_for_its_slot_and_the_grace():
    plan = Plan(1, grace_ns=30 * MS)
    assert plan.put(chunk(0, 100, 1, 2), 0) == ""
    assert run(plan, 99, 100, 149, 150, 199, 200, 229) == [None, 1, 1, 2, 2, 2, 2]
    assert run(plan, 230, 231) == [None, None]


def test_lead_is_where_the_row_says_when_it_says():
    plan = Plan(1, "lead", grace_ns=0)
    plan.put(chunk(0, 100, 1, 2, 4), 0)
    assert run(plan, 100, 125, 150, 160, 200, 249, 250) == [1, 1.5, 2, 2.4, 4, 4, None]


def test_a_later_chunk_replaces_from_where_it_begins():
    plan = Plan(1)
    plan.put(chunk(0, 0, 1, 2, 3, 4), 0)
    plan.put(chunk(1, 90, 7, 8), 60 * MS)  # its grid is 10 ms earlier: the row of 100 is its own
    assert run(plan, 60, 89, 90, 139, 140, 189) == [2, 2, 7, 7, 8, 8]
    plan.put(chunk(2, 170, 9), 150 * MS)
    assert run(plan, 150, 169, 170) == [8, 8, 9]


@pytest.mark.parametrize("begins, until_then", [(120, 2), (125, 2), (130, 3)])
def test_a_row_that_would_last_less_than_half_a_slot_gives_way(begins, until_then):
    plan = Plan(1)
    plan.put(chunk(0, 0, 1, 2, 3, 4), 0)
    plan.put(chunk(1, begins, 7), 60 * MS)
    assert run(plan, 110, begins) == [until_then, 7]


def test_rows_in_the_past_are_dropped_and_counted_and_the_one_of_now_is_not():
    plan = Plan(1)
    assert plan.put(chunk(0, 0, 1, 2, 3), 60 * MS) == ""
    assert run(plan, 60, 100) == [2, 3] and plan.counts["rows in the past"] == 1


@pytest.mark.parametrize(
    "wrong, why",
    [
        (chunk(5, 100), "another shape"),
        (Chunk(5, 0, 100 * MS, SLOT, ((1.0,), (1.0, 2.0))), "another shape"),
        (chunk(5, 100, 1, dt=0), "another shape"),
        (chunk(5, 100, 1, math.nan), "not finite"),
        (chunk(5, 100, math.inf), "not finite"),
        (chunk(1, 100, 1), "came before"),
        (chunk(0, 100, 1), "came before"),
        (chunk(5, -100, 1, 2), "late"),
        (chunk(5, 1 + AHEAD_NS // MS, 1), "another clock"),
    ],
)
def test_a_chunk_with_any_fault_is_refused_whole_and_counted(wrong, why):
    plan = Plan(1)
    plan.put(chunk(1, 0, 1, 2, 3), 0)
    said = plan.put(wrong, 0)
    assert why in said and plan.counts[said] == 1
    assert run(plan, 0, 50, 100, 149) == [1, 2, 3, 3]  # as if it had never come


def test_cleared_is_empty_and_what_came_before_stays_so():
    plan = Plan(1)
    plan.put(chunk(3, 0, 1, 2), 0)
    plan.clear()
    assert run(plan, 0) == [None] and "before" in plan.put(chunk(3, 0, 1), 0) and plan.put(chunk(4, 0, 5), 0) == ""


def test_committed_rows_are_those_that_will_run():
    plan = Plan(1)
    plan.put(chunk(0, 0, 1, 2, 3, 4), 0)
    assert plan.committed(60 * MS, 2) == ((2.0,), (3.0,)) and plan.committed(60 * MS, 9) == ((2.0,), (3.0,), (4.0,))


def test_another_splice_sees_what_is_to_come():
    """Room for ensembling: the old and the new rows meet in one function."""

    def mean(old, chunk, new):
        were = {x.t_ns: x.row[0] for x in old}
        return [x._replace(row=((x.row[0] + were.get(x.t_ns, x.row[0])) / 2,)) for x in new]

    plan = Plan(1, splice=mean)
    plan.put(chunk(0, 0, 1, 2, 3), 0)
    plan.put(chunk(1, 50, 4, 5, 6), 0)
    assert run(plan, 50, 100, 150) == [3, 4, 6]


@given(st.lists(st.tuples(st.integers(-3, 8), st.integers(1, 6), st.integers(0, 100)), max_size=12))
def test_the_goal_is_always_a_row_of_the_newest_chunk_that_has_begun(puts):
    """Against a table of slots: each accepted chunk overwrites from its first row on, and cuts what is after it."""
    plan, slots, now = Plan(1, grace_ns=0), {}, 0
    for number, (start, length, wait) in enumerate(puts):
        new = chunk(number, start * 50, *range(number * 10, number * 10 + length))
        if not plan.put(new, now):
            first = max(start, now // SLOT)
            due = {start + i: x[0] for i, x in enumerate(new.rows) if start + i >= first}
            slots = {k: x for k, x in slots.items() if k < first} | due
        now += wait * MS
        goal = plan.goal(now)
        assert (goal and goal[0]) == slots.get(now // SLOT)


def test_an_unknown_way_between_rows_is_told():
    with pytest.raises(UserError, match="did you mean 'hold'"):
        Plan(1, "hald")
