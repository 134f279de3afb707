"""`polyarm bench`: many policies, trained and judged on equal terms."""

from __future__ import annotations

from typing import Any

from polyarm.choices import options
from polyarm.commands import Command, Takes, Words, stopping
from polyarm.progress import waiting
from polyarm.spec import UserError


def run(words: Words) -> Any:
    if len(words.places) != 1:
        raise UserError(
            f"polyarm bench needs the name of one bench as its first word, one of {', '.join(options('bench'))}"
        )
    with waiting("loading torch and the simulator", "torch", "mujoco"):
        from polyarm.bench import bench

    with stopping(f"what was trained and judged stays; `{words.line()}` goes on from there"):
        return bench(words.places[0], words.settings)


COMMAND = Command(
    run,
    "Train and judge many policies on equal terms; a table and a figure",
    "bench NAME [core_seconds=S] [episodes=N] [tasks=[...]] [only=[...]] [output_dir=DIR]",
    "NAME is a file of configs/bench, which says what is trained, on what, and what is varied. The same command goes on\n"
    "where it stopped, and adds what is new. Results: results.json, table.md, figure.png.\n",
    order=50,
    groups=("bench",),
    takes=Takes(place="the name of a bench"),
)
