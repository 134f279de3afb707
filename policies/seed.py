"""SeedPolicy: a diffusion policy with a memory that grows no longer with the episode.

Gui et al., "SeedPolicy", arXiv 2603.05117 (2026). Each observation step becomes one token; SEGA (`encoders/temporal.py`)
enriches the To tokens with what its state tokens remember, and a body conditioned on the enriched tokens alone predicts the
chunk. The state advances once a chunk, so it is tied to that rhythm: train on windows Ta rows apart (`datasets/chains.py`),
act with the same Ta.

Carried between chunks: the state tokens' content [b t c], and whether nothing was seen yet [b]. Published training cuts
gradients at every chunk (k = 1), which leaves the state's own update untrained; k >= 2 windows a clip train it all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polyarm.encoders.temporal import Sega
from polyarm.policies.generate import forms
from polyarm.policies.generate.sample import Sampler
from polyarm.policies.policy import Obs, Plain, State, require_chunk
from polyarm.spec import ActionSpace, ObsSpace


class SeedPolicy(Plain, nn.Module):
    """`encoder(obs_space)`, `memory(width=)` and `body(action_dim=, horizon=, n_obs_steps=, cond_dim=)` are built here, so
    that yaml names only their sizes. Features become tokens of `token_width` through one hidden layer of `hidden` and a
    norm. Training takes `n_chunks` windows a clip and forgets after `reset_interval` of them. `frozen` never trains the
    memory, as the released transformer variant does not; `forget` acts and trains as if every chunk were the first.
    """

    def __init__(
        self,
        name: str,
        obs_space: ObsSpace,
        action_space: ActionSpace,
        horizon: int,
        n_obs_steps: int,
        n_action_steps: int,
        encoder: Callable[..., Any],
        memory: Callable[..., Sega],
        body: Callable[..., nn.Module],
        form: forms.Form,
        sampler: Sampler,
        token_width: int,
        hidden: int,
        dropout: float,
        n_chunks: int,
        reset_interval: int,
        frozen: bool,
        forget: bool,
    ):
        super().__init__()
        require_chunk(horizon, n_obs_steps, n_action_steps)
        self.name = name
        self.obs_space = obs_space
        self.action_space = replace(action_space, horizon=horizon)
        self.n_obs_steps, self.n_action_steps = n_obs_steps, n_action_steps
        self.n_chunks, self.reset_interval, self.forget = n_chunks, reset_interval, forget
        self.form, self.sampler = form, sampler
        self.encoder = encoder(obs_space)
        self.token = nn.Sequential(
            nn.Linear(self.encoder.width, hidden), nn.GELU(), nn.Dropout(dropout),
            nn.Linear(hidden, token_width), nn.LayerNorm(token_width),
        )  # fmt: skip
        self.memory = memory(width=token_width).requires_grad_(not frozen)
        self.body = body(action_dim=action_space.width, horizon=horizon, n_obs_steps=n_obs_steps, cond_dim=token_width)
        self.bodies = (self.body,)

    def start(self, b: int) -> State:
        first = self.memory.start(b)
        return first, torch.ones(b, dtype=torch.bool, device=first.device)

    def encode(
        self, obs: Obs, state: State, generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, "b o c"], State]:
        """What is seen, enriched by the state before it; and the state after it."""
        content, fresh = self.start(len(state[1])) if self.forget else state
        enriched, content = self.memory(content, fresh, self.token(self.encoder(obs, generator)))
        return enriched, (content, torch.zeros_like(fresh))

    def denoise(self, x: Float[Tensor, "b h d"], phi: Tensor, cond: Float[Tensor, "b o c"]) -> Float[Tensor, "b h d"]:
        return forms.denoiser(self._net, self.form)(x, phi, cond)

    def loss(self, action: Float[Tensor, "b h d"], cond: Float[Tensor, "b o c"], generator: torch.Generator) -> Tensor:
        return forms.loss(self._net, self.form, action, cond, generator)

    def _net(self, x: Tensor, clock: Tensor, cond: Tensor) -> Tensor:
        return self.body(x, clock * self.form.percent, cond)
