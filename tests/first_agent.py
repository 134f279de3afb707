"""The agent as it was before it could plan ahead, in one class: the reference of `eval.ahead=0` (contract/test_ahead.py)."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float

from polyarm.policies.generate.sample import Sampler
from polyarm.policies.policy import Policy, plan, require_chunk, restart
from polyarm.spec import UserError


class FirstAgent:
    """Turns observations of n worlds into actions, one chunk of Ta rows at a time.

    Every world (row) has its own random generator, seeded when it starts an episode: what a row does depends on its
    episode's seed, not on its neighbours. The policy always sees all n rows, so that results do not change with the
    number of finished ones.

    After `act`, `energy` [n] holds what a policy with energies said of the chunk each row executes; otherwise None.
    """

    def __init__(
        self, policy: Policy, n: int, n_action_steps: int | None = None, sampler: Sampler | None = None,
        device: str | torch.device = "cpu",
    ):  # fmt: skip
        self.policy, self.sampler, self.device = policy, sampler, torch.device(device)
        self.n_action_steps = n_action_steps or policy.n_action_steps
        require_chunk(policy.action_space.horizon, policy.n_obs_steps, self.n_action_steps)
        self.seconds: list[float] = []
        self.energy: np.ndarray | None = None
        self._history: dict[str, np.ndarray] = {}
        self._goals: dict[str, np.ndarray] = {}
        self._past = np.full((n, policy.past_rows, policy.action_space.width), np.nan, np.float32)
        self._fresh = np.ones(n, bool)
        self._left = np.zeros(n, int)
        self._chunk = np.zeros((n, self.n_action_steps, policy.action_space.width), np.float32)
        self._generators = [torch.Generator(self.device) for _ in range(n)]
        self._idle = torch.Generator(self.device).manual_seed(0)
        self._state = tuple(x.to(self.device) for x in policy.start(n))

    def restart(
        self, rows: Bool[np.ndarray, "n"], seeds: Sequence[int | None],
        goals: Sequence[Mapping[str, np.ndarray]] | None = None,
    ) -> None:  # fmt: skip
        """Start new episodes in the flagged rows; the next observation is their first. `goals`: for each flagged row what
        is to be seen at the end, {stream: [...]}; None, for all of an agent's life, to act without."""
        self._fresh |= rows
        self._left[rows] = 0
        self._past[rows] = np.nan
        for row in np.flatnonzero(rows):
            self._generators[row].manual_seed(int(seeds[row] or 0))
        if goals is not None:
            self._take_goals(np.flatnonzero(rows), goals)

    def act(self, obs: Mapping[str, np.ndarray]) -> Float[np.ndarray, "n d"]:
        """The next action of every row, raw units. `obs`: {stream: [n ...]}, the newest observation."""
        self._remember(obs)
        empty = self._left == 0
        if empty.any():
            self._plan(empty)
        action = self._chunk[np.arange(len(empty)), self.n_action_steps - self._left]
        self._left -= 1
        if self._past.shape[1]:
            self._past[:] = np.concatenate([self._past[:, 1:], action[:, None]], 1)
        return action

    def _take_goals(self, rows: np.ndarray, goals: Sequence[Mapping[str, np.ndarray]]) -> None:
        n, length = len(self._left), self.policy.goal_steps
        for stream in self.policy.obs_space.streams:
            if stream.name not in goals[0]:
                raise UserError(
                    f"the goal has streams {', '.join(goals[0])}, policy {self.policy.name} needs {stream.name!r}: "
                    "give eval.goals=false to act without a goal"
                )
            new = np.stack([np.asarray(goal[stream.name], stream.dtype) for goal in goals])
            if new.shape[1:] != stream.shape:
                raise UserError(
                    f"the goal of stream {stream.name!r} has shape {new.shape[1:]}, policy {self.policy.name} was trained on "
                    f"{stream.shape}: use the task it was trained on"
                )
            kept = self._goals.setdefault(f"goal.{stream.name}", np.zeros((n, length, *stream.shape), stream.dtype))
            kept[rows] = new[:, None]

    def _remember(self, obs: Mapping[str, np.ndarray]) -> None:
        for name in self.policy.obs_space.names:
            new = np.asarray(obs[name])[:, None]
            if name not in self._history:
                self._history[name] = np.repeat(new, self.policy.n_obs_steps, 1)
            old = self._history[name]
            old[:] = np.concatenate([old[:, 1:], new], 1)
            old[self._fresh] = new[self._fresh]  # before To observations exist, the oldest is repeated
        self._newly, self._fresh = self._fresh, np.zeros_like(self._fresh)

    def _plan(self, rows: np.ndarray) -> None:
        began = time.perf_counter()
        with torch.no_grad():
            seen = {**self._history, **self._goals, **({"action": self._past} if self._past.shape[1] else {})}
            obs = {name: torch.from_numpy(x.copy()).to(self.device) for name, x in seen.items()}
            mask = torch.from_numpy(rows).to(self.device)
            before = restart(self.policy, self._state, torch.from_numpy(self._newly).to(self.device))
            generators = [g if wanted else self._idle for g, wanted in zip(self._generators, rows, strict=True)]
            actions, after, energy = plan(self.policy, obs, before, generators, self.sampler)
            self._state = tuple(
                torch.where(mask.view(-1, *[1] * (new.ndim - 1)), new, old)
                for new, old in zip(after, before, strict=True)
            )
            first = self.policy.n_obs_steps - 1  # the row that belongs to the newest observation
            planned = actions[:, first : first + self.n_action_steps].cpu().numpy()
            if energy is not None:
                old = np.zeros(len(rows)) if self.energy is None else self.energy
                self.energy = np.where(rows, energy.cpu().double().numpy(), old)
        self._chunk[rows] = planned[rows]
        self._left[rows] = self.n_action_steps
        self.seconds.append(time.perf_counter() - began)
