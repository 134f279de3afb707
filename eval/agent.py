"""The one place that turns observations into actions: what was seen, who plans, and what is executed when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float

from polyarm.eval.history import History
from polyarm.eval.plan import Replace, Splice, require_ahead
from polyarm.eval.planner import AtOnce, Beside, Planner, Seen
from polyarm.policies.generate.sample import Sampler
from polyarm.policies.policy import Policy


class Agent:
    """Actions of n worlds (rows), Ta of each chunk.

    The next chunk is planned while `ahead` rows of the present one are left, and used after them: planning may take as long as
    they do. The first chunk of an episode is planned from its first observation and used at once. `beside`: plan in a thread, and
    wait only for what is not ready when it is needed; what is executed is the same.

    After `act`, `energy` [n] holds what a policy with energies said of the chunk each row executes; otherwise None.
    """

    def __init__(
        self, policy: Policy, n: int, n_action_steps: int | None = None, sampler: Sampler | None = None,
        device: str | torch.device = "cpu", ahead: int = 0, beside: bool = False,
    ):  # fmt: skip
        self.policy, self.ahead, self.device = policy, ahead, torch.device(device)
        self.n_action_steps = n_action_steps or policy.n_action_steps
        require_ahead(policy, self.n_action_steps, ahead)
        self.seconds: list[float] = []
        self.energy: np.ndarray | None = None
        self._history = History(policy, n)
        planner = AtOnce(policy, n, sampler, self.device)
        self._planner: Planner = Beside(planner) if beside else planner
        self._plan: Splice = Replace(n, policy.action_space.width, self.n_action_steps)
        self._step = np.zeros(n, int)
        self._asked = np.zeros(n, bool)  # a chunk is being planned that is not in the plan yet

    def restart(
        self, rows: Bool[np.ndarray, "n"], seeds: Sequence[int | None],
        goals: Sequence[Mapping[str, np.ndarray]] | None = None,
    ) -> None:  # fmt: skip
        """Start new episodes in the flagged rows; the next observation is their first. `goals`: for each flagged row what
        is to be seen at the end, {stream: [...]}; None, for all of an agent's life, to act without."""
        while self._asked.any():
            self._take()
        self._step[rows] = 0
        self._plan.restart(rows)
        self._planner.restart(rows, seeds)
        self._history.restart(rows, goals)

    def act(self, obs: Mapping[str, np.ndarray]) -> Float[np.ndarray, "n d"]:
        """The next action of every row, raw units. `obs`: {stream: [n ...]}, the newest observation."""
        self._history.see(obs)
        self._collect()
        while (due := (self._plan.left(self._step) <= self.ahead) & ~self._asked).any():
            self._ask(due)
            self._collect()
        action, self.energy = self._plan.action(self._step), self._plan.energy(self._step)
        self._history.did(action)
        self._step += 1
        return action

    def looks(self, rows: Bool[np.ndarray, "n"]) -> bool:
        """Whether a chunk of one of these rows will be planned with the next observation before it."""
        left = self._plan.left(self._step) + self.n_action_steps * self._asked
        return bool((left[rows] - self.ahead < self.policy.n_obs_steps).any())

    def close(self) -> None:
        self._planner.close()

    def _ask(self, rows: Bool[np.ndarray, "n"]) -> None:
        committed = self._plan.committed(self._step, self.ahead)
        fresh = self._history.fresh & (self._plan.left(self._step) == 0)
        self._planner.submit(Seen(self._history.shown(), rows, fresh, self._step.copy(), committed))
        self._asked |= rows

    def _collect(self) -> None:
        """Take what is planned; wait where a row has nothing left."""
        while self._asked.any() and (self._planner.ready or not self._plan.left(self._step)[self._asked].all()):
            self._take()

    def _take(self) -> None:
        chunk = self._planner.take()
        self._asked &= ~chunk.seen.rows
        self._plan.put(chunk)
        self.seconds.append(chunk.seconds)
