"""General policy composition: several trained policies, mixed while they denoise, are one policy.

Cao et al., "Compose Your Policies!" (arXiv 2510.01068, algorithm 1). All parts see the same noisy chunk at the same noise
angle; their clean actions are mixed with weights that sum to one, and one sampler walks one grid. Read as clean actions at
equal angle, diffusion, flow and energy policies mix without conversion (see `generate.compose`). The chunk is clipped once,
after mixing.

Carried between chunks: what each part carries. A part with weight 0 is not asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from polyarm.policies.generate.compose import Weights, mix
from polyarm.policies.generate.sample import Sampler
from polyarm.policies.policy import Obs, Plain, Policy, State, require_alike, seen_by, union
from polyarm.spec import UserError


class Mixture(Plain):
    """`policies` with one action space and scale; `weights`: one number a part that sum to one, or a function of the angle.

    The sampler is the heaviest part's unless one is given, so that weight 1 is that part to the bit. A part sees its own
    streams and its own number of observation steps; the mixture asks for all of them.
    """

    def __init__(self, policies: Sequence[Policy], weights: Weights, sampler: Sampler | None = None):
        first = policies[0]
        for other in policies[1:]:
            require_alike(first, other)
        for part in policies:
            if part.past_rows:
                raise UserError(
                    f"policy {part.name} rewrites its past actions while it denoises (horizon = n_obs_steps = {part.n_obs_steps}), "
                    "which no mixture does: train it with a longer horizon"
                )
        self.parts = tuple(policies)
        self._widths = [len(p.start(1)) for p in policies]
        self._mixed = mix([p.denoise for p in policies], weights)  # checks the weights
        self._asked, heaviest = list(range(len(policies))), first
        if not callable(weights):
            totals = [float(torch.as_tensor(w, dtype=torch.float64).mean()) for w in weights]
            heaviest = policies[totals.index(max(totals))]
            self._asked = [i for i, w in enumerate(weights) if bool(torch.as_tensor(w).any())]
            self._mixed = mix([policies[i].denoise for i in self._asked], [weights[i] for i in self._asked])
        self.name = " + ".join(p.name for p in policies)
        self.obs_space = union([p.obs_space for p in policies])
        self.action_space = first.action_space
        self.n_obs_steps = max(p.n_obs_steps for p in policies)
        self.n_action_steps = min(p.n_action_steps for p in policies)
        self.goal_steps = max(p.goal_steps for p in policies)
        self.sampler = sampler or heaviest.sampler
        _require_one_grid([policies[i] for i in self._asked], self.sampler)

    def start(self, b: int) -> State:
        return tuple(x for part in self.parts for x in part.start(b))

    def encode(self, obs: Obs, state: State, generator: torch.Generator | None = None) -> tuple[tuple[Any, ...], State]:
        conds: list[Any] = []
        after: list[Tensor] = []
        at = 0
        for part, width in zip(self.parts, self._widths, strict=True):
            cond, new = part.encode(seen_by(part, obs), state[at : at + width], generator)
            conds.append(cond)
            after += new
            at += width
        return tuple(conds[i] for i in self._asked), tuple(after)

    def denoise(self, x: Tensor, phi: Tensor, cond: tuple[Any, ...]) -> Tensor:
        return self._mixed(x, phi, cond)


def _require_one_grid(parts: Sequence[Policy], sampler: Sampler) -> None:
    """Refuse a part with a schedule a channel beside one without, or beside other schedules: its network knows no other pairs of
    angles than its own."""
    for part in parts:
        for other in (*(p.sampler for p in parts), sampler):
            one, two = part.sampler.angles, other.angles
            if one.ndim == 2 and not (one.shape == two.shape and bool(torch.equal(one, two))):
                raise UserError(
                    f"policy {part.name} noises some channels by another schedule than the rest, and the mixture walks one angle: mix a "
                    "policy with one schedule instead, such as policy=actor3d"
                )
