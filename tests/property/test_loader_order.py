"""The order of batches is a pure function of (seed, epoch, rank, world): what was seen can be told, and gone on from."""

from itertools import chain, islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polyarm.datasets.windows import Loader, Windows, order
from polyarm.spec import ActionSpace, ObsSpace, Spec, Stream, UserError


class Memory:
    """One episode of n rows; the window that starts at row i shows i."""

    def __init__(self, n):
        self.episode_ends = np.array([n])
        self.spec = Spec(
            ObsSpace((Stream("q", "state", (1,), ("q",)),), 10.0), ActionSpace(("a",), ("m",), "base", 10.0)
        )
        self.rows = np.arange(n, dtype="f4")[:, None]

    def stream(self, name):
        return self.rows


def windows(n):
    demos = Memory(n)
    return Windows(demos, demos.spec, horizon=1, n_obs_steps=1, n_action_steps=1)


def seen(clips):
    return [clip.action[:, 0, 0, 0].int().tolist() for clip in clips]


@given(n=st.integers(0, 200), seed=st.integers(0, 5), epoch=st.integers(0, 5), world=st.integers(1, 5))
def test_ranks_share_out_every_item_once(n, seed, epoch, world):
    parts = [order(n, seed, epoch, rank, world) for rank in range(world)]
    assert sorted(np.concatenate(parts)) == list(range(n))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(
    n=st.integers(0, 200),
    seed=st.integers(0, 5),
    epoch=st.integers(0, 5),
    world=st.integers(1, 5),
    run=st.integers(2, 40),
)
def test_runs_of_neighbours_are_a_permutation_too(n, seed, epoch, world, run):
    """With one rank every item but the first of its run, whose cuts shift from epoch to epoch, follows the one before it.
    Mutations: the last run dropped where it is short, cuts at multiples of the run alone."""
    parts = [order(n, seed, epoch, rank, world, run) for rank in range(world)]
    assert sorted(np.concatenate(parts)) == list(range(n))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    alone = order(n, seed, epoch, neighbours=run)
    breaks = np.count_nonzero(np.diff(alone) != 1)
    assert breaks <= -(-n // run)
    cuts = {int(i) % run for i in alone[1:][np.diff(alone) != 1] if i}
    assert len(cuts) <= 1


def test_where_runs_are_cut_differs_from_epoch_to_epoch():
    """Mutation: the same cuts, so that the same windows share a batch for ever."""
    cuts = set()
    for epoch in range(20):
        items = order(100, 0, epoch, neighbours=10)
        cuts |= {int(i) % 10 for i in items[1:][np.diff(items) != 1] if i}
    assert len(cuts) > 5


def test_epochs_and_seeds_differ():
    orders = {tuple(order(50, seed, epoch)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


@settings(max_examples=25, deadline=None)
@given(n=st.integers(8, 40), batch=st.integers(1, 4), world=st.integers(1, 2), start=st.integers(0, 30), data=st.data())
def test_going_on_is_never_having_stopped(n, batch, world, start, data):
    """A mutation that turns this red: forgetting the batches of the epoch that were seen already."""
    rank = data.draw(st.integers(0, world - 1))
    make = lambda step: Loader(windows(n), batch, seed=3, rank=rank, world=world, start_step=step)
    unbroken = seen(islice(make(0), start + 8))
    assert seen(islice(make(start), 8)) == unbroken[start:]
    assert make(0).items(start).tolist() == unbroken[start]


@given(n=st.integers(8, 60), batch=st.integers(1, 4), world=st.integers(1, 2))
@settings(max_examples=25, deadline=None)
def test_an_epoch_shows_no_window_twice_on_any_rank(n, batch, world):
    loaders = [Loader(windows(n), batch, seed=1, rank=rank, world=world) for rank in range(world)]
    steps = loaders[0].steps_per_epoch
    assert {loader.steps_per_epoch for loader in loaders} == {steps} and n - steps * batch * world < batch * world
    for epoch in range(2):
        shown = [i for loader in loaders for s in range(steps) for i in loader.items(epoch * steps + s)]
        assert len(set(shown)) == len(shown) == steps * batch * world


def test_workers_keep_the_order():
    alone = seen(islice(Loader(windows(40), 4, seed=0, start_step=7), 12))
    assert seen(islice(Loader(windows(40), 4, seed=0, start_step=7, num_workers=2), 12)) == alone


def test_starting_late_reads_nothing_before():
    w = windows(40)
    read = []
    gather = w.__getitems__
    w.__getitems__ = lambda items: read.append(list(items)) or gather(items)
    loader = Loader(w, 4, seed=0, start_step=1000)
    next(iter(loader))
    assert read == [loader.items(1000).tolist()]


def test_a_batch_larger_than_the_data_is_refused_unless_partial():
    with pytest.raises(UserError, match="batch_size=9 for rank 1 of 2 with 17 windows, 8 a rank"):
        Loader(windows(17), 9, seed=0, rank=1, world=2)
    small = Loader(windows(5), 9, seed=0, partial=True)
    assert sorted(chain(*seen(small.one_epoch()))) == list(range(5))
    with pytest.raises(UserError, match="use one_epoch"):
        iter(small)


def test_held_out_windows_come_once_and_in_the_same_order():
    loader = Loader(windows(11), 4, seed=2, partial=True)
    first, second = seen(loader.one_epoch()), seen(loader.one_epoch())
    assert first == second and [len(b) for b in first] == [4, 4, 3]
    assert sorted(chain(*first)) == list(range(11))


def test_every_tensor_of_a_batch_is_pinned(monkeypatch):
    """torch pins tensors in tuples and dicts and passes a clip by. A mutation that turns this red: handing it the clip."""
    from torch.utils.data._utils.pin_memory import pin_memory

    options, pinned = {}, []
    monkeypatch.setattr("polyarm.datasets.windows.DataLoader", lambda *_, **given: options.update(given) or [])
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x, *_: pinned.append(x) or x)
    iter(Loader(windows(9), 2, seed=0, pin_memory=True))
    clip = windows(9)[0]
    pin_memory(options["collate_fn"](clip))
    assert options["pin_memory"] and {id(x) for x in pinned} == {
        id(x) for x in (clip.obs["q"], clip.action, clip.reset)
    }
