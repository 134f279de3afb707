"""One rollout loop: an agent in n worlds until every seed has been played."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from omegaconf import DictConfig

from polyarm.eval.agent import Agent
from polyarm.eval.score import Outcome
from polyarm.policies.policy import Policy, device_of
from polyarm.rotation import rows_as, space_as
from polyarm.sim.vector import ShardedVectorEnv
from polyarm.sim.world import find, maker
from polyarm.spec import Spec, UserError, require_actions, require_obs, unknown
from polyarm.task import count_workers, world_kwargs
from polyarm.text import row_text

SUCCESS = ("ever", "last")
"""When an episode counts as solved: `is_success` at any of its steps, or at its last one (a task whose success can pass)."""


@runtime_checkable
class Worlds(Protocol):
    """What a rollout needs of its worlds: `sim.vector.ShardedVectorEnv`, or a real arm."""

    num_envs: int
    look: bool
    """Whether what the next steps show will be looked at; pictures need not be taken where it is False."""

    @property
    def world_spec(self) -> Spec: ...
    def reset(self, *, seed: Any, options: dict[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, Any]]: ...
    def step(self, actions: np.ndarray) -> tuple[Any, ...]: ...


@runtime_checkable
class GoalWorlds(Worlds, Protocol):
    """Worlds that can be asked for a goal; only a policy that takes goals needs them."""

    def goals(self, rows: Sequence[int]) -> list[dict[str, np.ndarray]] | None:
        """What is to be seen at the end in each of these rows; None where the worlds do not say."""
        ...


@runtime_checkable
class Simulations(Worlds, Protocol):
    """Worlds that say what only simulators can promise. Of others, such as a real arm, nothing of it is assumed."""

    @property
    def replays(self) -> bool:
        """Whether the same seed and actions give the same episode again: then it can be played to be looked at and filmed."""
        ...

    @property
    def simulated_time(self) -> bool:
        """Whether time stands still between steps, however long planning takes."""
        ...


@dataclass(frozen=True)
class Played:
    """One episode: what came of it, the actions that replay it, and for a policy with energies that of the chunk executed
    at each step."""

    outcome: Outcome
    actions: np.ndarray  # [T d]
    energy: np.ndarray | None = None  # [T]


def make_worlds(config: DictConfig, n: int) -> ShardedVectorEnv:
    """`n` worlds of the configuration's task, shared between eval.workers processes; one in this process where there is only one."""
    task = config.task
    if getattr(maker(find(task.env_id)), "only_one", False):
        return ShardedVectorEnv(task.env_id, world_kwargs(task), 1, 0)
    return ShardedVectorEnv(task.env_id, world_kwargs(task), n, count_workers(config.eval.workers, n))


def rollout(
    policy: Policy,
    worlds: Worlds,
    seeds: Sequence[int],
    n_action_steps: int | None = None,
    device: str | torch.device | None = None,
    progress: Callable[[list[Outcome]], None] = lambda done: None,
    goals: bool = True,
    success: str = "ever",
    ahead: int = 0,
) -> list[Played]:
    """Play one episode a seed; returns them in the order of `seeds`. `device`: the policy's, if not given. With `goals`, a
    policy that takes goals is shown the world's. `success`: one of `SUCCESS`. Chunks are planned `ahead` rows before they are
    used, beside worlds whose time goes on meanwhile.

    New episodes start only between chunks, so that all rows plan together: one batched policy pass a chunk.
    """
    require_world(policy, worlds)
    if success not in SUCCESS:
        raise unknown("rule of task.success", str(success), SUCCESS)
    device = device_of(policy) if device is None else device
    waits = isinstance(worlds, Simulations) and worlds.simulated_time
    agent = Agent(policy, worlds.num_envs, n_action_steps, device=device, ahead=ahead, beside=ahead > 0 and not waits)
    with closing(agent):
        return _play(agent, worlds, seeds, progress, goals and policy.goal_steps > 0, success)


def _play(
    agent: Agent, worlds: Worlds, seeds: Sequence[int], progress: Callable[[list[Outcome]], None], goals: bool,
    success: str,
) -> list[Played]:  # fmt: skip
    rows = [_Row(success) for _ in range(worlds.num_envs)]
    waiting = deque(enumerate(seeds))
    found: dict[int, Played] = {}
    space, rotation = agent.policy.action_space, worlds.world_spec.action.rotation
    obs = None
    while len(found) < len(seeds):
        obs = _seat(waiting, rows, worlds, agent, obs, goals)
        for _ in range(agent.n_action_steps):
            actions = rows_as(agent.act(obs), space, rotation)
            worlds.look = agent.looks(np.array([row.index is not None for row in rows]))
            obs, rewards, terminated, truncated, info = worlds.step(actions)
            for i, row in enumerate(rows):
                if row.index is None:
                    continue
                row.take(actions[i], float(rewards[i]), bool(info["is_success"][i]))
                if agent.energy is not None:
                    row.energy.append(float(agent.energy[i]))
                if terminated[i] or truncated[i]:
                    index, episode = row.finish()
                    found[index] = episode
                    progress([e.outcome for e in found.values()])
            if all(row.index is None for row in rows):
                break
    return [found[i] for i in range(len(seeds))]


def require_world(policy: Policy, worlds: Worlds) -> None:
    """Refuse worlds whose observations or actions mean something else; rotations may have another layout."""
    require_spec(policy, worlds.world_spec)


def require_spec(policy: Policy, world: Spec) -> None:
    """As `require_world`, of what a world says of itself."""
    require_obs(policy.obs_space, world.obs, "the policy", "the world")
    turned = space_as(world.action, policy.action_space.rotation)
    require_actions(policy.action_space, turned, "the policy", "the world")


def _seat(
    waiting: deque[tuple[int, int]], rows: list[_Row], worlds: Worlds, agent: Agent, obs: Any, goals: bool
) -> dict[str, np.ndarray]:
    """Give every idle row the next seed; returns the observations of all rows."""
    mask = np.zeros(len(rows), bool)
    seeds: list[int | None] = [None] * len(rows)
    for i, row in enumerate(rows):
        if row.index is None and waiting:
            row.begin(*waiting.popleft())
            mask[i], seeds[i] = True, row.seed
    if mask.any():
        obs, _ = worlds.reset(seed=seeds, options={"reset_mask": mask})
        for name in [s.name for s in worlds.world_spec.obs.streams if s.kind == "text"][:1]:
            for i in np.flatnonzero(mask).tolist():
                rows[i].told = row_text(obs[name][i])
        agent.restart(mask, seeds, _goals(worlds, np.flatnonzero(mask).tolist()) if goals else None)
    return obs


def _goals(worlds: Worlds, rows: list[int]) -> list[dict[str, np.ndarray]]:
    found = worlds.goals(rows) if isinstance(worlds, GoalWorlds) else None
    if found is None:
        raise UserError("this world names no goal to show the policy: give eval.goals=false to act without one")
    return found


def solved(before: bool, now: bool, rule: str) -> bool:
    """Whether an episode counts as solved after a step that says `now`."""
    return now or (before and rule == "ever")


class _Row:
    """What one world is playing now."""

    index: int | None = None

    def __init__(self, success: str):
        self.rule = success

    def begin(self, index: int, seed: int) -> None:
        self.index, self.seed, self.best, self.success = index, seed, 0.0, False
        self.told: str | None = None
        self.actions: list[np.ndarray] = []
        self.energy: list[float] = []

    def take(self, action: np.ndarray, reward: float, success: bool) -> None:
        self.actions.append(action.copy())
        self.best = max(self.best, reward)
        self.success = solved(self.success, success, self.rule)

    def finish(self) -> tuple[int, Played]:
        index, self.index = self.index, None
        assert index is not None
        energy = np.asarray(self.energy) if self.energy else None
        outcome = Outcome(self.seed, self.success, self.best, len(self.actions), self.told)
        return index, Played(outcome, np.stack(self.actions), energy)
