"""The trainings of a bench: one budget each, and none done twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from polyarm.bench.plan import compose_task, run_of
from polyarm.grammar import setting
from polyarm.spec import UserError


def train(config: dict[str, Any], task: str, about: Any, entry: str, what: Any, out: Path) -> None:
    from polyarm.policies import checkpoint
    from polyarm.train import fit, seconds_per_step

    run = run_of(out, task, entry)
    known = {e: str(run_of(out, task, e)) for e in config["entries"]}
    settings = [word.format(**known) for word in [*what["settings"], *(about.get("policies") or {}).get(entry, [])]]
    c = compose_task(task, about, [*settings, f"train.device={config['device']}", setting("output_dir", run)], out)
    if (run / "config.yaml").exists():  # begun before: the same number of steps
        c.train.steps = checkpoint.read_config(run, c).train.steps
    else:
        c.train.steps = 10_000
        budget = config["core_seconds"] * about.get("budget", 1)
        (run / "bench.json").write_text(json.dumps(trained_for(config, about, entry, what)))
        c.train.steps = max(100, int(budget / seconds_per_step(c)) // 100 * 100)
    c.train.val_every, c.train.checkpoint_every = c.train.steps, max(1, c.train.steps // 4)
    fit(c)


def trained_for(config: dict[str, Any], about: Any, entry: str, what: Any) -> dict[str, Any]:
    """What a run was trained for; another run of the same name is not it."""
    return {
        "core_seconds": config["core_seconds"] * about.get("budget", 1),
        "settings": [*about["settings"], *what["settings"], *(about.get("policies") or {}).get(entry, [])],
    }


def require_same(run: Path, terms: dict[str, Any]) -> None:
    path = run / "bench.json"
    then = json.loads(path.read_text()) if path.exists() else terms
    for key, now in terms.items():
        if then[key] != now:
            raise UserError(
                f"{run} was trained with {key}={then[key]}, now it is {now}: give another output_dir, or remove this run"
            )


def unfinished(run: Path) -> bool:
    if not (run / "config.yaml").exists():
        return True
    from polyarm.policies import checkpoint

    steps = checkpoint.read_config(run).train.steps
    return not (run / "checkpoints" / f"step_{steps:08d}").exists()
