"""Diffusion Policy, and flow matching: the same policy with another form.

Chi et al., "Diffusion Policy: Visuomotor Policy Learning via Action Diffusion", RSS 2023 / IJRR 2024. A network predicts
noise (equation 5; or actions, or a velocity) of a whole chunk of actions, conditioned on the last To observations, and
a sampler walks from noise to a chunk of Tp actions of which Ta are executed. With the form `Flow` it is the rectified
flow of Liu et al. (2023), with `Karras` a preconditioned score model.

Carried between chunks: nothing. The encoder runs once a chunk, the body once a denoising step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polyarm.policies.generate import forms
from polyarm.policies.generate.sample import Sampler
from polyarm.policies.policy import Obs, Plain, State, require_chunk
from polyarm.spec import ActionSpace, ObsSpace


class DiffusionPolicy(Plain, nn.Module):
    """`encoder(obs_space)` and `body(action_dim=, horizon=, n_obs_steps=, cond_dim=)` are built here, so that yaml names
    only their sizes. `obs_space` and `action_space` come from the demonstrations, with scales."""

    def __init__(
        self,
        name: str,
        obs_space: ObsSpace,
        action_space: ActionSpace,
        horizon: int,
        n_obs_steps: int,
        n_action_steps: int,
        encoder: Callable[..., nn.Module],
        body: Callable[..., nn.Module],
        form: forms.Form,
        sampler: Sampler,
    ):
        super().__init__()
        require_chunk(horizon, n_obs_steps, n_action_steps)
        self.name = name
        self.obs_space = obs_space
        self.action_space = replace(action_space, horizon=horizon)
        self.n_obs_steps, self.n_action_steps = n_obs_steps, n_action_steps
        self.form, self.sampler = form, sampler
        self.encoder = encoder(obs_space)
        self.body = body(
            action_dim=action_space.width, horizon=horizon, n_obs_steps=n_obs_steps, cond_dim=self.encoder.width
        )
        self.bodies = (self.body,)

    def start(self, b: int) -> State:
        return ()

    def encode(self, obs: Obs, state: State, generator: torch.Generator | None = None) -> tuple[Tensor, State]:
        return self.encoder(obs, generator), state

    def denoise(self, x: Float[Tensor, "b h d"], phi: Tensor, cond: Float[Tensor, "b o c"]) -> Float[Tensor, "b h d"]:
        return forms.denoiser(self._net, self.form)(x, phi, cond)

    def loss(self, action: Float[Tensor, "b h d"], cond: Float[Tensor, "b o c"], generator: torch.Generator) -> Tensor:
        return forms.loss(self._net, self.form, action, cond, generator)

    def _net(self, x: Tensor, clock: Tensor, cond: Tensor) -> Tensor:
        return self.body(x, clock * self.form.percent, cond)
