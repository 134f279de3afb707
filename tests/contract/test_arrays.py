"""Arrays to a store: what is written is what was given, and what does not fit what was said is one sentence.

Mutations that turn it red: any check left out; a store begun before the first episode is looked at; episodes of a store that is
gone on with taken unseen; time of another rate than the one given; a progress of another length.
"""

import numpy as np
import pytest
import torch

from polyarm.datasets.arrays import actions, image, numbers, write_store
from polyarm.datasets.store import Store
from polyarm.spec import Stream, UserError

JOINTS = {"shoulder": "rad", "elbow": "rad"}
STREAMS = [numbers("joints", JOINTS), image("front", 8, 6)]


def episode(seed, t=12):
    rng = np.random.default_rng(seed)
    return {
        "joints": rng.normal(size=(t, 2)), "front": rng.integers(0, 256, (t, 8, 6, 3), dtype=np.uint8),
        "action": rng.normal(size=(t, 2)).astype("f4"),
    }  # fmt: skip


def write(path, episodes, **more):
    return write_store(path, episodes, **{"streams": STREAMS, "action": JOINTS, "rate_hz": 10, **more})


def test_a_store_holds_what_was_given(tmp_path):
    episodes = [episode(0), {**episode(1, 5), "time_s": 7 + np.arange(5) * 0.102, "success": False}]
    path = write(tmp_path / "new" / "mine.zarr", episodes)
    store = Store.open(path)
    assert store.spec.obs.rate_hz == store.spec.action.rate_hz == 10
    assert store.spec.obs["joints"].units == ("rad", "rad") and store.spec.action.names == ("shoulder", "elbow")
    assert store.lengths.tolist() == [12, 5] and store.successes.tolist() == [True, False]
    assert (store.seeds < 0).all()  # no simulator was seeded: no seed of an evaluation is among them
    for name in ("joints", "front", "action"):
        want = np.concatenate([e[name] for e in episodes])
        assert np.array_equal(store.read(name), want.astype(store.read(name).dtype))
    assert np.allclose(store.read("time_s"), [*np.arange(12) / 10, *(7 + np.arange(5) * 0.102)])


def test_a_store_is_gone_on_with_and_another_is_refused(tmp_path, capsys):
    path = write(tmp_path / "mine.zarr", [episode(0), episode(1)])
    write(path, (episode(i) for i in range(3)))
    assert len(Store.open(path)) == 3
    write(path, [episode(0)])  # fewer: there already
    assert len(Store.open(path)) == 3
    assert "3/3" in (write(path, [episode(i) for i in range(3)]), capsys.readouterr().err)[1]
    for episodes, more, said in (
        ([episode(0), episode(5)], {}, "another episode 1"),
        ([episode(0)], {"rate_hz": 20}, "other streams, units or rate"),
        ([{k: v for k, v in episode(0).items() if k != "front"}], {"streams": STREAMS[:1]}, "other streams"),
    ):
        with pytest.raises(UserError, match=said):
            write(path, episodes, **more)
    assert len(Store.open(path)) == 3


def test_actions_may_say_more(tmp_path):
    names = dict.fromkeys(("x", "y", "z"), "m") | {f"quat_{i}": "1" for i in "wxyz"}
    space = actions(names, 10, frame="base", rotation="quat_wxyz", rotations=(3,))
    path = write_store(
        tmp_path / "mine.zarr",
        [{"joints": np.zeros((4, 2)), "action": np.ones((4, 7))}],
        streams=STREAMS[:1],
        action=space,
    )
    assert Store.open(path).spec.action == space


T = np.arange(12)
PICTURES = episode(0)["front"]
BAD = {
    "size": ({"front": PICTURES[:, :4]}, ["[12, 4, 6, 3]", "[t, 8, 6, 3]", "resize"]),
    "channels first": ({"front": np.moveaxis(PICTURES, -1, 1)}, ["[12, 3, 8, 6]", "np.moveaxis"]),
    "grey": ({"front": PICTURES[..., 0]}, ["[12, 8, 6]", "np.repeat"]),
    "one channel": ({"front": PICTURES[..., :1]}, ["[12, 8, 6, 1]", "np.repeat"]),
    "alpha": ({"front": np.concatenate([PICTURES, PICTURES[..., :1]], -1)}, ["x[..., :3]"]),
    "unit floats": ({"front": PICTURES / 255}, ["float64 from 0 to 1", "x * 255"]),
    "floats": ({"front": PICTURES.astype("f4")}, ["float32", "astype(np.uint8)"]),
    "signed floats": ({"front": PICTURES / 127.5 - 1}, ["from -1 to 1", "0 to 255"]),
    "wide integers": ({"front": PICTURES.astype("i8")}, ["int64", "astype(np.uint8)"]),
    "black": ({"front": PICTURES // 255}, ["nothing above 1"]),
    "names of files": ({"front": np.array(["a.png"] * 12)}, ["read the files"]),
    "lengths": ({"joints": np.zeros((11, 2))}, ["'front' has 12 rows and 'joints' 11"]),
    "lengths of pictures": ({"front": PICTURES[:7]}, ["'front' has 7 rows"]),
    "width": ({"joints": np.zeros((12, 3))}, ["(12, 3)", "[t, 2]"]),
    "no axis": ({"action": np.zeros(12)}, ["(12,)", "[t, 2]"]),
    "ragged": ({"action": [[1, 2], [3]]}, ["rows of one shape"]),
    "nan": ({"action": np.full((12, 2), np.nan)}, ["nan in row 0"]),
    "words": ({"joints": np.full((12, 2), "up")}, ["numbers"]),
    "missing": ({"joints": ...}, ["no 'joints'"]),
    "no action": ({"action": ...}, ["no 'action'"]),
    "more": ({"reward": T}, ["unknown stream of an episode 'reward'", "joints"]),
    "milliseconds": ({"time_s": T * 100}, ["100 s", "0.01 Hz", "rate_hz=10"]),
    "another rate": ({"time_s": T / 30}, ["30 Hz", "rate_hz=10"]),
    "a gap": ({"time_s": T / 10 + (T > 6) * 3}, ["gap of 3.1 s before row 7", "two episodes"]),
    "back in time": ({"time_s": T[::-1] / 10}, ["rises"]),
    "time too coarse": ({"time_s": (1.7e9 + T / 10).astype("f4")}, ["float32", "float64"]),
    "time in words": ({"time_s": ["noon"] * 12}, ["'time_s'", "numbers"]),
    "a single picture": ({"front": PICTURES[0]}, ["[8, 6, 3]", "a single picture"]),
    "pictures of several sizes": ({"front": [PICTURES[0], PICTURES[1, :4]]}, ["'front'", "rows of one shape"]),
    "a number for a name": ({1: T}, ["1 is no name"]),
    "a tensor that learns": ({"joints": torch.zeros(12, 2, requires_grad=True)}, ["'joints'", "requires grad"]),
    "success": ({"success": "yes"}, ["True or False"]),
}


@pytest.mark.parametrize("change, said", BAD.values(), ids=BAD)
def test_an_episode_that_does_not_fit_is_one_sentence_and_nothing_is_written(tmp_path, change, said):
    bad = {k: v for k, v in {**episode(0), **change}.items() if v is not ...}
    with pytest.raises(UserError) as e:
        write(tmp_path / "mine.zarr", [bad])
    assert all(s in str(e.value) for s in ["episode 0", *said]) and "\n" not in str(e.value), str(e.value)
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="episode 1: "):  # what came before stays
        write(tmp_path / "mine.zarr", [episode(0), bad])
    assert len(Store.open(tmp_path / "mine.zarr")) == 1


SAID = {
    "no rate": ({"rate_hz": None}, ["rate_hz has no value"]),
    "rate 0": ({"rate_hz": 0}, ["rate_hz=0"]),
    "rate in words": ({"rate_hz": "10 Hz"}, ["10 Hz"]),
    "rate nan": ({"rate_hz": float("nan")}, ["nan"]),
    "no units": ({"action": ["shoulder", "elbow"]}, ["channel: unit"]),
    "unit unknown": ({"action": {"shoulder": "rad", "elbow": "?"}}, ["'elbow'", "'?'", "find out"]),
    "unit empty": ({"action": {"shoulder": "rad", "elbow": ""}}, ["'elbow'"]),
    "unit to come": ({"action": {"shoulder": "rad", "elbow": "TODO"}}, ["'elbow'", "'TODO'"]),
    "unit arbitrary": ({"action": {"shoulder": "arbitrary", "elbow": "rad"}}, ["'shoulder'"]),
    "a grey image": ({"streams": [STREAMS[0], Stream("front", "image", (8, 6))]}, ["'front'", "[8, 6]", "image("]),
    "unit none": ({"action": {"shoulder": "rad", "elbow": None}}, ["'elbow'", "None"]),
    "no units of a stream": ({"streams": [Stream("joints", "state", (2,), ("a", "b"))]}, ["'joints'", "unit"]),
    "no streams": ({"streams": []}, ["streams"]),
    "twice": ({"streams": [*STREAMS, STREAMS[0]]}, ["two streams", "'joints'"]),
    "taken": ({"streams": [numbers("action", JOINTS)]}, ["taken"]),
    "slash": ({"streams": [numbers("a/b", JOINTS)]}, ["'a/b'"]),
    "names": ({"streams": ["joints"]}, ["numbers("]),
}


@pytest.mark.parametrize("more, said", SAID.values(), ids=SAID)
def test_what_is_not_said_is_asked_for(tmp_path, more, said):
    with pytest.raises(UserError) as e:
        write(tmp_path / "mine.zarr", [episode(0)], **more)
    assert all(s in str(e.value) for s in said), str(e.value)
    assert not list(tmp_path.iterdir())


def test_a_missing_rate_is_read_out_of_measured_time_for_the_user_to_give(tmp_path):
    with pytest.raises(UserError, match="rate_hz=25"):
        write(tmp_path / "mine.zarr", [{**episode(0), "time_s": T / 25}], rate_hz=None)


@pytest.mark.parametrize("episodes", [[], episode(0), 5, ["ep.pkl"]], ids=["none", "one", "number", "name"])
def test_episodes_are_dicts_in_a_list(tmp_path, episodes):
    with pytest.raises(UserError, match="at least one|list of dicts|dict of arrays"):
        write(tmp_path / "mine.zarr", episodes)


@pytest.mark.parametrize("size", [(0, 6), (-8, 6), ("8", 6), (8.0, 6), (True, 6), (None, 6)])
def test_the_size_of_an_image_is_whole_pixels(size):
    with pytest.raises(UserError, match="image 'front' is said to be"):
        image("front", *size)


def test_pictures_are_no_numbers():
    with pytest.raises(UserError, match=r"image\(\.\.\.\)"):
        numbers("front", {"a": "1"}, kind="image")


@pytest.mark.parametrize("time_s", [["noon"] * 12, [[0.0], [1.0, 2.0]], None])
def test_a_missing_rate_beside_times_that_are_none(tmp_path, time_s):
    with pytest.raises(UserError, match="rate_hz has no value: give the rows a second$"):
        write(tmp_path / "mine.zarr", [{**episode(0), "time_s": time_s}], rate_hz=None)


def test_units_are_asked_where_a_stream_is_said():
    with pytest.raises(UserError, match="channel: unit"):
        numbers("joints", ["a", "b"])
