"""BESO: goal-conditioned imitation with a score model, few denoising steps (Reuss et al., RSS 2023).

A network trained as in EDM (Karras et al., 2022) denoises actions given the last states and a goal, which is a piece of
the same episode's future (`datasets.goals`). Classifier-free guidance steers towards the goal (section "CFG-BESO").
One class, two settings:

- `horizon == n_obs_steps`, as published: one action is executed a chunk; the others belong to the past and enter as they
  were executed, without noise. The samplers rewrite them as they go, as published.
- `horizon > n_obs_steps`: chunks as every other policy here makes them.

Carried between chunks: nothing. The encoder runs once a chunk, the body once a denoising step, twice with guidance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import wraps
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polyarm.policies.generate import forms
from polyarm.policies.generate.compose import guide
from polyarm.policies.generate.sample import Sampler, Solver
from polyarm.policies.policy import ACTION, GOAL, Obs, Plain, State, require_chunk, require_scale
from polyarm.spec import ActionSpace, ObsSpace, UserError, unknown


class Cond(NamedTuple):
    """What was seen, in the network's units."""

    states: Float[Tensor, "b o c"]
    goals: Float[Tensor, "b g c"]
    """0: none given."""
    past: Float[Tensor, "b p d"] | None
    """Executed actions, NaN where there is none."""


class BesoPolicy(Plain, nn.Module):
    """`encoder(obs_space)` and `body(action_dim=, horizon=, n_obs_steps=, cond_dim=)` are built here; the body's condition
    are `goal_steps` rows of goals, then `n_obs_steps` states, which go through the same encoder.

    `goal_dropout`: share of the goals that training hides, by single numbers as released, or by rows of the batch as
    written (`drop_rows`). `guidance`: 0 ignores the goal, 1 is the conditional model, more overshoots.
    `goal_channels`: the features of a goal that are shown; all if None.
    """

    show: Tensor

    def __init__(
        self,
        name: str,
        obs_space: ObsSpace,
        action_space: ActionSpace,
        horizon: int,
        n_obs_steps: int,
        n_action_steps: int,
        encoder: Callable[..., Any],
        body: Callable[..., nn.Module],
        form: forms.Form,
        sampler: Sampler,
        goal_steps: int,
        goal_dropout: float,
        drop_rows: bool,
        goal_channels: Sequence[int] | None,
        guidance: float,
    ):
        super().__init__()
        require_chunk(horizon, n_obs_steps, n_action_steps)
        self.name = name
        self.obs_space = obs_space
        self.action_space = replace(action_space, horizon=horizon)
        self.n_obs_steps, self.n_action_steps, self.goal_steps = n_obs_steps, n_action_steps, goal_steps
        self.goal_dropout, self.drop_rows, self.guidance = goal_dropout, drop_rows, guidance
        self.past_rows = n_obs_steps - 1 if horizon == n_obs_steps else 0
        self.form = form
        self.sampler = replace(sampler, solver=_after_past(sampler.solver)) if self.past_rows else sampler
        self.encoder = encoder(obs_space)
        self.body = body(
            action_dim=action_space.width,
            horizon=horizon,
            n_obs_steps=goal_steps + n_obs_steps,
            cond_dim=self.encoder.width,
        )
        self.bodies = (self.body,)
        self.register_buffer("show", _shown(self.encoder.width, goal_channels), persistent=False)

    def start(self, b: int) -> State:
        return ()

    def encode(self, obs: Obs, state: State, generator: torch.Generator | None = None) -> tuple[Cond, State]:
        states = self.encoder(obs, generator)
        past = None
        if self.past_rows and ACTION in obs:
            past = require_scale(self.action_space).do(obs[ACTION][:, -self.past_rows :])
        return Cond(states, self._goals(obs, states, generator), past), state

    def denoise(self, x: Float[Tensor, "b h d"], phi: Tensor, cond: Cond) -> Float[Tensor, "b h d"]:
        def given(x: Tensor, phi: Tensor, goals: Tensor | None) -> Tensor:
            seen = cond if goals is not None else cond._replace(goals=torch.zeros_like(cond.goals))
            return forms.denoiser(self._net, self.form)(x, phi, seen)

        return (given if self.guidance == 1 else guide(given, self.guidance))(x, phi, cond.goals)

    def loss(self, action: Float[Tensor, "b h d"], cond: Cond, generator: torch.Generator) -> Tensor:
        return forms.loss(self._net, self.form, action, cond, generator)

    def _net(self, x: Tensor, clock: Tensor, cond: Cond) -> Tensor:
        return self.body(x, clock * self.form.percent, torch.cat((cond.goals, cond.states), dim=1))

    def _goals(self, obs: Obs, states: Tensor, generator: torch.Generator | None) -> Tensor:
        """[b g c]; zeros where no goal is given, and with a generator where dropout hides it."""
        names = [name for name in self.obs_space.names if GOAL + name in obs]
        if not names or not self.goal_steps:
            return states.new_zeros(len(states), self.goal_steps, states.shape[-1])
        for name in self.obs_space.names:
            if name not in names:
                raise unknown("goal stream", GOAL + name, (GOAL + n for n in names))
        goals = self.encoder({name: obs[GOAL + name] for name in names}, generator) * self.show
        if goals.shape[1] < self.goal_steps:
            raise UserError(
                f"a goal of {goals.shape[1]} rows for policy.goal_steps={self.goal_steps}: give as many future rows, or train with fewer"
            )
        goals = goals[:, -self.goal_steps :]
        if f"{GOAL}given" in obs:
            goals = goals * obs[f"{GOAL}given"].to(goals).view(-1, 1, 1)
        if generator is not None and self.goal_dropout:
            goals = goals * keep(goals, self.goal_dropout, self.drop_rows, generator)
        return goals


def keep(goals: Float[Tensor, "b g c"], dropout: float, rows: bool, generator: torch.Generator) -> Tensor:
    """1 where a goal stays, 0 where it is hidden: by single numbers, or by rows of the batch; spreads over [b g c]."""
    shape = (len(goals), 1, 1) if rows else goals.shape
    return (torch.rand(shape, generator=generator, device=generator.device) >= dropout).to(goals)


def _after_past(solver: Solver) -> Solver:
    """The solver, started with the executed actions in the chunk's first rows: in z = action + sigma * noise they have no
    noise, so in x they are shrunk by the cosine. Rows from before the episode began stay noise."""

    @wraps(solver)
    def solve(denoise: Any, x: Tensor, angles: Tensor, cond: Cond, generator: Any = None) -> Tensor:
        if cond.past is not None:
            p = cond.past.shape[1]
            clean = (angles[0].to(x.device).cos() * cond.past).to(x)
            x = torch.cat((torch.where(clean.isnan(), x[:, :p], clean), x[:, p:]), dim=1)
        return solver(denoise, x, angles, cond, generator)

    return solve


def _shown(width: int, channels: Sequence[int] | None) -> Tensor:
    shown = torch.ones(width)
    if channels is not None:
        if not all(0 <= i < width for i in channels):
            raise UserError(
                f"goal_channels={list(channels)} of an encoder with {width} features: give 0 to {width - 1}"
            )
        shown.zero_()[list(channels)] = 1
    return shown
