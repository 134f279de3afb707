"""The folder layout keeps two promises: `datasets` stays free for the package of that name, `configs` is ours.

A mutation that turns this red: an empty `datasets/__init__.py`.
"""

import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).parent.parent


def test_datasets_is_a_namespace_and_configs_a_package():
    assert not (REPO / "datasets" / "__init__.py").exists(), "datasets/__init__.py would hide the installed `datasets`"
    assert (REPO / "configs" / "__init__.py").exists(), "hydra finds polyarm.configs only as a package"


def test_an_installed_datasets_wins_over_the_folder(tmp_path):
    """With the repository root first on the path, as when working in it."""
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "__init__.py").write_text("whose = 'theirs'")
    code = f"import sys; sys.path[:0] = [{str(REPO)!r}, {str(tmp_path)!r}]; import datasets; print(datasets.whose)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=REPO)
    assert done.stdout.strip() == "theirs", done.stderr
