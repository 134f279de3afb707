"""docs/first_hour.py runs top to bottom, cell by cell in one namespace as a notebook would.

Mutation: rename a stream, or a key of a result, in any cell.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "docs" / "first_hour.py"


def run(place, text):
    (place / "first_hour.py").write_text(text)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    done = subprocess.run(
        [sys.executable, "first_hour.py"], capture_output=True, text=True, env=env, cwd=place, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    home = place / "outputs/first_hour"
    assert {p.name for p in home.glob("*.png")} == {"actions.png", "loss.png", "scores.png"}
    assert (home / "flow/eval/report.html").exists() and "no success rate" in done.stdout
    return done.stdout


def test_every_cell_works_at_a_small_size(tmp_path):
    text, n = re.subn(r"^SHARE = 1\.0 ", "SHARE = 0.02 ", SCRIPT.read_text(), flags=re.MULTILINE)
    assert n == 1
    run(tmp_path, text)


@pytest.mark.slow
def test_it_runs_as_it_is_and_the_policy_has_learnt(tmp_path):
    said = run(tmp_path, SCRIPT.read_text())
    assert float(re.search(r"flow: ([\d.]+) of", said)[1]) > 0.5
