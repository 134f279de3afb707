"""`polyarm collect`: a task's scripted expert, played into a demonstration store."""

from __future__ import annotations

from typing import Any

from polyarm.commands import Command, Words, stopping
from polyarm.progress import waiting


def run(words: Words) -> Any:
    with waiting("loading the simulator", "hydra", "mujoco"):
        from polyarm.collect import collect_task
        from polyarm.config import compose

    config = compose(words.settings)
    with stopping(f"the episodes in {config.collect.path} stay; `{words.line()}` goes on from there"):
        return collect_task(config)


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
