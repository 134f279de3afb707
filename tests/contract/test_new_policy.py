"""docs/new_policy.md, done word by word: a policy from outside the repository trains, resumes, plays and is mixed.

Mutation: ignore `--configs`; let the checkpoint need the yaml folder.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

DOC = Path(__file__).parents[2] / "docs" / "new_policy.md"
SMALL = ["train.steps=40", "train.batch_size=16", "policy.body.width=32", "policy.body.blocks=1"]


def test_the_page_works(tmp_path):
    page = DOC.read_text()
    for name, language in re.findall(r"`mine/(\S+)`:\n\n```(\w+)", page):
        text = page.split(f"`mine/{name}`:\n\n```{language}\n")[1].split("```")[0]
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / name).write_text(text)
    assert {p.name for p in (tmp_path / "mine").rglob("*") if p.is_file()} == {"regression.py", "regression.yaml"}

    def polyarm(*words, cwd=tmp_path):
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": "mine"}
        done = subprocess.run(
            [sys.executable, "-m", "polyarm.cli", *words], capture_output=True, text=True, env=env, cwd=cwd, check=False
        )
        assert done.returncode == 0, done.stderr

    polyarm("collect", "collect.episodes=6", "collect.workers=1")
    commands = [line for line in page.splitlines() if line.startswith("polyarm ")]
    assert [c.split()[1] for c in commands] == ["train", "eval", "eval"]
    polyarm("train", "policy=flow", "output_dir=outputs/flow", *SMALL)
    polyarm(*commands[0].split()[1:], *SMALL)
    (tmp_path / "mine" / "policy" / "regression.yaml").unlink()  # the checkpoint holds its configuration
    play = ["eval.episodes=2", "eval.n_envs=2", "eval.workers=0", "eval.videos=0"]
    for command in commands[1:]:
        polyarm(*command.split()[1:], *play)
    result = json.loads((tmp_path / "outputs/regression/eval_mixture/result.json").read_text())
    assert result["policy"] == "regression + flow" and result["weights"] == [0.3, 0.7]
    assert json.loads((tmp_path / "outputs/regression/eval/result.json").read_text())["network_evaluations"] == 1
