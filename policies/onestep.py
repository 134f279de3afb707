"""One-step policies: a chunk in one network evaluation, by a network of average velocities.

In rectified flow's coordinates z = (1 - t) action + t noise, t = 1 is noise, the network answers the average velocity
u(z, r, t) of the way from time t down to r, so that z_r = z - (t - r) u, and r = 0 is the chunk. Three objectives train the
same network (`generate/onestep.py` has them as pure functions):

    MeanFlow      u = v - (t - r) du/dt               Geng et al., "Mean Flows for One-step Generative Modeling", 2025;
                                                      on robots Sheng et al., "MP1", 2025
    Shortcut      u of a step is that of two halves   Frans et al., "One Step Diffusion via Shortcut Models", ICLR 2025
    Consistency   a jump ends where a teacher's step  Kim et al., "Consistency Trajectory Models", ICLR 2024; on robots
                  and the rest of the jump end        Prasad et al., "Consistency Policy", RSS 2024

With predict: actions the network answers z - t u, the point where the average line meets t = 0; with velocity u itself.

Carried between chunks: nothing. The encoder runs once a chunk, the body once a denoising step; a teacher while training only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polyarm.policies import checkpoint
from polyarm.policies.generate import forms, onestep
from polyarm.policies.generate.angle import flow_line, wide
from polyarm.policies.generate.compose import clip
from polyarm.policies.generate.sample import Sampler, euler
from polyarm.policies.nets.clock import periods
from polyarm.policies.policy import Obs, Plain, Policy, State, require_alike, require_chunk
from polyarm.spec import ActionSpace, ObsSpace, UserError, require_obs


class Cond(NamedTuple):
    """What was seen: by the network, and in training by its teacher."""

    seen: Float[Tensor, "b o c"]
    teacher: Any = None


class OneStepPolicy(Plain, nn.Module):
    """`encoder(obs_space)` and `body(action_dim=, horizon=, n_obs_steps=, cond_dim=)` are built here, so that yaml names
    only their sizes. A body has one clock, t; the span t - r is shown to it as `span_width` more features of every
    observation step.

    `sampler` is euler on any grid: at one of its angles the policy answers for the way to the next, so n steps are n exact
    jumps. In a mixture this must be the mixture's grid too: give each such part the mixture's `angles`.
    `teacher`: a training run or checkpoint for the objective Consistency; it is looked for when training begins, is never
    saved, and acting does not need it.
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
        body: Callable[..., nn.Module],
        form: forms.Flow,
        objective: onestep.Objective,
        sampler: Sampler,
        span_width: int,
        teacher: str | None = None,
    ):
        super().__init__()
        require_chunk(horizon, n_obs_steps, n_action_steps)
        _require_euler(sampler)
        self.name = name
        self.obs_space = obs_space
        self.action_space = replace(action_space, horizon=horizon)
        self.n_obs_steps, self.n_action_steps = n_obs_steps, n_action_steps
        self.form, self.objective, self.sampler, self.teacher = form, objective, sampler, teacher
        self.encoder = encoder(obs_space)
        self.span = periods(span_width, 0.5, 8.0)  # slow ones: MeanFlow differentiates by time
        self.body = body(
            action_dim=action_space.width, horizon=horizon, n_obs_steps=n_obs_steps,
            cond_dim=self.encoder.width + span_width,
        )  # fmt: skip
        self.bodies = (self.body,)
        self._taught_by: tuple[Policy, ...] = ()  # in a tuple, for a module would be saved, averaged and trained

    def start(self, b: int) -> State:
        return ()

    def prepare(self) -> None:
        """Load the teacher, if the objective has one. Training calls it before anything is written."""
        if self.objective.taught and not self._taught_by:  # type: ignore[attr-defined]
            self._taught_by = (_load(self.teacher, self),)

    def encode(self, obs: Obs, state: State, generator: torch.Generator | None = None) -> tuple[Cond, State]:
        seen = self.encoder(obs, generator)
        if generator is not None:
            self.prepare()
        for teacher in self._taught_by:
            with torch.no_grad():
                own = {name: obs[name] for name in teacher.obs_space.names}
                return Cond(seen, teacher.to(seen.device).encode(own, ())[0]), state  # type: ignore[attr-defined]
        return Cond(seen), state

    def denoise(self, x: Float[Tensor, "b h d"], phi: Tensor, cond: Cond) -> Float[Tensor, "b h d"]:
        """Where the average line from x to the sampler's next angle below phi meets t = 0."""
        norm, t = flow_line(phi)
        z = x / wide(norm)
        out = self._net(z, flow_line(self._next(phi))[1], t, cond.seen)
        return out if self.form.predict == "actions" else z - wide(t) * out

    def average(self, z: Tensor, r: Tensor, t: Tensor, seen: Tensor) -> Tensor:
        """The average velocity from t down to r; [b h d], [b], [b], [b o c] -> [b h d]."""
        out = self._net(z, r, t, seen)
        return (z - out) / wide(t).clamp(min=1e-6) if self.form.predict == "actions" else out

    def loss(self, action: Float[Tensor, "b h d"], cond: Cond, generator: torch.Generator) -> Tensor:
        teacher = None
        for policy in self._taught_by:
            limit = policy.sampler.limit
            denoise = policy.denoise if limit is None else clip(policy.denoise, -limit, limit)
            teacher = onestep.velocity_of(denoise, cond.teacher)
        noise = forms.paired(self.form, forms.normal(action, generator), action, cond.seen)
        with torch.autocast(action.device.type, enabled=False):  # a derivative by time in 8 bits is noise
            aim = self.objective(self.average, self.form.law, action, noise, cond.seen.float(), generator, teacher)
            gain = wide(aim.t) if self.form.predict == "actions" else 1.0  # errors in what the network answers
            return onestep.robust((aim.answer - aim.target) * gain, self.objective.power)  # type: ignore[attr-defined]

    def _net(self, z: Tensor, r: Tensor, t: Tensor, seen: Tensor) -> Tensor:
        span = self.span(t - r)[:, None].expand(-1, seen.shape[1], -1)
        return self.body(z, t * self.form.percent, torch.cat((seen, span.to(seen)), dim=-1))

    def _next(self, phi: Tensor) -> Tensor:
        """The largest of the sampler's angles below each phi; one that rounding moved is still itself."""
        rising = self.sampler.angles.to(phi.device).flip(0)
        below = torch.searchsorted(rising, phi.double() - 1e-5) - 1
        return rising[below.clamp(min=0)].to(phi)


def _require_euler(sampler: Sampler) -> None:
    solver = getattr(sampler.solver, "func", sampler.solver)
    if solver is not euler:
        raise UserError(
            f"policy.sampler.solver {getattr(solver, '__name__', solver)} between the grid's angles, where an average velocity "
            "has no meaning: give sampler=euler, with as many steps as you like"
        )
    if sampler.angles.ndim != 1:
        raise UserError(
            f"policy.sampler.angles is {list(sampler.angles.shape)}, a schedule a channel: a one-step policy has one clock, "
            "give one schedule for all"
        )


def _load(path: str | None, student: OneStepPolicy) -> Policy:
    """The teacher: frozen, acting in the same space, and one whose answers make a probability flow."""
    if path is None:
        raise UserError(
            "policy.teacher=null, but this objective is taught: give the output_dir of a training run on the same demonstrations"
        )
    with torch.random.fork_rng():  # building it must not move the student's own draws
        teacher: Any = checkpoint.load(Path(path))
    require_alike(student, teacher)
    require_obs(teacher.obs_space, student.obs_space, f"teacher {teacher.name}", f"policy {student.name}")
    if teacher.start(1):
        raise UserError(
            f"teacher {teacher.name} carries a memory from chunk to chunk, and training batches have no order: "
            "give a teacher without one, such as policy=flow or policy=diffusion"
        )
    if not _sees_the_angle(teacher):
        raise UserError(
            f"teacher {teacher.name} answers the same at every noise angle, so there is no probability flow to follow: "
            "give a teacher that sees the angle, such as policy=flow or policy=diffusion"
        )
    return teacher.requires_grad_(False)


@torch.no_grad()
def _sees_the_angle(policy: Policy) -> bool:
    obs = {
        stream.name: torch.zeros((1, policy.n_obs_steps, *stream.shape), dtype=getattr(torch, stream.dtype))
        for stream in policy.obs_space.streams
    }
    cond, _ = policy.encode(obs, ())
    x = torch.linspace(-1, 1, policy.action_space.horizon * policy.action_space.width)
    x = x.view(1, policy.action_space.horizon, policy.action_space.width)
    return not torch.equal(policy.denoise(x, torch.tensor([0.5]), cond), policy.denoise(x, torch.tensor([1.0]), cond))
