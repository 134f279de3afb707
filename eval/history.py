"""What a policy is shown of n worlds: the newest observations, goals, and what was executed before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float

from polyarm.policies.policy import ACTION, GOAL, Policy
from polyarm.spec import UserError


class History:
    """To observations of each row (world), raw units. `fresh` [n]: whose episode began with the newest."""

    def __init__(self, policy: Policy, n: int):
        self.policy, self.n = policy, n
        self.fresh = np.zeros(n, bool)
        self._begin = np.ones(n, bool)
        self._seen: dict[str, np.ndarray] = {}
        self._goals: dict[str, np.ndarray] = {}
        self._past = np.full((n, policy.past_rows, policy.action_space.width), np.nan, np.float32)

    def restart(self, rows: Bool[np.ndarray, "n"], goals: Sequence[Mapping[str, np.ndarray]] | None = None) -> None:
        """The next observation of the flagged rows is their first. `goals`: as of `Agent.restart`."""
        self._begin |= rows
        self._past[rows] = np.nan
        if goals is not None:
            self._take_goals(np.flatnonzero(rows), goals)

    def see(self, obs: Mapping[str, np.ndarray]) -> None:
        """`obs`: {stream: [n ...]}, the newest."""
        for name in self.policy.obs_space.names:
            new = np.asarray(obs[name])[:, None]
            if name not in self._seen:
                self._seen[name] = np.repeat(new, self.policy.n_obs_steps, 1)
            old = self._seen[name]
            old[:] = np.concatenate([old[:, 1:], new], 1)
            old[self._begin] = new[self._begin]  # before To observations exist, the oldest is repeated
        self.fresh, self._begin = self._begin, np.zeros(self.n, bool)

    def did(self, action: Float[np.ndarray, "n d"]) -> None:
        """What is executed for the newest observation."""
        if self._past.shape[1]:
            self._past[:] = np.concatenate([self._past[:, 1:], action[:, None]], 1)

    def shown(self) -> dict[str, np.ndarray]:
        """What the policy is shown now, {stream: [n o ...]}: copies, which stay as they are while the worlds go on."""
        past = {ACTION: self._past} if self._past.shape[1] else {}
        return {name: x.copy() for name, x in {**self._seen, **self._goals, **past}.items()}

    def _take_goals(self, rows: np.ndarray, goals: Sequence[Mapping[str, np.ndarray]]) -> None:
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
            shape = self.n, self.policy.goal_steps, *stream.shape
            self._goals.setdefault(GOAL + stream.name, np.zeros(shape, stream.dtype))[rows] = new[:, None]
