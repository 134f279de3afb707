"""Replay buffers as they are about: read, or refused in one true sentence that names the file.

Mutations that turn these red: a chunk that is not there filled, format 2 alone opened, the first folder of a zip not looked into,
a zip shared with the processes that read, the range of float images guessed from the rows at hand.
"""

import json
import multiprocessing
import pickle
import shutil
import zipfile

import numpy as np
import pytest
import zarr

from polyarm.cli import main
from polyarm.datasets.field import Field as OldField
from polyarm.datasets.field import FieldStore
from polyarm.datasets.info import info, show
from polyarm.datasets.replay_buffer import Field, ReplayBuffer, guess
from polyarm.datasets.store import Store, open_path
from polyarm.datasets.windows import Loader, Windows
from polyarm.spec import ActionSpace, ObsSpace, Spec, Stream, UserError
from polyarm.text import row_text

RNG = np.random.default_rng(0)
STATE, ACTION = RNG.normal(size=(40, 2)).astype("f4"), RNG.normal(size=(40, 2)).astype("f4") + 9
IMG = RNG.integers(2, 255, (40, 8, 8, 3)).astype("u1")


def spec(*streams):
    state = Stream("state", "state", (2,), ("a", "b"))
    return Spec(ObsSpace((state, *streams), 10.0), ActionSpace(("x", "y"), ("m", "m"), "world", 10.0))


CAMERA = Stream("img", "image", (8, 8, 3))
WHERE = {name: Field(name) for name in ("state", "img", "action")}


def write(path, zarr_format=2, ends=(20, 40), separator=None, **more):
    root = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    data, meta = root.create_group("data"), root.create_group("meta")
    keys = {"name": "v2" if zarr_format == 2 else "default", "separator": separator} if separator else None
    for name, x in {"state": STATE, "action": ACTION, **more}.items():
        data.create_array(
            name, data=x, chunks=(7, *x.shape[1:]), chunk_key_encoding=keys, config={"write_empty_chunks": True}
        )
    meta.create_array("episode_ends", data=np.asarray(ends))
    return path


def zipped(path, top="", junk=()):
    with zipfile.ZipFile(path.with_name(path.name + ".zip"), "w") as file:
        for f in (f for f in path.rglob("*") if f.is_file()):
            file.write(f, f"{top}{f.relative_to(path)}")
        for name in junk:
            file.writestr(name, "x")
    return path.with_name(path.name + ".zip")


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("separator", [".", "/"])
def test_both_formats_are_read_in_folders_and_zips(tmp_path, zarr_format, separator):
    path = write(tmp_path / "b.zarr", zarr_format, img=IMG, separator=separator)
    junk = ("__MACOSX/b.zarr/meta/episode_ends/.zarray", "b.zarr/.DS_Store")
    for file in (path, zipped(path), zipped(path, "b.zarr/", junk), zipped(path, "a/b.zarr/")):
        demos = ReplayBuffer(file, spec(CAMERA), WHERE)
        assert demos.episode_ends.tolist() == [20, 40]
        assert np.array_equal(demos.stream("state")[:], STATE) and np.array_equal(demos.stream("action")[:], ACTION)
        rows = np.array([[39, 3], [7, 3]])
        assert np.array_equal(demos.stream("img")[rows], IMG[rows])
        assert info(open_path(file))["frames"] == 40


def test_the_old_name_stays(tmp_path):
    assert FieldStore is ReplayBuffer and OldField is Field


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_a_file_that_is_lost_or_damaged_is_named(tmp_path, kind):
    whole = write(tmp_path / "b.zarr", img=IMG)
    read = lambda at: [ReplayBuffer(at, spec(CAMERA), WHERE).stream(n)[:].tobytes() for n in WHERE]
    want = read(whole)
    for file in sorted(f for f in whole.rglob("*") if f.is_file()):
        raw = file.read_bytes()
        for broken in (None, b"", raw[: len(raw) // 2]):
            file.unlink() if broken is None else file.write_bytes(broken)
            try:
                assert read(zipped(whole) if kind == "zip" else whole) == want
                assert file.name in (".zgroup", ".zattrs")  # which say nothing
            except UserError as e:
                name = str(file.relative_to(whole))
                assert name in str(e) or (broken is None and file.name == ".zarray"), (
                    name,
                    e,
                )
        file.write_bytes(raw)
    assert read(whole) == want


def test_what_a_writer_left_out_on_purpose_is_said_to_be(tmp_path):
    """zarr 3 writes no chunk that holds nothing but the fill value, and nothing in the file says so."""
    state = np.where(np.arange(40)[:, None] < 21, 0, STATE)
    root = zarr.open_group(tmp_path / "b.zarr", mode="w", zarr_format=2)
    for name, x in {"data/state": state, "data/action": ACTION, "meta/episode_ends": np.array([40])}.items():
        root.create_array(name, data=x, chunks=(7, *x.shape[1:]) if "data" in name else (1,))
    where = {n: Field(n) for n in ("state", "action")}
    with pytest.raises(UserError, match="data/state/0.0 is lost, and 2 more: copy .* give .task.demos.sparse=true"):
        ReplayBuffer(tmp_path / "b.zarr", spec(), where)
    assert np.array_equal(ReplayBuffer(tmp_path / "b.zarr", spec(), where, sparse=True).stream("state")[:], state)
    assert info(open_path(tmp_path / "b.zarr"))["absent"] == {"state": ["0.0", "1.0", "2.0"]}


def test_a_flipped_bit_in_a_zip_is_told_by_its_checksum(tmp_path):
    path = zipped(write(tmp_path / "b.zarr", img=IMG))
    raw = path.read_bytes()
    with zipfile.ZipFile(path) as file:
        inside = next(i for i in file.infolist() if i.filename.startswith("data/img/3"))
    damaged = bytearray(raw)
    damaged[inside.header_offset + 200] ^= 8
    path.write_bytes(damaged)
    demos = ReplayBuffer(path, spec(CAMERA), WHERE)
    assert np.array_equal(demos.stream("img")[:20], IMG[:20])
    with pytest.raises(UserError, match="data/img/3.0.0.0 cannot be read"):
        demos.stream("img")[np.arange(40)]


@pytest.mark.parametrize(
    "content, sentence",
    [
        (b"<html>not found</html>", "neither a folder nor a whole zip .*it begins with b'<html>"),
        (b"", "neither a folder nor a whole zip .*it is empty"),
        ("short", "neither a folder nor a whole zip"),
        ("other", "has no meta/episode_ends: give what holds data/<key> and meta/episode_ends"),
        ("two", "holds 2 sets of demonstrations, a/, b/: unpack it and name one"),
    ],
)
def test_a_zip_that_holds_no_demonstrations_says_what_it_is(tmp_path, capsys, content, sentence):
    path = tmp_path / "b.zarr.zip"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "short":
        raw = zipped(write(tmp_path / "b.zarr")).read_bytes()
        path.write_bytes(raw[: len(raw) // 2])
    else:
        with zipfile.ZipFile(path, "w") as file:
            for name in (
                ("a/x.txt",) if content == "other" else ("a/meta/episode_ends/.zarray", "b/meta/episode_ends/zarr.json")
            ):
                file.writestr(name, "{}")
    with pytest.raises(UserError, match=sentence):
        open_path(path)
    assert main(["data", "info", str(path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("ends", [(), (20, 20, 40), (30, 20), (0, 40), (-5, 40), (20, 39), ("a", "b"), ((20, 40),)])
def test_ends_that_cannot_be_are_refused(tmp_path, ends):
    for zarr_format in (2, 3):
        path = write(tmp_path / "b.zarr", zarr_format, ends=np.asarray(ends, "i8") if ends == () else ends)
        for read in (open_path, lambda at: ReplayBuffer(at, spec(), {n: Field(n) for n in ("state", "action")})):
            with pytest.raises(
                UserError, match="episode_ends of .*b.zarr (is|does not rise)|the last episode ends at 39"
            ):
                read(path)
    shutil.rmtree(path / "meta")
    with pytest.raises(UserError, match="has no meta/episode_ends"):
        open_path(path)


def test_the_folder_above_names_the_one_meant(tmp_path):
    write(tmp_path / "b.zarr")
    with pytest.raises(UserError, match=r"has no meta/episode_ends: did you mean .*/b.zarr\?"):
        open_path(tmp_path)


def test_a_card_shows_what_it_can_of_a_foreign_file(tmp_path, capsys):
    """Points are one line, texts are texts, and what cannot be decoded keeps nothing else from being seen."""
    path = write(
        tmp_path / "b.zarr", img=IMG, unit=IMG / 255, chw=IMG.transpose(0, 3, 1, 2).copy(), keypoint=RNG.normal(size=(40, 9, 2)),
        cloud=RNG.normal(size=(40, 512, 6)).astype("f4"), task=np.array(["put the cube down", "öffne"] * 20), still=np.zeros(40),
        phase=np.zeros(40, "c8"), names=np.array(["a", "b"]), odd=IMG,
    )  # fmt: skip
    meta = path / "data/odd/.zarray"
    meta.write_text(
        json.dumps(json.loads(meta.read_text()) | {"compressor": {"id": "imagecodecs_jpegxl", "level": 99}})
    )
    card = info(path)
    lines = [(c["stream"], c["name"]) for c in card["channels"]]
    assert [n for s, n in lines if s == "cloud"] == ["512 x 6"] and sum(s == "keypoint" for s, _ in lines) == 18
    cloud = next(c for c in card["channels"] if c["stream"] == "cloud")
    x = zarr.open_array(path / "data/cloud")[:]
    assert (cloud["min"], cloud["max"]) == (x.min(), x.max()) and cloud["std"] == pytest.approx(x.std(), rel=1e-4)
    assert [i["stream"] for i in card["images"]] == ["chw", "img", "unit"]
    assert card["texts"] == [{"stream": "task", "instructions": ["put the cube down", "öffne"]}]
    assert set(card["left_out"]) == {"odd", "phase", "names"} and "imagecodecs_jpegxl" in card["left_out"]["odd"]
    show(card)
    assert "imagecodecs_jpegxl" in capsys.readouterr().out
    with pytest.raises(UserError, match="data/odd/.zarray cannot be read .*imagecodecs_jpegxl"):
        ReplayBuffer(path, spec(Stream("odd", "image", (8, 8, 3))), {n: Field(n) for n in ("state", "odd", "action")})


def test_strings_become_a_stream_of_texts(tmp_path):
    told = np.array(["put the cube down", "öffne"] * 20)
    path = write(tmp_path / "b.zarr", task=told)
    task = Stream("task", "text", (24,))
    where = {n: Field(n) for n in ("state", "task", "action")}
    clip = Windows(ReplayBuffer(path, spec(task), where), spec(task), horizon=4, n_obs_steps=2, n_action_steps=2)[5]
    assert [row_text(row) for row in clip.obs["task"][0, 0]] == [told[4], told[5]]
    with pytest.raises(UserError, match="the text .* has 17 bytes for a stream of 8"):
        ReplayBuffer(path, spec(Stream("task", "text", (8,))), where).stream("task")[:]
    with pytest.raises(UserError, match="field 'task' holds <U17, stream 'task' is state: give numbers"):
        ReplayBuffer(path, spec(Stream("task", "state", (1,), ("t",))), where)


def test_points_keep_their_axes(tmp_path):
    x = RNG.normal(size=(40, 16, 3)).astype("f4")
    cloud = Stream("cloud", "points", (16, 3))
    demos = ReplayBuffer(
        write(tmp_path / "b.zarr", cloud=x), spec(cloud), {n: Field(n) for n in ("state", "cloud", "action")}
    )
    assert np.array_equal(demos.stream("cloud")[np.array([3, 9])], x[[3, 9]])


@pytest.mark.parametrize("dtype", ["f4", "f8", "i8", "u2"])
def test_images_that_are_not_uint8_go_to_255(tmp_path, dtype):
    """Whatever rows are read: dark ones are no other range."""
    dark = IMG.copy()
    dark[5:9] = 0
    demos = ReplayBuffer(write(tmp_path / "b.zarr", img=dark.astype(dtype)), spec(CAMERA), WHERE)
    assert np.array_equal(demos.stream("img")[:], dark) and np.array_equal(demos.stream("img")[5:9], dark[5:9])


def test_images_from_0_to_1_are_read_if_white_is_said_to_be_1(tmp_path):
    path = write(tmp_path / "b.zarr", img=(IMG / 255).astype("f4"))
    with pytest.raises(
        UserError, match=r"field 'img' holds 0\.\d+ to 0\.99\d+: it must be 0 to 255, or give its field .*white: 1"
    ):
        ReplayBuffer(path, spec(CAMERA), WHERE).stream("img")[:]
    told = ReplayBuffer(path, spec(CAMERA), WHERE | {"img": Field.of("img", {"white": 1})})
    assert np.array_equal(told.stream("img")[:], IMG)
    for wrong in (np.full_like(IMG, 300, "f4"), np.full_like(IMG, -1, "f4"), np.full(IMG.shape, np.nan)):
        demos = ReplayBuffer(write(tmp_path / "b.zarr", img=wrong), spec(CAMERA), WHERE)
        with pytest.raises(UserError, match="it must be 0 to 255"):
            demos.stream("img")[:]


def test_opening_and_fitting_decode_no_image(tmp_path):
    """A damaged picture is no reason not to open, and gigabytes of sound ones no reason to wait."""
    from polyarm.datasets.scale import fit_spec

    path = write(tmp_path / "b.zarr", img=IMG)
    (path / "data/img/0.0.0.0").write_bytes(b"x")
    demos = ReplayBuffer(path, spec(CAMERA), WHERE)
    fit_spec(demos, demos.spec, "limits", "limits", [0, 1])
    assert info(demos)["images"] and info(path)["images"]
    own = Spec(ObsSpace(spec(CAMERA).obs.streams, 10.0), spec().action)
    with Store.create(tmp_path / "own.zarr", own) as store:
        store.append({"state": STATE, "img": IMG, "action": ACTION, "time_s": np.arange(40) / 10}, 0)
    (tmp_path / "own.zarr/data/img/c/0/0/0/0").write_bytes(b"x")
    fit_spec(store, store.spec, "limits", "limits", [0])
    assert info(tmp_path / "own.zarr")["frames"] == 40


def _rows(demos, rows, answer):
    answer.send(demos.stream("img")[rows])


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("top", ["", "b.zarr/"])
def test_a_zip_is_read_by_many_processes(tmp_path, method, top):
    """One that was opened before a fork shares its place in the file. What is sent to a new process opens it there."""
    path = zipped(write(tmp_path / "b.zarr", img=IMG), top)
    demos = ReplayBuffer(path, spec(CAMERA), WHERE)
    demos.stream("img")[:7]  # opened here
    if method == "spawn":
        again = pickle.loads(pickle.dumps(demos))
        assert np.array_equal(again.stream("img")[np.array([30, 3])], IMG[[30, 3]])
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(target=_rows, args=(demos, np.array([30, 3]), theirs))
        process.start()
        assert ours.poll(300) and np.array_equal(ours.recv(), IMG[[30, 3]])
        process.join()
        return
    windows = Windows(demos, spec(CAMERA), horizon=8, n_obs_steps=2, n_action_steps=4, ram_gib=0.0)
    alone = Loader(windows, 4, seed=0)
    for _, a, b in zip(range(40), Loader(windows, 4, seed=0, num_workers=2), alone, strict=False):
        assert (a.obs["img"] == b.obs["img"]).all()


@pytest.mark.parametrize(
    "name", ["dos démos.zarr", "a=b.zarr", "mit (Klammern), Komma.zarr", "数据.zarr", "[a]{b}$c.zarr"]
)
def test_any_name_will_do(tmp_path, name):
    for path in (write(tmp_path / name), zipped(tmp_path / name, f"{name}/")):
        assert len(guess(path).episode_ends) == 2
