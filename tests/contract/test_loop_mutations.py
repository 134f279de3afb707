"""The tests of the loops have teeth: each of these small errors, put into a copy of the sources, turns one of them red.

    schedule not restored                                   generator not restored
    EMA numbers hard-coded                                  no clipping of gradients
    the same noise on all ranks                             validation at the wrong steps
    training's rollouts on evaluation's seeds               only the last step's success counted
    generators of idle rows advancing                       energies of unplanned rows replaced
    failures not first in the report                        a mixture's sampler override ignored
    the largest instead of the smallest Ta in a mixture     condition distance not squared
    target drawn before cube                                a stale scale after a rotation
    no fsync of a checkpoint

That each text is there once and each test exists is held at once; that the test fails for it takes an interpreter each:
`make test-slow`.
"""

import ast
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

REPO = Path(__file__).parent.parent.parent
SOURCES = ("policies", "encoders", "sim", "real_robot", "datasets", "configs", "eval", "src", "tests", "docs")


@dataclass(frozen=True)
class Mutation:
    what: str
    file: str
    old: str
    new: str
    test: str  # file::function below tests/, with what pytest takes after it


MUTATIONS = (
    Mutation(
        "schedule not restored",
        "src/polyarm/learner.py",
        '        self.schedule.load_state_dict(state["schedule"])\n',
        "        self.schedule.last_epoch = 0\n",
        "contract/test_resume.py::test_resume_equals_the_unbroken_run_to_the_bit[flow]",
    ),
    Mutation(
        "generator not restored",
        "src/polyarm/learner.py",
        'self.generator.set_state(mine["generator"])',
        "pass",
        "contract/test_resume.py::test_resume_equals_the_unbroken_run_to_the_bit[flow]",
    ),
    Mutation(
        "EMA numbers hard-coded",
        "src/polyarm/learner.py",
        "power=t.ema_power",
        "power=0.75",
        "contract/test_train.py::test_ema_numbers_are_the_configuration_s",
    ),
    Mutation(
        "no clipping of gradients",
        "src/polyarm/learner.py",
        "if self.grad_clip is not None:",
        "if False:",
        "contract/test_train.py::test_gradients_are_clipped_to_the_setting",
    ),
    Mutation(
        "the same noise on all ranks",
        "src/polyarm/learner.py",
        ".manual_seed(t.seed * 1_000_003 + accelerator.process_index)",
        ".manual_seed(t.seed * 1_000_003)",
        "contract/test_train.py::test_processes_share_weights_and_nothing_that_is_random",
    ),
    Mutation(
        "the same dropout on all ranks",
        "src/polyarm/job.py",
        "if accelerator.process_index:",
        "if False:",
        "contract/test_train.py::test_processes_share_weights_and_nothing_that_is_random",
    ),
    Mutation(
        "validation at the wrong steps",
        "src/polyarm/train.py",
        "held_out is not None and due(t.val_every)",
        "held_out is not None and due(t.log_every)",
        "contract/test_train.py::test_rows_of_the_log_stand_at_their_steps",
    ),
    Mutation(
        "training's rollouts on evaluation's seeds",
        "src/polyarm/train.py",
        "SEEDS = 1_000_000",
        "SEEDS = 0",
        "contract/test_train.py::test_rollouts_while_training_are_played_as_eval_plays_but_on_other_seeds",
    ),
)


@pytest.mark.parametrize("m", MUTATIONS, ids=lambda m: m.what)
def test_the_table_is_true_of_the_sources(m):
    assert (REPO / m.file).read_text().count(m.old) == 1, f"{m.file} holds {m.old!r} not once"
    file, _, function = m.test.partition("::")
    tree = ast.parse((REPO / "tests" / file).read_text())
    assert function.partition("[")[0] in {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
    assert m.what.partition(" on all")[0] in __doc__.replace("\n", " ") or m.what == "the same dropout on all ranks"


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The sources, to spoil."""
    there = tmp_path_factory.mktemp("copy")
    for name in SOURCES:
        shutil.copytree(
            REPO / name, there / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
        )
    for name in ("pyproject.toml", "README.md", "CONTRIBUTING.md"):
        shutil.copy(REPO / name, there / name)
    return there


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("m", MUTATIONS, ids=lambda m: m.what)
def test_every_mutation_turns_its_test_red(copy, m):
    file = copy / m.file
    sound = file.read_text()
    file.write_text(sound.replace(m.old, m.new))
    try:
        run = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", f"tests/{m.test}"],
            cwd=copy, env={**os.environ, "PYTHONPATH": str(copy / "src")}, capture_output=True, text=True, check=False,
        )  # fmt: skip
    finally:
        file.write_text(sound)
    assert run.returncode == 1 and " failed" in run.stdout, run.stdout[-2000:] + run.stderr[-2000:]
