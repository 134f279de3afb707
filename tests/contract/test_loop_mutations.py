"""The tests of the loops have teeth: each of these small errors, put into a copy of the sources, turns one of them red.

    schedule not restored
    generator not restored
    EMA numbers hard-coded
    no clipping of gradients
    the same noise on all ranks
    the same dropout on all ranks
    validation at the wrong steps
    training's rollouts on evaluation's seeds
    only the last step's success counted
    generators of idle rows advancing
    energies of unplanned rows replaced
    failures not first in the report
    a mixture's sampler override ignored
    the largest instead of the smallest Ta in a mixture
    condition distance not squared
    target drawn before cube
    a stale scale after a rotation
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
    Mutation(
        "only the last step's success counted",
        "eval/rollout.py",
        'return now or (before and rule == "ever")',
        "return now",
        "contract/test_agent.py::test_a_success_that_passes_counts_as_the_task_says",
    ),
    Mutation(
        "generators of idle rows advancing",
        "eval/planner.py",
        "generators = [g if wanted else self._idle for g, wanted in zip(self._generators, seen.rows, strict=True)]",
        "generators = self._generators",
        "contract/test_agent.py::test_a_row_that_does_not_plan_draws_no_noise",
    ),
    Mutation(
        "energies of unplanned rows replaced",
        "eval/plan.py",
        "self._energy[at], self._felt = chunk.energy[rows], True",
        "self._energy[:], self._felt = chunk.energy[:, None], True",
        "contract/test_agent.py::test_a_neighbours_plan_leaves_the_energy_of_the_chunk_that_is_executed",
    ),
    Mutation(
        "failures not first in the report: curves",
        "eval/report.py",
        "sorted(energies, key=lambda e: e[0])[:MOST_EPISODES]",
        "list(energies)[:MOST_EPISODES]",
        "contract/test_evaluate.py::test_failures_are_shown_first",
    ),
    Mutation(
        "failures not first in the report: clips",
        "eval/film.py",
        "return [*failures, *rest[: max(0, videos - len(failures))]][:videos]",
        "return list(played)[:videos]",
        "contract/test_evaluate.py::test_failures_are_shown_first",
    ),
    Mutation(
        "a mixture's sampler override ignored",
        "eval/run.py",
        "first.sampler if chosen else None",
        "None",
        "contract/test_evaluate.py::test_a_mixture_is_asked_for_by_words_and_says_every_part",
    ),
    Mutation(
        "the largest instead of the smallest Ta in a mixture",
        "policies/mixture.py",
        "self.n_action_steps = min(p.n_action_steps for p in policies)",
        "self.n_action_steps = max(p.n_action_steps for p in policies)",
        "property/test_mixture.py::test_the_mixture_executes_no_more_rows_than_its_most_careful_part",
    ),
    Mutation(
        "condition distance not squared",
        "policies/generate/forms.py",
        "cost = cost + weight * torch.cdist(seen, seen).square()",
        "cost = cost + weight * torch.cdist(seen, seen)",
        "property/test_pairing.py::test_conditions_count_by_their_squared_distance",
    ),
    Mutation(
        "target drawn before cube",
        "sim/mujoco/pick_place.py",
        "        cube = _place(rng)\n        target = _place(rng)\n        while",
        "        target = _place(rng)\n        cube = _place(rng)\n        while",
        "contract/test_worlds.py::test_seeds_start_where_published_figures_had_them_start",
    ),
    Mutation(
        "a stale scale after a rotation",
        "src/polyarm/rotation.py",
        "rotations=tuple(starts), scale=None,",
        "rotations=tuple(starts),",
        "property/test_rotation.py::test_nothing_that_was_fitted_in_another_layout_stays",
    ),
    Mutation(
        "no fsync of a checkpoint",
        "policies/checkpoint.py",
        "        for file in work.iterdir():\n            flush(file)\n",
        "",
        "contract/test_checkpoint.py::test_a_checkpoint_is_on_the_disk_before_it_has_its_name",
    ),
)


@pytest.mark.parametrize("m", MUTATIONS, ids=lambda m: m.what)
def test_the_table_is_true_of_the_sources(m):
    assert (REPO / m.file).read_text().count(m.old) == 1, f"{m.file} holds {m.old!r} not once"
    file, _, function = m.test.partition("::")
    tree = ast.parse((REPO / "tests" / file).read_text())
    assert function.partition("[")[0] in {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
    assert m.what.partition(":")[0] in __doc__


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
