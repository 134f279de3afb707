"""How long planning takes, and how many network evaluations."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from polyarm.eval.agent import Agent
from polyarm.eval.rollout import Worlds
from polyarm.policies.mixture import Mixture
from polyarm.policies.policy import Policy, leaves


def time_chunks(
    policy: Policy, worlds: Worlds, seed: int, device: torch.device, n: int = 30
) -> tuple[list[float], int | None]:
    """`chunk_times` for one world, which is reset for it, and the network evaluations of each: calls of the policy's `bodies`,
    where one whose gradient is taken counts three (the way back costs about two ways there); None where a part does not say
    which they are."""
    mask = np.zeros(worlds.num_envs, bool)
    mask[0] = True
    obs, _ = worlds.reset(seed=[seed, *[None] * (worlds.num_envs - 1)], options={"reset_mask": mask})
    count = 0

    def counted(module: Any, inputs: Any, output: Any) -> None:
        nonlocal count
        count += 3 if any(isinstance(x, torch.Tensor) and x.requires_grad for x in inputs) else 1

    told = all(part.bodies for part in leaves(policy))
    hooks = [body.register_forward_hook(counted) for part in leaves(policy) for body in part.bodies]
    try:
        taken = chunk_times(policy, obs, device, n)
    finally:
        for hook in hooks:
            hook.remove()
    return taken, count // (n + 1) if told else None


def chunk_times(policy: Policy, obs: Mapping[str, np.ndarray], device: torch.device, n: int = 30) -> list[float]:
    """Milliseconds to plan one chunk for the first of the worlds that show `obs`, n times, after a first to warm up."""
    agent = Agent(policy, 1, 1, device=device)
    for _ in range(n + 1):
        agent.act({name: x[:1] for name, x in obs.items()})
    return [round(1000 * s, 3) for s in agent.seconds[1:]]


def bookkeeping(policy: Mixture, worlds: Worlds, seed: int, device: torch.device, n: int = 100) -> float:
    """What a mixture does beyond its parts, over the time of its network calls: time a chunk outside the bodies, less the
    same of each part alone on the same grid. Taken in turns, medians; on a processor in its own time, which other work on
    the machine disturbs least. (Inside the bodies a mixture may be slower too: two networks share the cache.)"""
    obs, _ = worlds.reset(seed=[seed] * worlds.num_envs, options={})
    one = {name: x[:1] for name, x in obs.items()}
    clock = time.thread_time if device.type == "cpu" else time.perf_counter
    inside, entered = 0.0, 0.0

    def enter(*_: Any) -> None:
        nonlocal entered
        entered = clock()

    def leave(*_: Any) -> None:
        nonlocal inside
        inside += clock() - entered

    bodies = [body for part in leaves(policy) for body in part.bodies]
    hooks = [hook for m in bodies for hook in (m.register_forward_pre_hook(enter), m.register_forward_hook(leave))]
    agents = [Agent(policy, 1, 1, device=device)]
    agents += [Agent(part, 1, 1, policy.sampler, device) for part in policy.parts]
    outside: list[list[float]] = [[] for _ in agents]
    within = []
    for _ in range(n + 1):
        for agent, taken in zip(agents, outside, strict=True):
            inside, began = 0.0, clock()
            agent.act(one)
            taken.append(clock() - began - inside)
            within += [inside] if agent is agents[0] else []
    for hook in hooks:
        hook.remove()
    whole, *parts = (float(np.median(taken[1:])) for taken in outside)
    return (whole - sum(parts)) / float(np.median(within[1:]))
