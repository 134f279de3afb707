"""docs/new_task.md, done word by word: a gymnasium environment from outside the repository is collected in, trained for,
judged in and benched, by `--configs` alone; and trained for on recordings.

Mutations: do not let `--configs` find modules; let eval refuse module:Id; let a bench's processes not know the folder.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np

from polyarm.datasets.store import Store

DOC = Path(__file__).parents[2] / "docs" / "new_task.md"
BODY = ["policy.body.width=16", "policy.body.blocks=1"]
SMALL = {
    "collect": ["collect.episodes=4", "collect.workers=2"],
    "train": ["train.steps=10", "train.batch_size=16", "train.device=cpu", *BODY],
    "eval": ["eval.episodes=2", "eval.n_envs=2", "eval.workers=2", "eval.videos=1"],
    "bench": [
        "core_seconds=0.1", "episodes=1", "workers=1", "only=[flow]", f"entries.flow.settings=[policy=flow,{','.join(BODY)}]",
        "entries.flow.sweep={policy.sampler.angles.steps: [1]}",
        "tasks.swing.settings=[task=swing,collect.episodes=3,collect.workers=1,train.batch_size=16,data.val_ratio=0]",
    ],
}  # fmt: skip


def test_the_page_works(tmp_path):
    page = DOC.read_text()
    files = re.findall(r"`(mine/\S+)`:\n\n```\w+\n(.*?)```", page, re.DOTALL)
    assert [name for name, _ in files] == ["mine/swing.py", "mine/task/swing.yaml", "mine/recorded.py"]
    for name, text in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    env = {**os.environ, "OMP_NUM_THREADS": "1"}

    def python(*words):
        command = [sys.executable, *words]
        done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path, check=False)
        assert done.returncode == 0, done.stderr

    commands = [shlex.split(line)[1:] for line in page.splitlines() if line.startswith(("polyarm ", "python "))]
    assert [c[0] for c in commands] == ["collect", "train", "eval", "bench", "mine/recorded.py", "train", "eval"]
    for command in commands:
        if command[0].endswith(".py"):
            seen = Store.open(tmp_path / "data" / "swing.zarr")
            state, torque = (seen.read(name).reshape(4, 200, -1) for name in ("state", "action"))
            np.savez(tmp_path / "recorded.npz", state=state, torque=torque)
            python(*command)
        else:
            python("-m", "polyarm.cli", *command, *SMALL[command[0]])
    assert Store.open(tmp_path / "data" / "swing.zarr").successes.all()
    for run in ("swing", "recorded"):
        result = json.loads((tmp_path / "outputs" / run / "eval" / "result.json").read_text())
        assert result["n"] == 2 and result["versions"]["env"] == "Pendulum-v1"
    assert len(list((tmp_path / "outputs/swing/eval/clips").glob("*.mp4"))) == 1
    assert [row["task"] for row in json.loads((tmp_path / "outputs/bench/results.json").read_text())["rows"]] == [
        "swing"
    ]
