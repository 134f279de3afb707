"""The points of a bench, played on the same seeds."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from polyarm.bench.plan import Judged
from polyarm.bench.results import read
from polyarm.config import override


def judge_all(config: dict[str, Any], about: dict[str, Any], points: list[Judged], out: str) -> list[dict[str, Any]]:
    known = read(Path(out))
    rows = []
    for point in points:
        n = int(about.get("episodes") or config["episodes"])
        row = known.get(point.key)
        if row is None or row["n"] != n or row["seeds"][0] != config["seed"] or row["trained"] != stamp(point):
            row = judge_point(point, n, int(config["seed"]), str(config["device"]))
        rows.append(row)
    return rows


def judge_point(point: Judged, n: int, seed: int, device: str) -> dict[str, Any]:
    from polyarm.eval.judge import judge, terms
    from polyarm.eval.latency import ahead
    from polyarm.eval.score import HEADLINE

    policy, worlds, config = open_point(point, n, device)
    with closing(worlds):
        rows = ahead(config, policy, worlds, device).rows
        _, found = judge(policy, worlds, range(seed, seed + n), **terms(config), ahead=rows, device=device)
    return {
        "key": point.key, "task": point.task, "name": point.name, "settings": list(point.settings), "x": point.x,
        "weights": list(point.weights), "runs": [str(r) for r in point.runs], "trained": stamp(point),
        "steps": config.train.steps, "batch_size": config.train.batch_size,
        "value": found[HEADLINE[found["measure"]]], **found,
    }  # fmt: skip


def open_point(point: Judged, n: int, device: str) -> tuple[Any, Any, DictConfig]:
    import torch

    from polyarm.eval.effect import require_effect
    from polyarm.eval.rollout import make_worlds
    from polyarm.eval.run import load_policy
    from polyarm.policies import checkpoint

    torch.set_num_threads(1)
    folders = [checkpoint.find(Path(r)) for r in point.runs]
    owns = [checkpoint.read_config(folder) for folder in folders]
    config = override(owns[0], [*point.settings, "eval.workers=0"])
    require_effect(owns, config, point.settings)
    policy = load_policy(folders, config, point.settings, point.weights, torch.device(device))
    return policy, make_worlds(config, min(config.eval.n_envs, n)), config


def stamp(point: Judged) -> list[int]:
    """When the checkpoints of a point were written: a row from before is no longer true."""
    from polyarm.policies import checkpoint

    return [(checkpoint.find(Path(r)) / "model.safetensors").stat().st_mtime_ns for r in point.runs]
