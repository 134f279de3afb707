"""Best of k: of several chunks from one policy, the one another policy's energy likes best.

The `pick` of general policy composition (Cao et al., "Compose Your Policies!", arXiv 2510.01068) with the energies of
EBT-Policy (arXiv 2510.27545): a chunk's energy says how unlike the demonstrations it is.

Carried between chunks: what the policy carries, then what the judge carries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from polyarm.policies.generate.forms import Denoise, Noise, normal
from polyarm.policies.generate.sample import Sampler
from polyarm.policies.policy import Obs, Plain, Policy, State, require_alike, seen_by, union
from polyarm.spec import UserError


@dataclass(frozen=True, eq=False)
class Picking(Sampler):
    """The sampler of `policy`, run from `k` noises one after another; a row keeps its chunk of the lowest
    `energy(x, cond) -> [b]`. The first start is the one that the policy's sampler would get, so that k = 1 is that sampler to
    the bit. It is shown the policy's own condition, as a solver may read it (past actions)."""

    policy: Any = None
    energy: Callable[[Tensor, Any], Tensor] | None = None
    k: int = 1

    def __call__(self, denoise: Denoise, x: Tensor, cond: tuple[Any, ...], generator: Noise) -> Tensor:
        assert self.energy is not None
        best = super().__call__(self.policy.denoise, x, cond[0], generator)
        lowest = self.energy(best, cond)
        for _ in range(self.k - 1):
            other = super().__call__(self.policy.denoise, normal(x, generator), cond[0], generator)
            energy = self.energy(other, cond)
            best = torch.where((energy < lowest)[:, None, None], other, best)
            lowest = torch.minimum(energy, lowest)
        return best


class Picked(Plain):
    """`policy`, whose chunks are the best of `k` by `judge.energy`; `judge` may be the policy itself."""

    def __init__(self, policy: Policy, judge: Any, k: int):
        if k < 1:
            raise UserError(f"pick={k}: give the number of chunks to choose from, 1 or more")
        if judge.energy is None:
            raise UserError(
                f"policy {judge.name} has no energy to pick by: add one that has, such as policy=ebt, with weight 0"
            )
        require_alike(policy, judge)
        self.policy, self.judge = policy, judge
        self.parts = (policy,) if judge is policy else (policy, judge)
        self.name = f"best of {k} from {policy.name} by {judge.name}"
        self.obs_space = union([p.obs_space for p in self.parts])
        self.action_space = policy.action_space
        self.n_obs_steps, self.n_action_steps = policy.n_obs_steps, policy.n_action_steps
        self.goal_steps = max(p.goal_steps for p in self.parts)
        self.past_rows = max(p.past_rows for p in self.parts)
        s = policy.sampler
        self.sampler: Sampler = Picking(s.solver, s.angles, s.limit, s.shrink, policy, self.energy, k)
        self._width = len(policy.start(1))

    def start(self, b: int) -> State:
        return tuple(x for part in self.parts for x in part.start(b))

    def encode(self, obs: Obs, state: State, generator: torch.Generator | None = None) -> tuple[tuple[Any, ...], State]:
        conds, after = [], ()
        states = (state[: self._width], state[self._width :])
        for part, own in zip(self.parts, states, strict=False):
            cond, new = part.encode(seen_by(part, obs), own, generator)
            conds.append(cond)
            after += new
        return tuple(conds), after

    def denoise(self, x: Tensor, phi: Tensor, cond: tuple[Any, ...]) -> Tensor:
        return self.policy.denoise(x, phi, cond[0])

    def energy(self, x: Tensor, cond: tuple[Any, ...]) -> Tensor:
        """The judge's, of scaled chunks [b h d] -> [b]."""
        return self.judge.energy(x, cond[-1])
