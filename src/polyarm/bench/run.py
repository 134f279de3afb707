"""`polyarm bench`: many trainings on the same demonstrations, with one budget, judged on the same seeds; a table and a figure."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

from polyarm.bench.draw import figure, table
from polyarm.bench.judge import judge_all
from polyarm.bench.pieces import pieces
from polyarm.bench.plan import Judged, chosen, compose_task, has_data, mixtures, needs, points, read_plan, run_of
from polyarm.bench.results import ordered, read, write
from polyarm.bench.speed import speeds
from polyarm.bench.timing import time_all
from polyarm.bench.train import require_same, train, trained_for, unfinished
from polyarm.collect import collect_task
from polyarm.progress import Bar
from polyarm.task import count_workers
from polyarm.trust import trust, trusted

MEASURED = {"speed": speeds, "pieces": pieces}
"""What a bench may take instead of training and judging."""


def bench(name: str, words: Sequence[str]) -> dict[str, Any]:
    """Run configs/bench/NAME.yaml under `words` (key=value); returns what results.json holds.

    Nothing done is done again: a second run goes on from the first, with more entries, tasks or points if asked. Trainings
    and evaluations run side by side, one core each; the time of a chunk is taken at the end, one policy after another.
    """
    config = read_plan(name, words)
    entries = chosen(config)
    out = Path(config.output_dir)
    out.mkdir(parents=True, exist_ok=True)
    tasks = {t: s for t, s in config.tasks.items() if has_data(t, s, out)}
    if config.get("measure") in MEASURED:
        return MEASURED[config.measure](config, entries, tasks, out)
    for task, about in tasks.items():
        c = compose_task(task, about, [], out)
        if c.task.expert:
            collect_task(c)
    made: dict[str, Any] = {}
    jobs: list[tuple[Any, ...]] = []
    for task, about in tasks.items():
        for entry, what in entries.items():
            wanted = points(task, entry, what, out)
            jobs.append((train_and_judge, dict(config), task, dict(about), entry, dict(what), wanted, str(out)))
    first = [j for j in jobs if not needs(j[5], entries)]
    rest = [j for j in jobs if needs(j[5], entries)]
    mixed: list[tuple[Any, ...]] = []
    for task, about in tasks.items():
        for wanted in mixtures(config, task, entries, out):
            mixed.append((judge_all, dict(config), dict(about), wanted, str(out)))
    total, done = len(jobs) + len(mixed), 0
    pool = ProcessPoolExecutor(count_workers(config.workers, max(1, total)), get_context("spawn"), trust, trusted())
    try:
        with Bar(f"bench {name}", total) as bar:
            for wave in (first, rest, mixed):
                running = {pool.submit(job[0], *job[1:]): job for job in wave}
                for future in as_completed(running):
                    rows = future.result()
                    made |= {row["key"]: row for row in rows}
                    write(out, made)
                    done += 1
                    bar.at(done, rows[-1]["key"] if rows else "")
    finally:  # after an error or Ctrl-C the pool would first work off what is waiting
        pool.shutdown(wait=False, cancel_futures=True)
        for child in active_children():
            child.terminate()
    rows = ordered(read(out), tasks, config)
    time_all(rows, config, out)
    (out / "table.md").write_text(table(rows))
    figure(rows, out / "figure.png", config.get("x_label"))
    print(f"{table(rows)}\n{out / 'table.md'}\n{out / 'figure.png'}", file=sys.stderr)
    return {"rows": rows}


def train_and_judge(
    config: dict[str, Any],
    task: str,
    about: dict[str, Any],
    entry: str,
    what: dict[str, Any],
    points: list[Judged],
    out: str,
) -> list[dict[str, Any]]:
    """A worker's job: train an entry on a task unless its run is there, then play all its points."""
    run = run_of(Path(out), task, entry)
    run.mkdir(parents=True, exist_ok=True)
    with (run / "bench.log").open("a") as log, contextlib.redirect_stderr(log):
        require_same(run, trained_for(config, about, entry, what))
        if unfinished(run):
            train(config, task, about, entry, what, Path(out))
        return judge_all(config, about, points, out)
