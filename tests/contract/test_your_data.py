"""docs/your_data.md, done word by word: a pickle and a folder of pictures become stores; one is trained on and judged.

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

from polyarm.datasets.store import Store

DOC = Path(__file__).parents[2] / "docs" / "your_data.md"
SMALL = ["train.steps=10", "train.batch_size=16", "policy.body.width=32", "policy.body.blocks=1", "train.device=cpu"]


def test_the_page_works(tmp_path):
    page = DOC.read_text()
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

    def python(*words):
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, *words], capture_output=True, text=True, env=env, cwd=tmp_path, check=False
        )
        assert done.returncode == 0, done.stderr

    scripts = re.findall(r"`(\w+\.py)`:\n\n```python\n(.*?)```", page, re.DOTALL)
    assert [name for name, _ in scripts] == ["to_store.py", "pictures_to_store.py"]
    for name, text in scripts:
        (tmp_path / name).write_text(text)
        python(name)
    pictures = Store.open(tmp_path / "data" / "pictures.zarr")
    first = matplotlib.image.imread(tmp_path / "recordings" / "ep_001" / "0000.png")[..., :3]
    assert np.array_equal(pictures.read("front")[4], (first * 255).round().astype("u1")) and len(pictures) == 2
    assert len(Store.open(tmp_path / "data" / "mine.zarr")) == 10

    commands = [line.split()[1:] for line in page.splitlines() if line.startswith("polyarm ")]
    assert [c[0] for c in commands] == ["data", "train", "eval"]
    for command in commands:
        python("-m", "polyarm.cli", *command, *(SMALL if command[0] == "train" else []))
    result = json.loads((tmp_path / "outputs/mine/eval/result.json").read_text())
    assert result["measure"] == "action_error" and result["n"] == 1
