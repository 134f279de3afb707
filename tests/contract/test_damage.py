"""What was written is read, or an error names the file: absence and damage are never data.

Mutations that turn these red: a chunk that is not there read as zeros, zeros not written, a checksum not compared, the seal of the
attributes not compared, the length of an array believed before its chunks, metadata opened as consolidated.
"""

import json
import os
import shutil

import numpy as np
import pytest
import zarr

from polyarm.cli import main
from polyarm.datasets.info import info
from polyarm.datasets.store import Store
from polyarm.spec import UserError
from tests.contract.test_store import episode, spec


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Three episodes, the last of nothing but zeros, and several chunks of images."""
    path = tmp_path_factory.mktemp("whole") / "demos.zarr"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("polyarm.datasets.store.CHUNK_BYTES", 1000)
        with Store.create(path, spec(), note="by hand") as store:
            for seed in range(3):
                store.append(
                    {k: x * (seed < 2) if k != "time_s" else x for k, x in episode(seed).items()}, seed, seed != 1
                )
    return path


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "demos.zarr")


def content(path):
    store = Store.open(path)
    return [
        store.spec, store.attributes, store.episode_ends.tolist(), store.seeds.tolist(), store.successes.tolist(),
        *(store.read(name).tobytes() for name in ("q", "top", "action", "time_s")),
        *(store.stream(name)[np.arange(store.frames)[::-1]].tobytes() for name in ("q", "top")),
    ]  # fmt: skip


def files(path):
    return sorted(p for p in path.rglob("*") if p.is_file())


def flip(file, rng):
    raw = bytearray(file.read_bytes())
    bit = int(rng.integers(8 * len(raw)))
    raw[bit // 8] ^= 1 << bit % 8
    file.write_bytes(raw)


def test_no_flipped_bit_is_read_as_data(whole, copy):
    """Any of any file: the same numbers are read, or an error names a file."""
    rng, want, told = np.random.default_rng(0), content(whole), 0
    for _ in range(400):
        file = copy / rng.choice(files(whole)).relative_to(whole)
        flip(file, rng)
        try:
            assert content(copy) == want, file
        except UserError as e:
            assert str(copy) in str(e), e
            told += 1
        shutil.copy(whole / file.relative_to(copy), file)
    assert told > 200


def test_no_flipped_bit_costs_an_episode(whole, tmp_path):
    """Going on with a damaged store changes nothing of what it holds, or is refused."""
    rng, want, rows = np.random.default_rng(1), content(whole), Store.open(whole).frames
    for i in range(40):
        copy = shutil.copytree(whole, tmp_path / str(i))
        flip(
            rng.choice([f for f in files(copy) if f.name == "zarr.json" or f.parent.parent.parent.name == "meta"]), rng
        )
        try:
            with Store.open(copy, "a") as store:
                store.append(episode(5), 5)
        except UserError as e:
            assert str(copy) in str(e), e
            continue
        after = Store.open(copy)
        assert (after.episode_ends[:3].tolist(), after.seeds.tolist()) == (want[2], [*want[3], 5])
        assert [after.read(name)[:rows].tobytes() for name in ("q", "top", "action", "time_s")] == want[5:9]


@pytest.mark.parametrize("change", ["lost", "empty", "short", "longer", "a folder"])
def test_a_file_that_is_not_whole_is_named(whole, copy, change):
    """Every file of a store, in each way."""
    want = content(whole)
    for file in files(copy):
        raw = file.read_bytes()
        file.unlink()
        if change == "a folder":
            file.mkdir()
        elif change != "lost":
            file.write_bytes({"empty": b"", "short": raw[: len(raw) // 2], "longer": raw + b"\0"}[change])
        try:
            assert content(copy) == want
            assert file.parent.name in ("data", "meta"), file  # those of groups say nothing
        except UserError as e:
            assert str(file) in str(e) and "delete" not in str(e), e
        file.rmdir() if file.is_dir() else file.unlink(missing_ok=True)
        file.write_bytes(raw)
    assert content(copy) == want


@pytest.mark.parametrize("file", ["zarr.json", "data/q/zarr.json", "data/q/c/0/0", "meta/episode_ends/c/0"])
def test_the_commands_say_it_in_one_line(copy, capsys, file):
    (copy / file).write_bytes(b"")
    for words in (
        ["data", "info", str(copy)],
        ["train", f"task.demos.path={copy}", "task.streams=[q]", f"output_dir={copy.parent}/run"],
    ):
        assert main(words) == 2
        said = [line for line in capsys.readouterr().err.splitlines() if "training on all of it" not in line]
        assert len(said) == 1 and said[0].startswith("polyarm: ") and str(copy / file) in said[0]


@pytest.mark.parametrize("array", ["data/q", "data/time_s", "meta/seed", "meta/success", "meta/episode_ends"])
@pytest.mark.parametrize("change", [-2, -1, 1, 2000, "none"])
def test_a_wrong_length_costs_no_episode(copy, array, change):
    """The length of an array is in a file without checksum: what the chunks of episode_ends say is believed, and a writer does
    not cut what was committed."""
    want, rows = content(copy), Store.open(copy).frames
    file = copy / array / "zarr.json"
    found = json.loads(file.read_text())
    found["shape"][0] = 0 if change == "none" else found["shape"][0] + change
    file.write_text(json.dumps(found))
    shorter = change == "none" or change < 0
    if shorter and array != "meta/episode_ends":
        for mode in ("r", "a"):
            with pytest.raises(UserError, match=f"{array}/zarr.json says .* rows, where .*: the file is damaged"):
                Store.open(copy, mode)
    elif change == 2000 and array == "meta/episode_ends":
        with pytest.raises(UserError, match="meta/episode_ends/c/1 is lost"):
            Store.open(copy, "a")
    else:
        assert content(copy) == want
        with Store.open(copy, "a") as store:
            store.append(episode(5), 5)
        assert content(copy)[3] == [*want[3], 5] and Store.open(copy).read("q")[:rows].tobytes() == want[5]


def test_zeros_are_written(copy):
    """A chunk that is not there is then never one of zeros."""
    rows = Store.open(copy).frames
    assert len(list((copy / "data/top/c").iterdir())) == -(-rows // zarr.open_array(copy / "data/top").chunks[0])
    with Store.open(copy, "a") as store:
        blank = {name: x * 0 if name != "time_s" else x for name, x in episode(5).items()}
        store.append(blank, 5)
    assert not Store.open(copy).read("top")[rows:].any()


@pytest.mark.parametrize(
    "layout",
    [
        {"chunks": (2, 4, 6, 3)}, {"chunks": (2, 8, 6, 3), "shards": (4, 8, 6, 3)}, {"compressors": [zarr.codecs.GzipCodec()]},
        {"chunk_key_encoding": {"name": "default", "separator": "."}}, {"chunk_key_encoding": {"name": "v2", "separator": "/"}},
        {"dtype": "i2"}, {"fill_value": 7},
    ],
    ids=["chunks", "shards", "codec", "separator", "keys", "dtype", "fill"],
)  # fmt: skip
def test_another_writers_layout_is_refused(copy, layout):
    x = Store.open(copy).read("top")
    root = zarr.open_group(copy, mode="r+")
    compressors = layout.pop("compressors", [zarr.codecs.BloscCodec(), zarr.codecs.Crc32cCodec()])
    array = root.create_array(
        "data/top", shape=x.shape, dtype=layout.pop("dtype", x.dtype), compressors=compressors, overwrite=True,
        **{"chunks": (2, 8, 6, 3), **layout},
    )  # fmt: skip
    array[:] = x
    with pytest.raises(UserError, match="data/top/zarr.json has .*, a store of polyarm's own"):
        Store.open(copy)


def test_other_chunk_lengths_are_read(copy):
    """Cut along the rows, they are the same layout."""
    want = content(copy)
    for rows in (1, 7, 1000):
        x = Store.open(copy).read("top")
        root = zarr.open_group(copy, mode="r+")
        codecs = [zarr.codecs.BloscCodec(), zarr.codecs.Crc32cCodec()]
        array = root.create_array(
            "data/top", shape=x.shape, dtype="u1", chunks=(rows, 8, 6, 3), compressors=codecs, overwrite=True,
            config={"write_empty_chunks": True},
        )  # fmt: skip
        array[:] = x
        assert content(copy) == want


@pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part")
def test_consolidated_metadata_hides_and_costs_nothing(copy):
    """Made before an append and after, by whatever tool."""
    want = content(copy)
    zarr.consolidate_metadata(copy)
    assert content(copy) == want
    for seed in (5, 6):
        with Store.open(copy, "a") as store:
            store.append(episode(seed), seed)
        assert Store.open(copy).seeds.tolist() == [0, 1, 2, 5, 6][: seed - 1]
        assert zarr.open_group(copy)["meta/seed"].shape == (seed - 1,)  # nor for a reader who trusts a copy
        zarr.consolidate_metadata(copy)
    assert Store.open(copy).seeds.tolist() == [0, 1, 2, 5, 6]


def unsealed(path):
    """The store as the first version wrote it: no seal, no checksums, no chunk that holds zeros."""
    now, attrs = Store.open(path), dict(zarr.open_group(path, mode="r").attrs)
    old = path.with_name("old.zarr")
    root = zarr.create_group(old, zarr_format=3)
    arrays = {f"data/{n}": now.read(n) for n in ("q", "top", "action", "time_s")}
    arrays |= {"meta/seed": now.seeds, "meta/success": now.successes, "meta/episode_ends": now.episode_ends}
    for name, x in arrays.items():
        coded = [zarr.codecs.BloscCodec()] if name.startswith("data") else None
        root.create_array(name, data=x, chunks=(10, *x.shape[1:]), compressors=coded)
    root.attrs.update({name: x for name, x in attrs.items() if name != "seal"})
    return old


def test_a_store_of_the_first_version_is_read_and_continued(copy):
    old, want = unsealed(copy), content(copy)
    assert content(old) == want
    assert len(list((old / "data/top/c").iterdir())) < -(-want[2][-1] // 10)  # those of zeros are not there
    with Store.open(old, "a") as store:
        store.append(episode(5), 5)
    assert Store.open(old).seeds.tolist() == [0, 1, 2, 5]
    assert Store.open(old).read("q")[want[2][-1] :].tobytes() == episode(5)["q"].tobytes()
    chunk = old / "data/top/c/0/0/0/0"
    raw = chunk.read_bytes()
    for short in (raw[:-1], raw[:20], raw[:7], b""):  # blosc reads past their ends
        chunk.write_bytes(short)
        with pytest.raises(UserError, match="data/top/c/0/0/0/0 cannot be decoded"):
            Store.open(old).read("top")
    (old / "meta/episode_ends/c/0").unlink()
    with pytest.raises(UserError, match="meta/episode_ends/c/0 is lost"):  # ends are never zero
        Store.open(old)


def test_a_newer_version_is_told_from_damage(copy):
    file = copy / "zarr.json"
    found = json.loads(file.read_text())
    found["attributes"]["seal"]["version"] = 9
    file.write_text(json.dumps(found))
    with pytest.raises(UserError, match="has version 9, this polyarm reads 2: use the polyarm that wrote it"):
        Store.open(copy)


def test_a_store_that_nobody_may_write_is_read(copy, monkeypatch):
    """Root writes where it may not: the calls that write fail instead."""
    want = content(copy)
    for entry in [copy, *copy.rglob("*")]:
        entry.chmod(0o555 if entry.is_dir() else 0o444)

    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "rename", refuse)
    monkeypatch.setattr(os, "replace", refuse)
    monkeypatch.setattr("polyarm.datasets.disk.Disk.put", refuse)
    assert content(copy) == want
    with (
        pytest.raises(UserError, match="demos.zarr cannot be written .Read-only file system.: free space, or give"),
        Store.open(copy, "a") as store,
    ):
        store.append(episode(5), 5)
    assert content(copy) == want


@pytest.mark.parametrize(
    "name", ["dos démos.zarr", "a=b.zarr", "mit (Klammern), Komma.zarr", "数据.zarr", "x%20#?.zarr", "[a]{b}$c.zarr"]
)
def test_any_name_of_a_folder_will_do(tmp_path, name):
    with Store.create(tmp_path / name, spec()) as store:
        store.append(episode(0), 0)
    with Store.open(tmp_path / name, "a") as store:
        store.append(episode(1), 1)
    assert Store.open(tmp_path / name).seeds.tolist() == [0, 1]


def test_a_store_without_episodes_has_a_card(tmp_path, capsys):
    """Made, and nothing appended yet; or the first append was killed."""
    Store.create(tmp_path / "d.zarr", spec()).close()
    assert main(["data", "info", str(tmp_path / "d.zarr")]) == 0
    card = info(tmp_path / "d.zarr")
    assert (card["episodes"], card["frames"], card["length"], card["seeds"]) == (0, 0, None, 0)
    assert len(card["channels"]) == 5 and all(c["min"] is None for c in card["channels"])
    assert main(["train", f"task.demos.path={tmp_path}/d.zarr", "task.streams=[q]", f"output_dir={tmp_path}/run"]) == 2
    said = capsys.readouterr().err
    assert "has no rows: give at least one episode" in said and "Traceback" not in said
