"""Play seeds and say what came of them: what evaluation, benches and training's rollouts have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from polyarm.eval.rollout import Played, Worlds, rollout
from polyarm.eval.score import Outcome, summary
from polyarm.policies.policy import Policy
from polyarm.progress import Bar


def judge(
    policy: Policy,
    worlds: Worlds,
    seeds: Sequence[int],
    *,
    measure: str,
    success: str = "ever",
    n_action_steps: int | None = None,
    goals: bool = True,
    ahead: int = 0,
    device: str | torch.device | None = None,
    stages: int = 0,
    title: str | None = None,
) -> tuple[list[Played], dict[str, Any]]:
    """(one episode a seed, their `score.summary`). `title`: of a progress bar, None for none; the rest is `rollout`'s and
    `summary`'s, and what a configuration says of it `terms`."""
    with Bar(title or "", len(seeds), show=title is not None) as bar:
        played = rollout(
            policy,
            worlds,
            seeds,
            n_action_steps,
            device,
            lambda done: bar.at(len(done), _running(done, measure)),
            goals,
            success,
            ahead,
        )
    return played, summary([p.outcome for p in played], measure, stages=stages)


def terms(config: DictConfig) -> dict[str, Any]:
    """How a configuration wants episodes played and counted: `judge(..., **terms(config))`. The rule of success is younger
    than some tasks. How far ahead chunks are planned depends on the policy: `latency.ahead`."""
    return {
        "measure": config.task.measure, "success": config.task.get("success", "ever"),
        "n_action_steps": config.eval.n_action_steps, "goals": config.eval.goals,
    }  # fmt: skip


def _running(done: list[Outcome], measure: str) -> str:
    values = [o.success if measure == "success" else o.score for o in done]
    return f"{measure} {np.mean(values):.2f}"
