"""docs/your_data.md, done word by word: a pickle, a folder of pictures and an arrow table become stores; one is trained on and
judged.

Mutation: rename a stream's function; have `polyarm train` ask for the default task's streams.
"""

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import zarr

from polyarm.datasets.store import Store
from polyarm.spec import ActionSpace, ObsSpace, Spec, Stream, UserError

DOC = Path(__file__).parents[2] / "docs" / "your_data.md"
G1 = Path(__file__).parents[3] / "shared" / "data" / "g1_inspire_real"
SMALL = ["train.steps=10", "train.batch_size=16", "policy.body.width=32", "policy.body.blocks=1", "train.device=cpu"]


def scripts():
    return dict(re.findall(r"`(\w+\.py)`:\n\n```python\n(.*?)```", DOC.read_text(), re.DOTALL))


def python(place, *words):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, env=env, cwd=place, check=False)
    assert done.returncode == 0, done.stderr


def test_the_page_works(tmp_path):
    rng = np.random.default_rng(0)
    recordings = [
        {"qpos": rng.normal(size=(15, 2)), "command": rng.normal(size=(15, 2)), "stamp": 5 + np.arange(15) / 10} for _ in range(10)
    ]  # fmt: skip
    (tmp_path / "mine.pkl").write_bytes(pickle.dumps(recordings))
    for i in range(2):
        folder = tmp_path / "recordings" / f"ep_{i:03}"
        folder.mkdir(parents=True)
        for k in range(4):
            matplotlib.image.imsave(folder / f"{k:04}.png", rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
        rows = ["q0,q1,u0,u1", *(",".join(map(str, rng.normal(size=4))) for _ in range(4))]
        (folder / "rows.csv").write_text("\n".join(rows))

    for name in ("to_store.py", "pictures_to_store.py"):
        (tmp_path / name).write_text(scripts()[name])
        python(tmp_path, name)
    pictures = Store.open(tmp_path / "data" / "pictures.zarr")
    first = matplotlib.image.imread(tmp_path / "recordings" / "ep_001" / "0000.png")[..., :3]
    assert np.array_equal(pictures.read("front")[4], (first * 255).round().astype("u1")) and len(pictures) == 2
    assert len(Store.open(tmp_path / "data" / "mine.zarr")) == 10

    commands = [line.split()[1:] for line in DOC.read_text().splitlines() if line.startswith("polyarm ")]
    assert [c[0] for c in commands] == ["data", "train", "eval"]
    for command in commands:
        python(tmp_path, "-m", "polyarm.cli", *command, *(SMALL if command[0] == "train" else []))
    result = json.loads((tmp_path / "outputs/mine/eval/result.json").read_text())
    assert result["measure"] == "action_error" and result["n"] == 1


def older(path):
    """A store as it was written when depth was float32, metres, nan where nothing was measured."""
    spec = Spec(
        ObsSpace((Stream("d", "depth", (4, 5)), Stream("q", "state", (1,), ("a",), ("rad",))), 10.0),
        ActionSpace(("a",), ("rad",), "", 10.0),
    )
    with Store.create(path, spec) as store:
        for seed, n in ((7, 2), (9, 3)):
            rows = {"d": np.full((n, 4, 5), 500, "u2"), "q": np.zeros((n, 1), "f4"), "action": np.zeros((n, 1), "f4")}
            store.append({**rows, "time_s": np.arange(n) / 10}, seed, seed == 9)
    metres = np.linspace(0.3, 1.2, 100, dtype="f4").reshape(5, 4, 5)
    metres[0, 0, :2] = np.nan, np.inf
    blosc = zarr.codecs.BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle", typesize=4)
    made = zarr.create_array(
        path / "data" / "d", shape=metres.shape, chunks=(1638, 4, 5), dtype="f4", overwrite=True, fill_value=0.0,
        compressors=[blosc, zarr.codecs.Crc32cCodec()],
    )  # fmt: skip
    made[:] = metres
    return metres


@pytest.mark.parametrize("mode", ["r", "a"])
def test_depth_of_an_older_store_is_called_what_it_is_and_converted(tmp_path, mode):
    """Mutation: leave `_require_millimetres` out, and a store that is whole is called damaged; leave a line of the page out."""
    path, metres = tmp_path / "old.zarr", older(tmp_path / "old.zarr")
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file() and file.name != "lock"}
    with pytest.raises(UserError, match="is older: its depth 'd' is float32, and depth is uint16 now, mm") as e:
        Store.open(path, mode)
    assert "docs/your_data.md" in str(e.value) and "damaged" not in str(e.value) and str(e.value).count("\n") == 0
    assert all(file.read_bytes() == raw for file, raw in before.items())
    (tmp_path / "newer_depth.py").write_text(scripts()["newer_depth.py"])
    python(tmp_path, "newer_depth.py", "old.zarr", "new.zarr")
    new = Store.open(tmp_path / "new.zarr")
    assert np.array_equal(new.read("d"), np.nan_to_num(metres * 1000, posinf=0).round().astype("u2"))
    assert (
        new.episode_ends.tolist() == [2, 5] and new.seeds.tolist() == [7, 9] and new.successes.tolist() == [False, True]
    )


def test_a_table_of_rows_becomes_a_store(tmp_path):
    """Two episodes a file, as LeRobot 3 keeps them. Mutation: take a file for an episode; leave the measured time out."""
    pa = pytest.importorskip("pyarrow", reason="pyarrow, which the page asks for, is not installed")
    import pyarrow.parquet as pq

    names = ["kElbow", "kHandIndex"]
    folder, rng = tmp_path / "g1_inspire_real", np.random.default_rng(0)
    (folder / "data/chunk-000").mkdir(parents=True)
    (folder / "meta").mkdir()
    features = {column: {"names": [names]} for column in ("observation.state", "action")}
    (folder / "meta/info.json").write_text(json.dumps({"fps": 10, "features": features}))
    rows = {name: rng.normal(size=(9, 2)).astype("f4") for name in features}
    table = {name: x.tolist() for name, x in rows.items()}
    table |= {"episode_index": [0] * 4 + [1] * 5, "timestamp": (np.r_[0:4, 0:5] / 10).tolist()}
    pq.write_table(pa.table(table), folder / "data/chunk-000/episode_000000.parquet")
    (tmp_path / "table_to_store.py").write_text(scripts()["table_to_store.py"])
    python(tmp_path, "table_to_store.py")
    store = Store.open(tmp_path / "data/g1.zarr")
    assert store.lengths.tolist() == [4, 5] and np.array_equal(store.read("action"), rows["action"])
    assert store.spec.action.units == ("rad", "1") and store.spec.action.rate_hz == 10


def test_the_g1_s_numbers_become_a_store(tmp_path):
    """The page's recipe on the recordings it names."""
    pytest.importorskip("pyarrow", reason="pyarrow, which the page asks for, is not installed")
    if not G1.is_dir():
        pytest.skip(f"{G1} is not there")
    (tmp_path / "g1_inspire_real").symlink_to(G1)
    (tmp_path / "table_to_store.py").write_text(scripts()["table_to_store.py"])
    python(tmp_path, "table_to_store.py")
    store = Store.open(tmp_path / "data/g1.zarr")
    said = [json.loads(line) for line in (G1 / "meta/episodes_stats.jsonl").read_text().splitlines()]
    assert store.lengths.tolist() == [s["stats"]["action"]["count"][0] for s in said]
    for name, column in (("action", "action"), ("state", "observation.state")):
        per_episode = np.split(store.read(name), store.episode_ends[:-1])
        assert np.allclose([x.max(0) for x in per_episode], [s["stats"][column]["max"] for s in said], atol=1e-6)
