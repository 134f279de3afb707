"""A wheel built from the repository is all that a fresh environment needs of polyarm.

Mutations that turn it red: leave yaml or html out of package-data; read a file of the repository's root; follow no links of src/.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
SMALL = [
    "collect.episodes=6", "train.steps=20", "train.batch_size=16", "policy.body.width=16", "policy.body.blocks=1", "eval.episodes=2",
    "eval.videos=1", "train.device=cpu", "eval.device=cpu",
]  # fmt: skip


def done(*command, cwd, **env):
    outer = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "POLYARM_CONFIGS")}
    found = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, cwd=cwd, env={**outer, **env}, check=False
    )
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """The interpreter of a fresh environment that has the wheel, and of this one the dependencies alone: its .pth files, with
    which polyarm would come from the repository, are not read there."""
    home = tmp_path_factory.mktemp("wheel")
    leave_out = shutil.ignore_patterns(
        ".git", ".venv", "outputs", "data", "build", "*.egg-info", "__pycache__", "tests"
    )
    shutil.copytree(REPO, home / "source", symlinks=True, ignore=leave_out)
    pip = [sys.executable, "-m", "pip", "--no-input", "--disable-pip-version-check"]
    done(*pip, "wheel", "-q", "--no-deps", "--no-index", "--no-build-isolation", "-w", home, home / "source", cwd=home)
    shutil.rmtree(home / "source")
    venv.create(home / "venv")
    mine = home / "venv/bin/python"
    (wheel,) = home.glob("polyarm-*.whl")
    done(*pip, "--python", mine, "install", "-q", "--no-deps", "--no-index", wheel, cwd=home)
    (site,) = (home / "venv/lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return mine


@pytest.mark.slow
def test_the_demo_runs_in_an_empty_folder(python, tmp_path):
    where = done(python, "-c", "import polyarm, sys; print(polyarm.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(python.parent.parent)
    command = python.with_name("polyarm")
    done(command, "demo", *SMALL, cwd=tmp_path, OMP_NUM_THREADS="1")
    result = json.loads((tmp_path / "outputs/demo/result.json").read_text())
    assert result["n"] == 2 and not result["notes"]
    assert "<html" in (tmp_path / "outputs/demo/report.html").read_text()


@pytest.mark.slow
def test_what_a_user_chooses_from_is_inside(python, tmp_path):
    """Every yaml, and the classes they name."""
    said = done(
        python, "-c", "from polyarm.choices import groups, options; import json; print(json.dumps({g: options(g) for g in groups()}))",
        cwd=tmp_path,
    )  # fmt: skip
    there = {f.relative_to(REPO / "configs").with_suffix("") for f in (REPO / "configs").glob("*/*.yaml")}
    assert {Path(group, name) for group, names in json.loads(said).items() for name in names} == there
    done(
        python, "-c", "from polyarm.config import compose\nfrom polyarm.choices import options\n"
        "for p in options('policy'): compose([f'policy={p}', 'body=mlp'])", cwd=tmp_path,
    )  # fmt: skip
