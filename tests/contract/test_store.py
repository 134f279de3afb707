"""The store keeps every episode that `append` returned from, whatever happens next."""

import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from polyarm.datasets.chunks import ChunkRows
from polyarm.datasets.demos import Demos
from polyarm.datasets.disk import Disk
from polyarm.datasets.info import info
from polyarm.datasets.replay_buffer import Field, ReplayBuffer
from polyarm.datasets.store import Store, open_path
from polyarm.datasets.windows import Windows
from polyarm.sim.world import observation_space
from polyarm.spec import KINDS, ActionSpace, Kind, ObsSpace, Scale, Spec, Stream, UserError

NAMES = ("q", "top", "action", "time_s")


def spec(scale=None):
    streams = (Stream("q", "state", (3,), ("x", "y", "z"), ("m",) * 3), Stream("top", "image", (8, 6, 3)))
    return Spec(
        ObsSpace(streams, 20.0), ActionSpace(("a", "b"), ("m", "m"), "base", 20.0, scale=scale), {"env": "Toy-v1"}
    )


def episode(seed):
    """Its arrays follow from its number; 1 to 40 rows."""
    rng = np.random.default_rng(seed)
    t = int(rng.integers(1, 41))
    return {
        "q": rng.normal(size=(t, 3)).astype("f4"), "top": rng.integers(0, 255, (t, 8, 6, 3), dtype="u1"),
        "action": rng.normal(size=(t, 2)).astype("f4"), "time_s": rng.random() + np.cumsum(rng.uniform(0.04, 0.06, t)),
    }  # fmt: skip


def assert_holds(store, seeds):
    """Exactly these episodes, in this order, to the bit."""
    want = [episode(s) for s in seeds]
    assert store.seeds.tolist() == list(seeds)
    assert store.lengths.tolist() == [len(e["q"]) for e in want]
    for name in NAMES:
        found = store.read(name)
        assert np.array_equal(found, np.concatenate([e[name] for e in want]) if want else found[:0]), name


@pytest.fixture
def path(tmp_path):
    return tmp_path / "demos.zarr"


@pytest.fixture
def two(path):
    with Store.create(path, spec()) as store:
        for seed in (0, 1):
            store.append(episode(seed), seed)
    return path


def test_what_is_appended_is_read(path):
    with Store.create(path, spec(Scale((2.0, 1.0), (0.0, 0.5))), note="by hand") as store:
        for seed in range(5):
            store.append(episode(seed), seed, success=seed != 3)
        assert_holds(store, range(5))
    again = Store.open(path)
    assert isinstance(again, Demos)
    assert_holds(again, range(5))
    assert again.spec == spec(Scale((2.0, 1.0), (0.0, 0.5))) and again.attributes == {"note": "by hand"}
    assert again.successes.tolist() == [True, True, True, False, True]
    assert again.stream("top").dtype == np.uint8 and again.stream("q").dtype == np.float32


def test_a_plain_zarr_reader_sees_the_same(two):
    """The format is zarr's, not ours."""
    root = zarr.open_group(two, mode="r")
    assert root["meta/episode_ends"][:].tolist() == Store.open(two).episode_ends.tolist()
    for name in NAMES:
        assert np.array_equal(root[f"data/{name}"][:], Store.open(two).read(name))


def test_row_numbers_read_what_slices_read(path, monkeypatch):
    """A mutation that turns this red: row numbers counted within the chunk from the wrong chunk."""
    monkeypatch.setattr("polyarm.datasets.store.CHUNK_BYTES", 500)  # 3 images, 41 rows of q a chunk
    with Store.create(path, spec()) as store:
        for seed in range(6):
            store.append(episode(seed) | {"q": np.zeros_like(episode(seed)["q"])}, seed)
        store.append(episode(6), 6)
    store = Store.open(path)
    n = store.frames
    rows = np.random.default_rng(0).integers(0, n, (7, 2))
    for name in NAMES:
        all_rows = store.read(name)
        assert np.array_equal(store.stream(name)[rows], all_rows[rows])
        assert np.array_equal(store.stream(name)[5:n:3], all_rows[5:n:3])
    with pytest.raises(IndexError):
        store.stream("q")[np.array([n])]


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"q": np.zeros((4, 2))}, r"'q' has shape \(4, 2\): the spec wants \[t, 3\]"),
        ({"q": np.zeros((5, 3))}, "'q' has 5 rows|'top' has 4 rows and 'q' 5"),
        ({"q": np.full((4, 3), np.nan)}, "'q' holds nan in row 0"),
        ({"q": np.full((4, 3), 1e39)}, "'q' holds inf in row 0"),
        ({"top": np.zeros((4, 8, 6, 3))}, "'top' is float64: an image is uint8"),
        ({"time_s": np.array([0.0, 0.1, 0.1, 0.2])}, "'time_s' goes from 0.1 to 0.1 s at row 2"),
        ({"toop": np.zeros((4, 3))}, "unknown stream of an episode 'toop': did you mean 'top'"),
        ({"action": None}, "the episode has no 'action'"),
        ({"q": np.array([["x"] * 3] * 4)}, "'q' is <U1: give numbers"),
    ],
)
def test_a_wrong_episode_is_refused_and_leaves_nothing(two, change, sentence):
    good = {
        "q": np.zeros((4, 3)), "top": np.zeros((4, 8, 6, 3), "u1"), "action": np.zeros((4, 2)), "time_s": np.arange(4) / 20
    }  # fmt: skip
    wrong = {name: x for name, x in {**good, **change}.items() if x is not None}
    with Store.open(two, "a") as store:
        with pytest.raises(UserError, match=sentence):
            store.append(wrong, 7)
        assert_holds(store, [0, 1])
        store.append(episode(2), 2)
    assert_holds(Store.open(two), [0, 1, 2])


def test_a_second_writer_is_refused_until_the_first_is_done(two):
    with Store.open(two, "a"):
        with pytest.raises(UserError, match="being written by another process"):
            Store.open(two, "a")
        assert_holds(Store.open(two), [0, 1])  # readers may
    with Store.open(two, "a") as store:
        store.append(episode(2), 2)
    with pytest.raises(UserError, match="not open for writing"):
        store.append(episode(3), 3)
    with pytest.raises(UserError, match="not open for writing"):
        Store.open(two).append(episode(3), 3)


def test_a_path_that_is_no_store_says_so(two, tmp_path):
    with pytest.raises(UserError, match="did you mean 'demos.zarr'"):
        Store.open(tmp_path / "demo.zarr")
    with pytest.raises(UserError, match="is not a store"):
        Store.open(tmp_path)
    with pytest.raises(UserError, match="exists"):
        Store.create(two, spec())
    assert_holds(Store.open(two), [0, 1])
    assert [p.name for p in tmp_path.iterdir()] == ["demos.zarr"]  # the refused one left nothing
    with pytest.raises(UserError, match="'action': that name is taken"):
        Store.create(tmp_path / "x", Spec(ObsSpace((Stream("action", "image", (2, 2, 3)),), 1.0), spec().action))


class Cut(BaseException):
    """The power fails."""


def writes_of_an_append(path, monkeypatch, stop_at=None):
    """Appends episode 2; the process 'dies' before its write number `stop_at`. Returns how many writes were done."""
    done = 0
    put = Disk.put

    def counted(*arguments):
        nonlocal done
        if done == stop_at:
            raise Cut
        done += 1
        put(*arguments)

    with monkeypatch.context() as patch, Store.open(path, "a") as store:
        patch.setattr(Disk, "put", counted)
        try:
            store.append(episode(2), 2)
        except Cut:
            pass
    return done


@pytest.mark.parametrize("kept", [[], [0, 1]])
@pytest.mark.parametrize("stop", range(14))
def test_a_cut_before_any_write_of_an_append_loses_that_episode_alone(path, monkeypatch, kept, stop):
    """Fourteen writes: four arrays and two notes, each its length and its chunk, then the ends, their chunk and their length.
    With the chunk of the ends the episode is there, and a cut before the last write loses nothing.

    Mutations that turn this red: episode_ends written first; what lies past it not cut off.
    """
    with Store.create(path, spec()) as store:
        for seed in kept:
            store.append(episode(seed), seed)
    assert writes_of_an_append(path, monkeypatch, stop) == stop
    kept = [*kept, 2] if stop == 13 else kept
    assert_holds(Store.open(path), kept)
    with Store.open(path, "a") as store:
        assert store.dropped_rows == (len(episode(2)["q"]) if 0 < stop < 13 else 0)
        store.append(episode(9), 9)
        assert_holds(store, [*kept, 9])
    assert writes_of_an_append(path, monkeypatch) == 14
    assert_holds(Store.open(path), [*kept, 9, 2])


def test_everything_is_on_the_disk_before_the_end_is_written(two, monkeypatch):
    """A mutation that turns this red: settling once, after the end."""
    log = []
    put, name = Disk.put, lambda file: str(Path(file).relative_to(two))
    monkeypatch.setattr(
        Disk, "put", lambda self, file, *more: log.append(("set", name(file))) or put(self, file, *more)
    )
    monkeypatch.setattr("polyarm.datasets.disk.fsync", lambda file: log.append(("fsync", name(file))))
    with Store.open(two, "a") as store:
        log.clear()
        store.append(episode(2), 2)
    first_end = log.index(("set", "meta/episode_ends/c/0"))
    written = {key for what, key in log[:first_end] if what == "set"}
    settled = {key for what, key in log[:first_end] if what == "fsync"}
    assert {"data/q/c/0/0", "data/top/c/0/0/0/0", "meta/seed/c/0"} <= written <= settled
    assert {str(Path(key).parent) for key in written} <= settled  # a rename is durable with its folder
    assert log[first_end + 1] == ("fsync", "meta/episode_ends/c/0.partial")  # whole before it takes the old one's place
    assert ("fsync", "meta/episode_ends") in log[first_end:]


def test_rubbish_past_the_last_end_is_not_believed(two):
    root = zarr.open_group(two, mode="r+")
    root["data/q"].append(np.full((9, 3), np.nan, "f4"))
    for rubbish in (0, 3, 10**6):  # not written yet; not rising; past the data
        root["meta/episode_ends"].append(np.array([rubbish]))
        store = Store.open(two)
        assert_holds(store, [0, 1])
        assert store.dropped_rows == 9 and info(store)["dropped_rows"] == 9
    with Store.open(two, "a") as store:
        store.append(episode(2), 2)
    again = Store.open(two)
    assert_holds(again, [0, 1, 2])
    assert again.dropped_rows == 0


def test_an_end_that_is_not_believed_never_comes_back(two):
    """Growing an array shows what its last chunk still holds. A mutation that turns this red: an end put into the chunk that
    was there."""
    root = zarr.open_group(two, mode="r+")
    end = int(root["meta/episode_ends"][-1])
    root["meta/episode_ends"].append(np.array([end, end + 1000]))  # the first does not rise
    assert_holds(Store.open(two), [0, 1])
    with Store.open(two, "a") as store:
        store.append(episode(2), 2)
    assert_holds(Store.open(two), [0, 1, 2])


FORKER = """
import os, signal, sys, time
sys.path.insert(0, sys.argv[2])
import writer
path, saved = sys.argv[1], sys.argv[3]
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        writer.write(path, saved)
    while os.path.getsize(saved) == int(line.split()[0]): time.sleep(0.001)
    time.sleep(float(line.split()[1]))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    print(os.path.getsize(saved), flush=True)
"""


def write(path, saved):
    """Appends episodes for ever, and says after each that it is saved."""
    log = os.open(saved, os.O_WRONLY | os.O_APPEND)
    store = Store.open(path, "a")
    os.write(log, b"o")
    while True:
        store.append(episode(len(store)), len(store))
        os.write(log, b"s")


def test_a_killed_writer_loses_at_most_the_open_episode(path, tmp_path):
    """SIGKILL at twenty random moments and more, later ones where a slow machine gets nothing done before. A mutation that turns
    this red: episode_ends written first."""
    Store.create(path, spec()).close()
    saved = tmp_path / "saved"
    saved.touch()
    (tmp_path / "writer.py").write_text(Path(__file__).read_text())
    command = [sys.executable, "-W", "ignore", "-c", FORKER, str(path), str(tmp_path), str(saved)]
    rng, claimed, in_the_middle, kills, longest_s = np.random.default_rng(), 0, 0, 0, 0.15
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as forker:
        while kills < 20 or ((claimed < 5 or in_the_middle < 5) and kills < 200):
            forker.stdin.write(f"{saved.stat().st_size} {rng.uniform(0, longest_s)}\n")
            forker.stdin.flush()
            assert forker.stdout.readline()
            kills += 1
            before, claimed = claimed, saved.read_bytes().count(b"s")
            longest_s *= 1.3 if claimed == before else 1 / 1.3
            longest_s = min(max(longest_s, 0.15), 10.0)
            store = Store.open(path)
            assert claimed <= len(store) <= claimed + 1
            assert_holds(store, range(len(store)))
            in_the_middle += store.dropped_rows > 0 or any(path.rglob("*.partial"))
            saved.write_bytes(b"s" * len(store))  # the one that was committed but not yet announced
        forker.stdin.close()
    assert in_the_middle >= 5 and claimed >= 5
    with Store.open(path, "a") as store:
        store.append(episode(len(store)), len(store))
    assert_holds(Store.open(path), range(len(store)))
    assert not any(path.rglob("*.partial"))


def test_a_dead_writer_leaves_no_lock(two):
    code = f"from polyarm.datasets.store import Store; s = Store.open({str(two)!r}, 'a'); print(1, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        writer.stdout.readline()
        with pytest.raises(UserError, match="being written"):
            Store.open(two, "a")
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    Store.open(two, "a").close()


def test_an_append_writes_no_more_than_a_chunk_a_stream(path, monkeypatch):
    """However long the store. A mutation that turns this red: CHUNK_BYTES = 2e6, the field's own habit."""
    streams = (Stream("q", "state", (13,), tuple(map(str, range(13)))),)
    wide = Spec(ObsSpace(streams, 20.0), ActionSpace(("a",), ("m",), "base", 20.0))
    rng, written = np.random.default_rng(0), 0
    put = Disk.put

    def counted(self, file, value, *more):
        nonlocal written
        written += len(value)
        put(self, file, value, *more)

    monkeypatch.setattr(Disk, "put", counted)
    rows = lambda t: {
        "q": rng.normal(size=(t, 13)),
        "action": rng.normal(size=(t, 1)),
        "time_s": rng.random(t).cumsum(),
    }
    with Store.create(path, wide) as store:
        for t in (40_000, *[75] * 40):
            written = 0
            store.append(rows(t), 0)
            assert t > 75 or written < 3 * 1.5 * 2**17


def field_file(path, zipped=False, **changes):
    """A file as the field writes it; 7 rows, episodes of 4 and 3."""
    arrays = {
        "action": np.arange(14, dtype="f4").reshape(7, 2), "state": np.arange(35, dtype="f4").reshape(7, 5),
        "keypoint": np.arange(42, dtype="f4").reshape(7, 3, 2),
        "img": np.tile(np.arange(7, dtype="f4")[:, None, None, None] * 30, (1, 8, 6, 3)),
    } | changes  # fmt: skip
    ends = arrays.pop("ends", np.array([4, 7]))
    store = zarr.storage.ZipStore(path, mode="w") if zipped else path
    root = zarr.create_group(store, zarr_format=2)
    for group, members in (("data", arrays), ("meta", {"episode_ends": ends})):
        for key, x in members.items():
            root.require_group(group).create_array(key, data=np.asarray(x))
    if zipped:
        store.close()
    return path


FIELD_SPEC = Spec(
    ObsSpace(
        (
            Stream("keypoint", "state", (6,), tuple(map(str, range(6)))), Stream("agent", "state", (2,), ("x", "y")),
            Stream("top", "image", (8, 6, 3)),
        ), 10.0,
    ), ActionSpace(("x", "y"), ("px", "px"), "world", 10.0),
)  # fmt: skip
WHERE = {"keypoint": Field("keypoint"), "agent": Field("state", (3, 1)), "top": Field("img"), "action": Field("action")}


@pytest.mark.parametrize("name", ["demos.zarr", "demos.zarr.zip"])
def test_the_fields_layout_is_read(tmp_path, name):
    """A mutation that turns this red: columns sorted."""
    demos = ReplayBuffer(field_file(tmp_path / name, name.endswith("zip")), FIELD_SPEC, WHERE)
    assert isinstance(demos, Demos) and demos.episode_ends.tolist() == [4, 7]
    assert demos.stream("agent")[:].tolist() == [[5 * i + 3, 5 * i + 1] for i in range(7)]
    assert demos.stream("keypoint")[2].tolist() == [12, 13, 14, 15, 16, 17]
    assert demos.stream("action")[6].tolist() == [12, 13]
    top = demos.stream("top")
    assert top.dtype == np.uint8 and top[np.array([[6, 2], [2, 0]])][..., 0, 0, 0].tolist() == [[180, 60], [60, 0]]
    assert info(open_path(tmp_path / name))["frames"] == 7


@pytest.mark.parametrize(
    "file, where, sentence",
    [
        ({"ends": np.array([4, 4, 7])}, {}, "does not rise at episode 1"),
        ({"ends": np.array([4, 9])}, {}, "has 7 rows, the last episode ends at 9"),
        ({"action": np.full((7, 2), np.nan)}, {}, "'action' of .* holds nan in row 0"),
        ({}, {"agent": Field("stat", (0, 1))}, "unknown key of .*/data 'stat': did you mean 'state'"),
        ({}, {"agent": Field("state")}, r"field 'state' is \(5,\) a row, the spec wants \(2,\)"),
        ({}, {"agent": Field("state", (0, 5))}, r"columns \[0, 5\] of 'state': it has 5"),
        ({}, {"aget": Field("state")}, "unknown observation stream 'aget': did you mean 'agent'"),
    ],
)
def test_a_wrong_field_file_is_refused(tmp_path, file, where, sentence):
    with pytest.raises(UserError, match=sentence):
        ReplayBuffer(field_file(tmp_path / "d.zarr", **file), FIELD_SPEC, {**WHERE, **where})


def test_images_from_0_to_1_are_refused(tmp_path):
    demos = ReplayBuffer(field_file(tmp_path / "d.zarr", img=np.full((7, 8, 6, 3), 0.5, "f4")), FIELD_SPEC, WHERE)
    with pytest.raises(UserError, match="0.5 to 0.5: it must be 0 to 255"):
        demos.stream("top")[:]


def test_a_missing_field_file_names_its_neighbour(tmp_path):
    field_file(tmp_path / "pusht.zarr")
    with pytest.raises(UserError, match="did you mean 'pusht.zarr'"):
        ReplayBuffer(tmp_path / "push.zarr", FIELD_SPEC, WHERE)
    with pytest.raises(UserError, match="unknown setting of field 'top': did you mean|unknown setting of field 'top'"):
        Field.of("top", {"keys": "img"})


def test_the_card_says_what_is_there(two):
    card = info(two)
    frames = sum(len(episode(s)["q"]) for s in (0, 1))
    assert (card["episodes"], card["frames"], card["seeds"], card["successes"]) == (2, frames, 2, 2)
    x = np.concatenate([episode(s)["q"] for s in (0, 1)])[:, 1].astype("f8")
    channel = card["channels"][1]
    assert (channel["stream"], channel["name"], channel["unit"], channel["not_finite"]) == ("q", "y", "m", 0)
    np.testing.assert_allclose(
        [channel[k] for k in ("min", "max", "mean", "std")], [x.min(), x.max(), x.mean(), x.std(ddof=1)]
    )
    steps = np.concatenate([np.diff(episode(s)["time_s"]) for s in (0, 1)])
    np.testing.assert_allclose(card["measured_hz"], 1 / np.median(steps))
    np.testing.assert_allclose(card["duration_s"], steps.sum() + 2 * np.median(steps))


def test_the_card_counts_what_is_not_finite(tmp_path):
    state = np.zeros((7, 5), "f4")
    state[[1, 4], 2] = np.nan
    card = info(open_path(field_file(tmp_path / "d.zarr", state=state)))
    assert [c["not_finite"] for c in card["channels"] if c["stream"] == "state"] == [0, 0, 2, 0, 0]
    assert card["rate_hz"] is None


def test_the_card_loads_no_torch():
    code = "import sys, polyarm.datasets.info; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_new_kind_of_stream_is_one_line(monkeypatch, tmp_path):
    """What its values are is asked of the stream wherever arrays are made. A mutation that turns this red: a place that asks
    for images and texts by name."""
    monkeypatch.setitem(KINDS, "touch", Kind("uint8", (0, 7)))
    monkeypatch.setitem(KINDS, "force", Kind("float32", (-3, 3), low_dim=True))
    obs = ObsSpace((Stream("skin", "touch", (4, 5)), Stream("grip", "force", (2,), ("left", "right"))), 10.0)
    space = observation_space(obs)
    assert (space["skin"].dtype, space["skin"].high.max(), space["grip"].low.min()) == (np.uint8, 7, -3)
    spec = Spec(obs, ActionSpace(("x",), ("m",), "world", 10.0))
    with Store.create(tmp_path / "d.zarr", spec) as store:
        rows = {"skin": np.full((6, 4, 5), 3, "u1"), "grip": np.ones((6, 2)), "action": np.ones((6, 1))}
        store.append(rows | {"time_s": np.arange(6) / 10}, 0)
        clip = Windows(store, spec, horizon=2, n_obs_steps=1, n_action_steps=1)[0]
    assert (clip.obs["skin"].dtype, clip.obs["grip"].dtype) == (torch.uint8, torch.float32)
    with pytest.raises(UserError, match="unknown kind of stream 'skin' 'tuoch': did you mean 'touch'"):
        Stream("skin", "tuoch", (4, 5))


def test_opening_decodes_no_pictures_and_a_row_one_chunk(two, path, monkeypatch):
    """Mutation: read a stream's rows where the store is opened."""
    decoded, chunk = [], ChunkRows._chunk
    monkeypatch.setattr(
        ChunkRows, "_chunk", lambda self, i: (decoded.append(str(self._file(i).relative_to(path))), chunk(self, i))[1]
    )
    store = Store.open(path)
    assert decoded and all(name.startswith("meta/") for name in decoded)
    decoded.clear()
    assert store.stream("top")[np.array([1])].shape == (1, 8, 6, 3)
    assert decoded == ["data/top/c/0/0/0/0"]


def in_pieces(store, seed, cuts, **more):
    """Episode `seed`, cut before these rows."""
    arrays = episode(seed)
    edges = [0, *cuts, len(arrays["q"])]
    with store.episode(seed, **more) as opened:
        for a, b in itertools.pairwise(edges):
            opened.add({name: x[a:b] for name, x in arrays.items()})
        assert not len(store) or store.read("q").shape[0] == store.frames  # nobody sees it yet


def test_an_episode_in_pieces_is_the_episode_at_once(path, monkeypatch):
    """A mutation that turns this red: pieces that begin a chunk of their own."""
    monkeypatch.setattr("polyarm.datasets.store.CHUNK_BYTES", 500)
    with Store.create(path, spec()) as store:
        for seed in (2, 3, 4):
            n = len(episode(seed)["q"])
            in_pieces(store, seed, sorted({1, n // 3 or 1, 2 * n // 3 or 1} - {n}), success=seed != 3)
        assert_holds(store, [2, 3, 4])
    assert Store.open(path).successes.tolist() == [True, False, True]


@pytest.mark.parametrize(
    "second, sentence",
    [
        ({"q": np.full((2, 3), np.nan)}, "'q' holds nan in row 4"),
        ({"time_s": np.array([0.15, 0.3])}, "'time_s' goes from 0.15 to 0.15 s at row 4"),
        ({"top": np.zeros((1, 8, 6, 3), "u1")}, "an episode needs as many of each"),
        (KeyboardInterrupt, "^$"),
    ],
)
def test_an_episode_given_up_between_pieces_leaves_nothing(two, second, sentence):
    """And the store goes on at once. A mutation that turns this red: `_forget_rows` that does nothing."""
    piece = lambda t: {"q": np.zeros((len(t), 3)), "top": np.zeros((len(t), 8, 6, 3), "u1"), "action": np.zeros((len(t), 2)), "time_s": t}  # fmt: skip
    with Store.open(two, "a") as store:
        stopped = KeyboardInterrupt if second is KeyboardInterrupt else UserError
        with pytest.raises(stopped, match=sentence), store.episode(7) as opened:
            opened.add(piece(np.arange(4) / 20))
            with pytest.raises(UserError, match="is being written: finish it"):
                store.append(episode(2), 2)
            if second is KeyboardInterrupt:
                raise KeyboardInterrupt
            opened.add(piece(np.array([0.2, 0.3])) | second)
        assert_holds(store, [0, 1])
        with pytest.raises(UserError, match="0 rows"), store.episode(7):
            pass
        store.append(episode(2), 2)
        assert_holds(store, [0, 1, 2])
    again = Store.open(two)
    assert_holds(again, [0, 1, 2])
    assert again.dropped_rows == 0


def test_a_writer_killed_between_pieces_leaves_nothing(two):
    """The power fails with two pieces on the disk. A mutation that turns this red: an end for each piece."""
    arrays = episode(2)
    store = Store.open(two, "a")
    opened = store.episode(2).__enter__()
    opened.add(arrays)
    opened.add(arrays | {"time_s": arrays["time_s"] + 10})
    store.close()  # all that a killed process does: its lock is gone
    assert Store.open(two).dropped_rows == 2 * len(arrays["q"])
    with Store.open(two, "a") as again:
        assert_holds(again, [0, 1])
        again.append(episode(9), 9)
    assert_holds(Store.open(two), [0, 1, 9])
