"""`setup.sh` installs once, and brings a Vulkan driver again at each set-up until one drew.

Mutations that turn it red: one stamp for both; a stamp of a driver that did not draw; none of one that did; a set-up that fails for
want of a driver; a stamp that outlives pins.txt; one that is written though the installation failed.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = """#!/bin/sh
case "$*" in
    *swiftshader) echo draw >> log; test -e draws ;;
    *) exit 0 ;;
esac
"""
UV = """#!/bin/sh
case "$1" in
    pip) echo install >> log; test ! -e offline ;;
esac
"""


@pytest.fixture
def setup(tmp_path):
    """Runs it in a folder of its own, where python and uv only say that they were called: (return code, what was called)."""
    for name in ("setup.sh", "pyproject.toml", "pins.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    for place, text in ((".venv/bin/python", PYTHON), ("bin/uv", UV)):
        file = tmp_path / place
        file.parent.mkdir(parents=True)
        file.write_text(text)
        file.chmod(0o755)

    def run():
        log = tmp_path / "log"
        log.write_text("")
        env = {**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
        done = subprocess.run(["./setup.sh"], cwd=tmp_path, env=env, check=False, capture_output=True)
        return done.returncode, log.read_text().split()

    return run


def test_a_driver_is_brought_until_one_draws(setup, tmp_path):
    assert setup() == (0, ["install", "draw"])
    assert setup() == setup() == (0, ["draw"])
    (tmp_path / "draws").touch()
    assert setup() == (0, ["draw"])
    (tmp_path / "draws").unlink()
    assert setup() == setup() == (0, []), "fine: nothing is run"
    with (tmp_path / "pins.txt").open("a") as pins:
        pins.write("# newer\n")
    assert setup() == (0, ["install", "draw"])


def test_an_installation_that_failed_is_done_again(setup, tmp_path):
    (tmp_path / "offline").touch()
    for _ in range(2):
        code, called = setup()
        assert code != 0 and called == ["install"]
    (tmp_path / "offline").unlink()
    assert setup() == (0, ["install", "draw"])
