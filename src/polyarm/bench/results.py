"""results.json of a bench: rows by their key, which several benches may write to one after another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from polyarm.eval.place import written
from polyarm.lock import lock


def read(out: Path) -> dict[str, Any]:
    path = out / "results.json"
    return {row["key"]: row for row in json.loads(path.read_text())["rows"]} if path.exists() else {}


def write(out: Path, made: dict[str, Any]) -> None:
    """Rows made here, beside those that are there: another bench of other tasks may write meanwhile, and waits its turn."""
    with lock(out, "this bench", wait=True), written(out / "results.json") as work:
        work.write_text(json.dumps({"rows": list((read(out) | made).values())}, indent=1))


def ordered(played: dict[str, Any], tasks: Any, config: DictConfig) -> list[dict[str, Any]]:
    names = [OmegaConf.to_container(e).get("group", n) for n, e in config.entries.items()]  # type: ignore[union-attr]
    rank = lambda row: (
        list(tasks).index(row["task"]),
        len(row["runs"]) > 1,
        names.index(row["name"]) if row["name"] in names else len(names),
        row["x"] or 0,
    )
    return sorted((r for r in played.values() if r["task"] in tasks), key=rank)
