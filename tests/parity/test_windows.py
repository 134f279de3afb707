"""Windows and splits are those of Diffusion Policy, section 2 of the published reference, whose printed numbers stand here."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polyarm.datasets.replay_buffer import Field, ReplayBuffer
from polyarm.datasets.windows import Loader, Windows, split_episodes, window_table
from polyarm.spec import ActionSpace, ObsSpace, Spec, Stream, UserError

XY = ("x", "y")


class Memory:
    """Demonstrations in memory. Row i of every stream is i, so that a window shows which rows it took."""

    def __init__(self, lengths):
        self.episode_ends = np.cumsum(lengths)
        n = int(self.episode_ends[-1])
        streams = (Stream("q", "state", (2,), XY), Stream("top", "image", (2, 2, 3)))
        self.spec = Spec(ObsSpace(streams, 10.0), ActionSpace(("a",), ("m",), "base", 10.0))
        self.rows = {
            "q": np.stack([np.arange(n), -np.arange(n)], 1).astype("f4"),
            "top": np.broadcast_to((np.arange(n) % 256).astype("u1")[:, None, None, None], (n, 2, 2, 3)),
            "action": np.arange(n, dtype="f4")[:, None],
        }

    def stream(self, name):
        return self.rows[name]


def windows(lengths, horizon=4, n_obs_steps=2, n_action_steps=3, **more):
    demos = Memory(lengths)
    return Windows(demos, demos.spec, horizon=horizon, n_obs_steps=n_obs_steps, n_action_steps=n_action_steps, **more)


def test_the_published_toy_table():
    """A mutation that turns this red: one start too few at either end."""
    assert window_table(np.array([5, 9]), 4, 1, 2).tolist() == [
        [0, 3, 1, 4], [0, 4, 0, 4], [1, 5, 0, 4], [2, 5, 0, 3], [3, 5, 0, 2],
        [5, 8, 1, 4], [5, 9, 0, 4], [6, 9, 0, 3], [7, 9, 0, 2],
    ]  # fmt: skip
    assert window_table(np.array([2]), 4, 1, 2).tolist() == [[0, 2, 1, 3], [0, 2, 0, 2]]


@pytest.mark.parametrize("length, count", [(20, 13), (200, 193)])
def test_windows_of_an_episode(length, count):
    assert len(window_table(np.array([length]), 16, 1, 7)) == count


def test_pads_are_cut_to_what_a_window_can_stick_out():
    ends = np.array([6])
    assert window_table(ends, 3, 9, 9).tolist() == window_table(ends, 3, 2, 2).tolist()
    assert window_table(ends, 3, -9, -9).tolist() == window_table(ends, 3, 0, 0).tolist()


def test_only_the_named_episodes():
    assert window_table(np.array([5, 9]), 4, 1, 2, episodes=[1]).tolist() == [
        [5, 8, 1, 4], [5, 9, 0, 4], [6, 9, 0, 3], [7, 9, 0, 2]
    ]  # fmt: skip
    with pytest.raises(UserError, match="there are 2"):
        window_table(np.array([5, 9]), 4, 1, 2, episodes=[2])


@pytest.mark.parametrize("n, held_out", [(206, [18, 90, 134, 157]), (200, [17, 87, 130, 153]), (50, [4])])
def test_the_published_split(n, held_out):
    train, val = split_episodes(n, 0.02, 42)
    assert val.tolist() == held_out
    assert sorted([*train, *val]) == list(range(n))


def test_the_published_ninety_episodes_of_pusht():
    train, val = split_episodes(206, 0.02, 42, max_train_episodes=90)
    assert len(train) == 90 and train[:8].tolist() == [7, 9, 10, 11, 13, 16, 20, 25]
    assert not set(train) & set(val)


def test_a_split_always_leaves_one_to_train_on():
    assert [len(part) for part in split_episodes(1, 0.5, 0)] == [1, 0]
    assert [len(part) for part in split_episodes(2, 0.99, 0)] == [1, 1]
    assert [len(part) for part in split_episodes(9, 0.0, 0)] == [9, 0]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4), horizon=st.integers(1, 6), k=st.integers(1, 3),
    stride=st.integers(1, 4), data=st.data(),
)  # fmt: skip
def test_a_batch_is_what_a_slow_reading_of_the_rule_gives(lengths, horizon, k, stride, data):
    """Mutations that turn this red: clip into the file instead of the episode; chain windows one row apart."""
    to, ta = data.draw(st.integers(1, horizon)), data.draw(st.integers(1, horizon))
    want, resets = [], []
    begin = 0
    for length in lengths:
        starts = range(-(to - 1), length - horizon + ta)
        for start in starts:
            chain = [start + j * stride for j in range(k)]
            if chain[-1] in starts:
                want.append([[begin + min(max(s + i, 0), length - 1) for i in range(horizon)] for s in chain])
                resets.append([s - stride not in range(-(to - 1), s) for s in chain])
        begin += length
    if not want:
        with pytest.raises(UserError, match="no episode holds"):
            windows(lengths, horizon, to, ta, k=k, stride=stride)
        return
    found = windows(lengths, horizon, to, ta, k=k, stride=stride)
    clip = found.__getitems__(np.arange(len(found)))
    assert clip.action[..., 0].tolist() == want
    assert clip.obs["q"][..., 0].tolist() == [[w[:to] for w in chain] for chain in want]
    assert (clip.obs["q"][..., 1] == -clip.obs["q"][..., 0]).all()
    assert (clip.obs["top"][..., 0, 0, 0] == clip.obs["q"][..., 0]).all()
    assert clip.reset.tolist() == resets
    assert (clip.action.dtype, clip.obs["top"].dtype, clip.reset.dtype) == (torch.float32, torch.uint8, torch.bool)


def test_acting_meets_the_chain_that_starts_with_reset():
    """Acting looks at rows 0, Ta, 2 Ta ...: windows start at 1 - To, 1 - To + Ta ...; only the first is a reset."""
    w = windows([40], horizon=8, n_obs_steps=2, n_action_steps=4, k=3)
    first = w[0]
    assert first.obs["q"][0, :, -1, 0].tolist() == [0, 4, 8]
    assert first.reset[0].tolist() == [True, False, False]
    assert [bool(w[i].reset[0, 0]) for i in range(6)] == [True] * 4 + [False] * 2


def test_episodes_too_short_for_a_chain_are_listed():
    w = windows([30, 5, 30], horizon=4, n_obs_steps=2, n_action_steps=3, k=4)
    assert w.short.tolist() == [1] and set(w.episode) == {0, 2}


def test_what_gives_no_window_is_said():
    """Mutations: episodes counted from 1; those of the whole file counted where some were asked for."""
    w = windows([20, 6] * 4, horizon=16, n_obs_steps=2, n_action_steps=8)
    said = w.left_out()
    assert said.startswith(
        "4 of 8 episodes are left out, shorter than a window (episodes 1, 3, 5, 7; at most 6 rows, 8 are"
    )
    assert said.endswith("lower policy.horizon or give data.pad_after=all")
    assert w.over([0, 1, 2]).left_out().startswith("1 of 3 episodes are left out, shorter than a window (episodes 1;")
    assert w.over([0, 2]).left_out() == windows([20, 6] * 4, horizon=16, pad_after=14).left_out() == ""
    many = windows([20] + [6] * 30, horizon=16, n_obs_steps=2, n_action_steps=8).left_out()
    assert "(episodes 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, ...; at most" in many


def test_as_many_rows_as_are_said_to_be_needed_give_a_window():
    for length in range(1, 20):
        lengths, settings = [30, length], {"horizon": 12, "n_obs_steps": 3, "n_action_steps": 4}
        assert bool(windows(lengths, **settings).left_out()) == (length < 7)
    assert "7 are needed" in windows([30, 2], **settings).left_out()


def test_windows_of_other_episodes_share_what_is_loaded():
    """A mutation that turns this red: loading anew for validation."""
    w = windows([9, 7, 12])
    other = w.over([2])
    apart = windows([9, 7, 12], episodes=[2])
    assert len(other) == len(apart) < len(w) and len(w) == len(windows([9, 7, 12]))
    ours, theirs = (x.__getitems__(range(len(x))).obs for x in (other, apart))
    assert all(torch.equal(ours[name], theirs[name]) for name in ("q", "top"))
    assert all(other.rows(name) is w.rows(name) for name in ("q", "top")) and other._action is w._action
    with pytest.raises(UserError, match="no episode holds"):
        windows([30, 2], horizon=12, n_obs_steps=3, n_action_steps=4).over([1])


def test_images_that_do_not_fit_are_read_for_each_batch_and_are_the_same():
    held, read = windows([9, 7]), windows([9, 7], ram_gib=0.0)
    items = [3, 0, 11, 3]
    assert torch.equal(held.__getitems__(items).obs["top"], read.__getitems__(items).obs["top"])


def pusht(path, **streams):
    known = {
        "keypoint": Stream("keypoint", "state", (18,), tuple(f"k{i}" for i in range(18))),
        "agent_pos": Stream("agent_pos", "state", (2,), XY),
        "image": Stream("image", "image", (96, 96, 3)),
    }
    spec = Spec(ObsSpace(tuple(known[s] for s in streams), 10.0), ActionSpace(XY, ("px", "px"), "world", 10.0))
    return ReplayBuffer(path, spec, {**streams, "action": Field("action")})


def test_the_human_pusht_demonstrations(pusht_zarr):
    demos = pusht(pusht_zarr, keypoint=Field("keypoint"), agent_pos=Field("state", (0, 1)), image=Field("img"))
    assert demos.episode_ends[-1] == 25650 and len(demos.episode_ends) == 206
    lengths = np.diff(demos.episode_ends, prepend=0)
    assert (lengths.min(), lengths.max()) == (49, 246)
    w = Windows(
        demos, demos.spec.__class__(demos.spec.obs.pick(["keypoint", "agent_pos"]), demos.spec.action),
        horizon=16, n_obs_steps=2, n_action_steps=8,
    )  # fmt: skip
    assert len(w) == 25650 - 206 * 7  # length - 16 + 7 + 1 + 1 each
    import zarr

    raw = zarr.open_group(pusht_zarr, mode="r")["data"]
    clip = w[1]  # the first that lies inside its episode
    assert np.array_equal(clip.obs["keypoint"][0, 0], raw["keypoint"][0:2].reshape(2, 18))
    assert np.array_equal(clip.obs["agent_pos"][0, 0], raw["state"][0:2, :2])
    assert np.array_equal(clip.action[0, 0], raw["action"][0:16])
    image = demos.stream("image")[np.array([[7, 3]])]
    assert image.dtype == np.uint8 and np.array_equal(image[0], raw["img"][0:8][[7, 3]].astype("u1"))


def test_the_loader_feeds_whole_batches():
    loader = iter(Loader(windows([30, 30]), 5, seed=0))
    assert next(loader).action.shape == (5, 1, 4, 1)
