"""How long a chunk of each point takes, one policy after another with nothing beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from polyarm.bench.judge import open_point
from polyarm.bench.plan import Judged
from polyarm.bench.results import write
from polyarm.progress import Bar


def time_all(rows: list[dict[str, Any]], config: DictConfig, out: Path) -> None:
    """Milliseconds and network evaluations of a chunk, one policy after another with nothing beside them."""
    from polyarm.eval.machine import machine, pick_device
    from polyarm.eval.timing import bookkeeping, time_chunks
    from polyarm.policies.mixture import Mixture
    from polyarm.policies.policy import leaves

    wanted = [r for r in rows if "evaluations" not in r]
    device = pick_device(config.device)
    with Bar("time chunks", len(wanted)) as bar:
        for i, row in enumerate(wanted):
            point = Judged(row["task"], row["name"], tuple(row["runs"]), tuple(row["settings"]), tuple(row["weights"]))
            policy, worlds, _ = open_point(point, 1, str(device))
            ms, row["evaluations"] = time_chunks(policy, worlds, int(config.seed), device)
            if isinstance(policy, Mixture):
                row["bookkeeping"] = bookkeeping(policy, worlds, int(config.seed), device)
            worlds.close()
            row["ms"] = sorted(ms)[len(ms) // 2]
            row["parameters"] = sum(p.numel() for part in leaves(policy) for p in part.parameters())
            row["machine"] = machine(device)
            bar.at(i + 1, row["key"])
    write(out, {row["key"]: row for row in wanted})
