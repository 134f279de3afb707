"""Progress of long work: a bar on a terminal, a line now and then in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Bar:
    """`with Bar("train", 1000) as bar: bar.at(10, "loss 0.3")`. Written to stderr."""

    def __init__(self, title: str, total: int, done: int = 0, show: bool = True):
        self.title, self.total, self.show = title, total, show
        self.first, self.last_line, self.began = done, -1, time.perf_counter()
        self.bar: Any = None

    def __enter__(self) -> Bar:
        if self.show and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (
                "{task.description}",
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
            )
            self.bar = Progress(*columns, console=Console(stderr=True))
            self.bar.start()
            self.task = self.bar.add_task(self.title, total=self.total, completed=self.first, note="")
        elif self.show:
            print(f"{self.title}: {self.first}/{self.total}", file=sys.stderr, flush=True)
        return self

    def at(self, done: int, note: str = "") -> None:
        if self.bar is not None:
            self.bar.update(self.task, completed=done, note=note)
        elif self.show and done * 10 // max(self.total, 1) > self.last_line:
            self.last_line = done * 10 // max(self.total, 1)
            seconds = time.perf_counter() - self.began
            left = _left(seconds, done - self.first, self.total - done)
            print(f"{self.title}: {done}/{self.total} after {seconds:.0f} s{left}  {note}", file=sys.stderr, flush=True)

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()


def _left(seconds: float, done: int, rest: int) -> str:
    """How long the rest will take at this pace; nothing where that is no minute, or not known."""
    minutes = seconds / done * rest / 60 if done > 0 else 0.0
    if minutes < 1:
        return ""
    return f", {minutes:.0f} min left" if minutes < 120 else f", {minutes / 60:.1f} h left"


@contextmanager
def waiting(what: str, *modules: str) -> Iterator[None]:
    """Says on a terminal what seconds without a word are spent on; nothing where all `modules` are there already."""
    if sys.stderr.isatty() and not all(m in sys.modules for m in modules or ("",)):
        print(f"{what} ...", file=sys.stderr, flush=True)
    yield
