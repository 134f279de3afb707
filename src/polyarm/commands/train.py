"""`polyarm train`: one policy from demonstrations, or with --multirun a sweep of them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from polyarm.commands import Command, Takes, Words, say, stopping
from polyarm.progress import waiting
from polyarm.spec import UserError

SWEEP = ("--multirun", "-m")


def run(words: Words) -> Any:
    from polyarm.config import compose
    from polyarm.grammar import setting
    from polyarm.task import fitting

    settings = fitting(words.settings)
    if words.switches:
        return _sweep(words, settings)
    config = compose(settings)
    again = words.line() if words.gives("output_dir") else words.line(setting("output_dir", config.output_dir))
    with waiting("loading torch", "torch"):
        from polyarm.task import has_demos
        from polyarm.train import fit

    if not words.gives("output_dir") and has_demos(config.task):
        say(f"run:     {config.output_dir}\nresume:  {again}")
    with stopping(f"what was saved in {config.output_dir} stays; `{again}` goes on from there"):
        out = fit(config)
    say(f"trained: {out}\nnext:    {shlex.join(['polyarm', 'eval', str(out), *words.mine])}")
    return {"output_dir": str(out), "resume": again}


def _sweep(words: Words, settings: Sequence[str]) -> Any:
    from polyarm.grammar import setting
    from polyarm.sweep import Sweep
    from polyarm.trust import trusted

    sweep = Sweep.of(settings)
    again = words.line() if words.gives("hydra.sweep.dir") else words.line(setting("hydra.sweep.dir", sweep.folder))
    say(f"sweep:   {len(sweep.jobs)} jobs in {sweep.folder}\nresume:  {again}")
    with stopping(f"what was saved in {sweep.folder} stays; `{again}` goes on from there"):
        done, failed = sweep.run(trusted())
    if failed:
        which = "; ".join(f"{job}: {why}" for job, why in failed.items())
        raise UserError(
            f"{len(failed)} of {len(sweep.jobs)} jobs failed ({which}); done are {', '.join(done) or 'none'}"
        )
    return {"output_dirs": done, "resume": again}


COMMAND = Command(
    run,
    "Train a policy from demonstrations; with the same output_dir the same command resumes",
    "train [experiment=NAME] [policy=NAME] [task=NAME] [train.steps=N] [output_dir=DIR] [key=value ...] [--multirun]",
    "output_dir is the run's folder; without one it is named by the time, and the command to resume is printed.\n"
    "All settings with their meaning: configs/polyarm.yaml. With --multirun (-m), comma-separated values are swept by hydra\n"
    "into folders under hydra.sweep.dir: train.seed=0,1 policy=flow,diffusion 'task.streams=[joint_pos,cube]'\n"
    "An experiment is a whole set of settings; the others are choices in it:\n",
    order=30,
    groups=("experiment", "policy", "task", "body", "encoder", "sampler"),
    takes=Takes(switches=SWEEP),
)
