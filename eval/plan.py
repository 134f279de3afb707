"""What is executed at which step, from chunks that overlap; and how many rows ahead of its use a chunk can be planned."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from jaxtyping import Bool, Float, Int

from polyarm.eval.planner import Chunk
from polyarm.policies.policy import Policy, require_chunk
from polyarm.spec import UserError

Steps = Int[np.ndarray, "n"]
"""Of each row, counted from the start of its episode."""


class Splice(Protocol):
    """The actions of n rows by their steps. Told every chunk whole, with the step that its first row belongs to, so that one may
    blend those that overlap (temporal ensembling)."""

    def restart(self, rows: Bool[np.ndarray, "n"]) -> None:
        """Forget what was planned for these rows, whose steps begin at 0."""
        ...

    def put(self, chunk: Chunk) -> None: ...

    def left(self, step: Steps) -> Int[np.ndarray, "n"]:
        """How many steps from `step` on have an action."""
        ...

    def action(self, step: Steps) -> Float[np.ndarray, "n d"]: ...

    def energy(self, step: Steps) -> Float[np.ndarray, "n"] | None:
        """Of the chunk whose row is executed; None for a policy without energies."""
        ...

    def committed(self, step: Steps, most: int) -> Float[np.ndarray, "n c d"]:
        """The next `most` actions from `step` on, NaN where there is none."""
        ...


class Replace:
    """Ta rows of each chunk, from the step on where the chunk before ends: receding horizon."""

    def __init__(self, n: int, width: int, executed: int):
        self.executed = executed
        self._rows = np.zeros((n, 2 * executed, width), np.float32)  # row of step t at t modulo the length
        self._energy = np.zeros((n, 2 * executed))
        self._felt = False
        self._end = np.zeros(n, int)

    def restart(self, rows: Bool[np.ndarray, "n"]) -> None:
        self._end[rows] = 0

    def put(self, chunk: Chunk) -> None:
        rows = np.flatnonzero(chunk.seen.rows)[:, None]
        steps = self._end[rows] + np.arange(self.executed)
        at = rows, steps % self._rows.shape[1]
        self._rows[at] = chunk.actions[rows, steps - chunk.seen.step[rows]]
        self._end[rows] += self.executed
        if chunk.energy is not None:
            self._energy[at], self._felt = chunk.energy[rows], True

    def left(self, step: Steps) -> Int[np.ndarray, "n"]:
        return self._end - step

    def action(self, step: Steps) -> Float[np.ndarray, "n d"]:
        return self._rows[np.arange(len(step)), step % self._rows.shape[1]]

    def energy(self, step: Steps) -> Float[np.ndarray, "n"] | None:
        return self._energy[np.arange(len(step)), step % self._rows.shape[1]] if self._felt else None

    def committed(self, step: Steps, most: int) -> Float[np.ndarray, "n c d"]:
        steps = step[:, None] + np.arange(most)
        found = self._rows[np.arange(len(step))[:, None], steps % self._rows.shape[1]]
        return np.where((steps < self._end[:, None])[..., None], found, np.float32(np.nan))


def require_ahead(policy: Policy, n_action_steps: int, ahead: int, given: str = "") -> None:
    """Refuse a chunk that is too short for rows `ahead` .. `ahead` + Ta - 1 after the newest observation's to lie in it, and one
    that would be planned before the chunk before it begins. `given`: the setting that asks for it, and its value."""
    require_chunk(policy.action_space.horizon, policy.n_obs_steps, n_action_steps)
    rows = policy.action_space.horizon - policy.n_obs_steps + 1
    if ahead <= n_action_steps <= rows - ahead:
        return
    if 2 * ahead <= rows:
        low, high = max(1, ahead), rows - ahead
        remedy = f"eval.n_action_steps={low}" if low == high else f"an eval.n_action_steps from {low} to {high}"
    else:
        remedy = f"a smaller one (at most {rows // 2} rows ahead)"
    raise UserError(
        f"{given or f'eval.ahead={ahead}'}: policy {policy.name} cannot plan {ahead} rows ahead of the {n_action_steps} that are "
        f"executed of each chunk, which has {rows} rows from the newest observation on: give {remedy}, or train with a longer "
        "policy.horizon"
    )
