"""`polyarm collect`: a task's scripted expert, played into a demonstration store."""

from __future__ import annotations

import shlex
from typing import Any

from polyarm.commands import Command, Words, say, stopping
from polyarm.progress import waiting


def run(words: Words) -> Any:
    with waiting("loading the simulator", "hydra", "mujoco"):
        from polyarm.collect import collect_task
        from polyarm.config import compose

    config = compose(words.settings)
    with stopping(f"the episodes in {config.collect.path} stay; `{words.line()}` goes on from there"):
        done = collect_task(config)
    say(
        f"collected: {done['episodes']} episodes in {config.collect.path}\nlook:      {shlex.join(['polyarm', 'data', 'info', str(config.collect.path)])}"
    )
    return done


COMMAND = Command(
    run,
    "Play a task's scripted expert into a demonstration store",
    "collect [task=NAME] [collect.episodes=N ...]",
    "collect.path      the store; one that exists is continued\n"
    "collect.episodes  successful episodes in all\n"
    "collect.seed      of the first episode\n"
    "collect.workers   processes, or auto\n"
    "task.env_kwargs.cameras=[front,wrist]   records images too\n",
    order=20,
    groups=("task",),
)
