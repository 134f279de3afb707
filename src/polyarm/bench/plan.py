"""What a bench is to train and to play: its yaml, entry by entry and point by point."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from polyarm.choices import find
from polyarm.config import compose, explain, read_yaml
from polyarm.grammar import parse
from polyarm.ranges import BENCH, require
from polyarm.spec import unknown
from polyarm.task import has_demos


@dataclass(frozen=True)
class Judged:
    """One point to play: a trained entry, or a mixture of several, with one set of evaluation settings."""

    task: str
    name: str
    runs: tuple[str, ...]
    settings: tuple[str, ...]
    weights: tuple[float, ...] = (1.0,)
    x: int | float | None = None
    """What the figure draws it over, if not its network evaluations."""

    @property
    def key(self) -> str:
        """What nothing else in this bench has: entries may share a name in the figure."""
        of = f" {'/'.join(f'{w:g}' for w in self.weights)}" if len(self.runs) > 1 else ""
        return " ".join([self.task, " + ".join(Path(r).name for r in self.runs) + of, *self.settings])


def read_plan(name: str, words: Sequence[str]) -> DictConfig:
    config = read_yaml(find("bench", name))
    OmegaConf.set_struct(config, True)
    for word in parse(words, config):
        key, new = word.key_or_group, word.value()
        if OmegaConf.select(config, key, default="missing") == "missing":
            raise unknown("setting", key, map(str, config))
        new = require(key, new, BENCH[key]) if key in BENCH else new
        if key == "tasks" and isinstance(new, list):  # names of those to keep
            for task in new:
                if task not in config.tasks:
                    raise unknown("task of this bench", task, map(str, config.tasks))
            new = {t: config.tasks[t] for t in new}
            config.tasks = {}
            OmegaConf.set_struct(config, False)
        try:
            OmegaConf.update(config, key, new, merge=False)
        except OmegaConfBaseException as e:
            raise explain(e, words) from e
    return config


def chosen(config: DictConfig) -> dict[str, Any]:
    names = list(config.entries) if config.only is None else list(config.only)
    for name in names:
        if name not in config.entries:
            raise unknown("entry of this bench", name, map(str, config.entries))
    return {name: OmegaConf.to_container(config.entries[name]) for name in names}


def has_data(task: str, about: Any, out: Path) -> bool:
    config = compose_task(task, about, [], out)
    if config.task.expert or has_demos(config.task):
        return True
    print(f"bench leaves out {task}: no demonstrations at {config.task.demos.path}", file=sys.stderr)
    return False


def compose_task(task: str, about: Any, more: Sequence[str], out: Path) -> DictConfig:
    config = compose([*about["settings"], *more])
    if config.task.expert:
        config.task.demos.path = config.collect.path = str(out / "demos" / f"{task}.zarr")
    return config


def needs(what: Any, entries: Any) -> list[str]:
    """Entries whose run this one's settings name in braces."""
    return [e for e in entries if any("{" + e + "}" in word for word in what["settings"])]


def run_of(out: Path, task: str, entry: str) -> Path:
    return out / "runs" / task / entry


def points(task: str, entry: str, what: Any, out: Path) -> list[Judged]:
    run = (str(run_of(out, task, entry)),)
    group, x = what.get("group", entry), what.get("x")
    sets = [(f"{key}={value}",) for key, values in (what.get("sweep") or {}).items() for value in values]
    sets += [tuple(settings) for settings in what.get("points") or ([] if sets else [()])]
    return [Judged(task, group, run, settings, x=x) for settings in sets]


def mixtures(config: DictConfig, task: str, entries: Any, out: Path) -> list[list[Judged]]:
    """The points of each mixture whose parts are among the entries."""
    found = []
    for mixture in config.get("mixtures") or []:
        if all(part in entries for part in mixture.parts):
            runs = tuple(str(run_of(out, task, part)) for part in mixture.parts)
            found.append([Judged(task, " + ".join(mixture.parts), runs, (), tuple(w)) for w in mixture.weights])
    return found
