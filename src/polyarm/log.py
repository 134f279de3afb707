"""The training log: log.jsonl, one row an event, and the same for TensorBoard."""

from __future__ import annotations

import json
import os
import sys
from math import isfinite
from pathlib import Path
from typing import Any


class Log:
    """log.jsonl, one row an event, and the same for TensorBoard. Rows past the resumed step are dropped: they come again."""

    def __init__(self, run: Path, step: int):
        from torch.utils.tensorboard import SummaryWriter

        self.path = run / "log.jsonl"
        rows = [row for row in read_log(self.path) if row["step"] <= step]
        work = self.path.with_suffix(".partial")
        with work.open("w") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))
            file.flush()
            os.fsync(file.fileno())
        work.replace(self.path)
        self.file = self.path.open("a")
        self.board = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1 if step else None)

    def add(self, step: int, **values: Any) -> None:
        """One row. What is no number is said and left out: it would be no JSON."""
        for name in [n for n, v in values.items() if isinstance(v, float) and not isfinite(v)]:
            print(f"{name} is {values.pop(name)} at step {step}: not logged", file=sys.stderr)
        self.file.write(json.dumps({"step": step, **values}) + "\n")
        self.file.flush()
        for name, value in values.items():
            if isinstance(value, int | float):
                self.board.add_scalar(name, value, step)

    def close(self) -> None:
        self.file.close()
        self.board.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """Rows of a log.jsonl; a last line cut off by a kill is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
