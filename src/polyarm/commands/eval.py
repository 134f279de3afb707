"""`polyarm eval`: a trained policy, or a mixture of several, judged on fresh seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from polyarm.commands import Command, Takes, Words, stopping
from polyarm.progress import waiting
from polyarm.spec import UserError
from polyarm.words import shares


def run(words: Words) -> Any:
    sources = [Path(place) for place in words.places]
    if not sources:
        raise UserError(
            "polyarm eval needs the output_dir of a training run, or a checkpoint, as its first word: polyarm eval PATH"
        )
    weights = shares(words.weights or None, len(sources))
    for source in sources:
        if not source.exists():
            raise UserError(
                f"{source} does not exist: give the output_dir of a training run, or one of its checkpoints"
            )
    with waiting("loading torch and the simulator", "torch", "mujoco"):
        from polyarm.eval.run import evaluate

    with stopping(f"results that were there stay; `{words.line()}` starts over"):
        return evaluate(sources, words.settings, weights, command=words.line())


COMMAND = Command(
    run,
    "Judge a trained policy on fresh seeds, with an interval, clips and a report",
    "eval DIR [DIR ... --weights W W ...] [eval.episodes=N] [eval.seed=S] [output_dir=DIR] [key=value ...]",
    "DIR is the output_dir of a training run, or one of its checkpoints. Results: result.json, report.html, clips/,\n"
    "in eval/ of the run; those of another checkpoint or other settings beside it, under a name that says which.\n"
    "Several are mixed while they denoise, with weights that sum to one (default: equal).\n"
    "A run without a world (task.measure=action_error) is judged offline: the action error on held-out episodes, beside two\n"
    "baselines; eval.samples=K chunks are drawn from each observation.\n"
    "policy.sampler.angles.steps=N changes the denoising steps, eval.n_action_steps=N the rows executed of each chunk,\n"
    "eval.pick=K executes the best of K chunks by a policy's energy, eval.goals=false hides the goal.\n"
    "eval.ahead=N plans the next chunk when N rows of the present one are left, as an arm must; eval.latency_ms=MS, or auto, says the\n"
    "same in time, and eval.latencies_ms=[MS,...] draws success over it.\n"
    "The other settings of configs/polyarm.yaml are those of the run, and may be given anew where its weights still fit.\n",
    order=40,
    groups=("sampler", "task"),
    takes=Takes(place="runs or checkpoints", weights=True),
)
