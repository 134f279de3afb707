"""How long planning takes, and how many rows ahead of their use chunks are therefore planned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from polyarm.eval.plan import require_ahead
from polyarm.eval.rollout import Simulations, Worlds
from polyarm.eval.timing import chunk_times
from polyarm.policies.policy import Policy
from polyarm.spec import UserError

PERCENTILE = 95
"""Of measured times of a chunk: what eval.latency_ms=auto counts with."""


@dataclass(frozen=True)
class Ahead:
    """Chunks are planned so many rows before they are used; what takes `latency_ms` is then in time."""

    rows: int
    latency_ms: float


def ahead(config: DictConfig, policy: Policy, worlds: Worlds | None = None, device: Any = "cpu") -> Ahead:
    """As eval.ahead or eval.latency_ms of `config` say. Only to measure are `worlds` needed; they are reset for it."""
    e, rate = config.eval, policy.action_space.rate_hz
    steps = e.n_action_steps or policy.n_action_steps
    if e.latency_ms is None:
        require_ahead(policy, steps, e.ahead)
        return Ahead(e.ahead, 1000 * e.ahead / rate)
    if e.ahead:
        raise UserError(
            f"eval.ahead={e.ahead} and eval.latency_ms={e.latency_ms} say the same in rows and in time: give one of them"
        )
    if e.latency_ms != "auto":
        return of_latency(config, policy, float(e.latency_ms))
    if worlds is None:
        raise UserError("eval.latency_ms=auto is measured by `polyarm eval`: give the ms that it found, or eval.ahead")
    n = worlds.num_envs
    obs, _ = worlds.reset(seed=[e.seed + i for i in range(n)], options={"reset_mask": np.ones(n, bool)})
    measured = float(np.percentile(chunk_times(policy, obs, torch.device(device)), PERCENTILE))
    return of_latency(config, policy, measured, "eval.latency_ms=auto, measured as ")


def of_latency(config: DictConfig, policy: Policy, ms: float, setting: str = "eval.latency_ms=") -> Ahead:
    """Rows that last as long."""
    if config.task.get("action_kind") == "keypose":
        raise UserError(
            f"{setting}{ms:g}: keyposes take as long as the arm needs, so that a time is no number of rows; give eval.ahead"
        )
    rate = policy.action_space.rate_hz
    rows = ceil(ms * rate / 1000 - 1e-9)
    given = f"{setting}{ms:g} ms, {rows} rows at {rate:g} Hz" if rows else ""
    require_ahead(policy, config.eval.n_action_steps or policy.n_action_steps, rows, given)
    return Ahead(rows, float(ms))


def swept(config: DictConfig, policy: Policy, judged: Ahead, worlds: Simulations) -> list[Ahead]:
    """What eval.latencies_ms asks for, and `judged` among them, by rising latency; nothing where it asks for nothing."""
    asked: Sequence[float] = config.eval.latencies_ms
    if asked and not worlds.simulated_time:
        raise UserError(
            f"eval.latencies_ms={list(asked)}: {config.task.env_id} goes on while the policy plans, so that no other latency than "
            "its own can be judged there; leave it out"
        )
    some = [of_latency(config, policy, float(ms), "eval.latencies_ms=") for ms in asked if ms != judged.latency_ms]
    return sorted([judged, *some], key=lambda a: a.latency_ms) if asked else []
