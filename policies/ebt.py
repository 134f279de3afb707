"""EBT-Policy: an energy of chunks, and the action is where descent on it ends.

Davies et al., "EBT-Policy: Energy Unlocks Emergent Physical Reasoning Capabilities", 2025 (arXiv 2510.27545); base:
Gladstone et al., "Energy-Based Transformers are Scalable Learners and Thinkers", 2025 (arXiv 2507.02092). One
time-independent energy E(chunk | observations); descend it from noise; train by the squared error of where the descent
is, back through the energy's gradient. No negatives, no partition function, no noise level.

The squared error has its minimum at the conditional mean given the noise that descent starts from, and that noise knows
nothing of the demonstration: where demonstrations disagree for one observation, the chunk is their mean. A body that
sees the noise level (`policies.nets.energy.Slope` with the policy `flow`) keeps modes apart.

Carried between chunks: nothing. Acting needs gradients, which are turned on here: call it under `torch.no_grad`, never
under `torch.inference_mode`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import mse_loss, rms_norm

from polyarm.policies.generate.energy import value_and_gradient
from polyarm.policies.generate.forms import normal
from polyarm.policies.generate.sample import Sampler
from polyarm.policies.policy import Obs, Plain, State, require_chunk
from polyarm.spec import ActionSpace, ObsSpace, UserError, unknown

ChunkEnergy = Callable[[Tensor], Tensor]
"""chunk [b h d] -> energy [b]"""


@dataclass(frozen=True)
class Descent:
    """Settings of the inner descent; by default plain gradient descent.

    rate: step size alpha, >= 1e-4; None is horizon * width, a unit step for an energy that is a mean over them
    steps, extra: training makes `steps` plus 0..`extra` more, drawn each time
    act_steps: the most steps when acting
    temperature: the rate is alpha * exp(E) / temperature, with E clipped to +-energy_limit; None: alpha
    momentum: mu of Nesterov's look-ahead
    norm: what is scaled to root mean square 1 before each step: none, each sample, or the batch as one (as released)
    noise: (first, last) spread of the noise added before each training step, falling along half a cosine
    rate_spread: training draws each sample's alpha from [alpha / spread, alpha * spread]
    clamp: the gradient is clamped to +-clamp / alpha
    truncate: the loss is the last step's; otherwise the mean of all steps'
    detach: each step is a problem of its own (as released); otherwise gradients run through the whole descent
    min_gradient: acting, a sample makes one last step after one with a gradient norm no greater than this; None: never
    stop_together: the norm is the whole batch's (as released)
    """

    rate: float | None
    steps: int
    extra: int
    act_steps: int
    temperature: float | None
    energy_limit: float
    momentum: float
    norm: str
    noise: Sequence[float] | None
    rate_spread: float
    clamp: float | None
    truncate: bool
    detach: bool
    min_gradient: float | None
    stop_together: bool
    norms: ClassVar[dict[str, Callable[[Tensor], Tensor]]] = {
        "none": lambda x: x,
        "sample": lambda x: rms_norm(x, x.shape[1:]),
        "batch": lambda x: rms_norm(x, x.shape),
    }

    def __post_init__(self) -> None:
        if self.norm not in self.norms:
            raise unknown("norm of the descent", self.norm, self.norms)
        least = {"steps": 1, "extra": 0, "act_steps": 1, "rate_spread": 1, "momentum": 0}
        for name, low in {**least, "rate": 1e-4, "temperature": 1e-4, "clamp": 1e-4}.items():
            value = getattr(self, name)
            if value is not None and not value >= low:
                raise UserError(f"descent.{name}={value}: give at least {low}")
        if self.noise is not None and not (len(self.noise) == 2 and self.noise[0] >= self.noise[1] >= 0):
            raise UserError(f"descent.noise={list(self.noise)}: give its first and last spread, falling, or null")


class Step(NamedTuple):
    """One inner step. `energy` and `slope` (the gradient's norm) are those it was made with; rows that had stopped
    before are `moved` = False and stand still."""

    action: Float[Tensor, "b h d"]
    velocity: Float[Tensor, "b h d"]
    energy: Float[Tensor, "b"]
    slope: Float[Tensor, "b"]
    moved: Tensor  # [b] bool


def spreads(noise: Sequence[float], n: int) -> list[float]:
    """The noise of n training steps: last + (first - last) (1 + cos(pi i / n)) / 2."""
    first, last = noise
    return [last + (first - last) * (1 + math.cos(math.pi * i / n)) / 2 for i in range(n)]


def start(x: Float[Tensor, "b h d"]) -> Step:
    """At x, at rest."""
    still = x.new_zeros(len(x))
    return Step(x, torch.zeros_like(x), still, still, torch.ones_like(still, dtype=torch.bool))


def step(energy: ChunkEnergy, last: Step, s: Descent, rate: float | Tensor, noise: float | Tensor = 0.0) -> Step:
    """a' = b + v', v' = mu v - rate * exp(E) / temperature * dE/d(b + mu v), with b = norm(a) + noise."""
    action, velocity = (last.action.detach(), last.velocity.detach()) if s.detach else (last.action, last.velocity)
    action = s.norms[s.norm](action) + noise
    energies, slope = value_and_gradient(energy, action + s.momentum * velocity)
    if s.clamp is not None:
        most = s.clamp / alpha(action, s)
        slope = slope.clamp(-most, most)
    if s.temperature is not None:
        rate = rate * (energies.clamp(-s.energy_limit, s.energy_limit).exp() / s.temperature)[:, None, None]
    velocity = s.momentum * velocity - rate * slope
    norm = torch.linalg.vector_norm(slope.detach(), dim=(1, 2))
    return Step(action + velocity, velocity, energies, norm, last.moved)


def train_steps(energy: ChunkEnergy, x: Float[Tensor, "b h d"], s: Descent, generator: torch.Generator) -> list[Step]:
    """The descent as training makes it, with all that is random in it."""
    n = s.steps + (int(torch.randint(s.extra + 1, (), generator=generator, device=generator.device)) if s.extra else 0)
    noise = [0.0] * n if s.noise is None else [sigma * normal(x, generator) for sigma in spreads(s.noise, n)]
    rate: float | Tensor = alpha(x, s)
    now, steps = start(x), []
    for i in range(n):
        if s.rate_spread > 1:
            share = torch.rand(len(x), 1, 1, generator=generator, device=generator.device).to(x)
            rate = alpha(x, s) * (1 / s.rate_spread + share * (s.rate_spread - 1 / s.rate_spread))
        # a step that neither the loss nor a later step's gradient sees needs no graph
        seen = i == n - 1 or not (s.truncate and s.detach)
        with torch.set_grad_enabled(seen and torch.is_grad_enabled()):
            now = step(energy, now, s, rate, noise[i])
        steps.append(now)
    return _finite(steps, s)


@torch.no_grad()
def act_steps(energy: ChunkEnergy, x: Float[Tensor, "b h d"], s: Descent) -> list[Step]:
    """The descent as acting makes it: at most `s.act_steps`, fewer where the gradient vanishes. Draws nothing."""
    now, steps = start(x), []
    left = torch.full((len(x),), s.act_steps, device=x.device)
    for _ in range(s.act_steps):
        now = _hold(now, step(energy, now, s, alpha(x, s)), left > 0)
        steps.append(now)
        left = left - 1
        if s.min_gradient is not None:
            norm = torch.linalg.vector_norm(now.slope).expand_as(left) if s.stop_together else now.slope
            left = torch.where(norm > s.min_gradient, left, left.clamp(max=1))
            if not (left > 0).any():
                break
    return _finite(steps, s)


def alpha(x: Float[Tensor, "b h d"], s: Descent) -> float:
    return float(x[0].numel()) if s.rate is None else s.rate


class EbtPolicy(Plain, nn.Module):
    """`encoder(obs_space)`, `temporal(n_obs_steps=, cond_dim=)` (None: the encoder's features as they are) and
    `body(action_dim=, horizon=, n_obs_steps=, cond_dim=)` are built here. `energy(out, x) -> [b]` reads the body's
    answer, which is asked at clock 0; see `policies.nets.energy`. Any body will do."""

    def __init__(
        self,
        name: str,
        obs_space: ObsSpace,
        action_space: ActionSpace,
        horizon: int,
        n_obs_steps: int,
        n_action_steps: int,
        encoder: Callable[..., nn.Module],
        temporal: Callable[..., nn.Module] | None,
        body: Callable[..., nn.Module],
        energy: Callable[[Tensor, Tensor], Tensor],
        descent: Descent,
        sampler: Sampler,
    ):
        super().__init__()
        require_chunk(horizon, n_obs_steps, n_action_steps)
        self.name = name
        self.obs_space = obs_space
        self.action_space = replace(action_space, horizon=horizon)
        self.n_obs_steps, self.n_action_steps = n_obs_steps, n_action_steps
        self.descent, self.sampler, self.read = descent, sampler, energy
        self.encoder = encoder(obs_space)
        width = self.encoder.width
        self.temporal = None if temporal is None else temporal(n_obs_steps=n_obs_steps, cond_dim=width)
        self.body = body(
            action_dim=action_space.width, horizon=horizon, n_obs_steps=n_obs_steps,
            cond_dim=width if self.temporal is None else self.temporal.width,
        )  # fmt: skip
        self.bodies = (self.body,)

    def start(self, b: int) -> State:
        return ()

    def encode(self, obs: Obs, state: State, generator: torch.Generator | None = None) -> tuple[Tensor, State]:
        cond = self.encoder(obs, generator)
        return (cond if self.temporal is None else self.temporal(cond)), state

    def denoise(self, x: Float[Tensor, "b h d"], phi: Tensor, cond: Float[Tensor, "b o c"]) -> Float[Tensor, "b h d"]:
        """Where the descent from x ends, whatever its noise: blind to `phi`, so that its sampler is one Euler step from
        pure noise to zero, in which x is the noise itself."""
        return self.descend(x, cond)[-1].action

    def descend(self, x: Float[Tensor, "b h d"], cond: Float[Tensor, "b o c"]) -> list[Step]:
        """The steps of acting from x, with their energies."""
        with torch.autocast(x.device.type, enabled=False):
            return act_steps(self._energy(cond), x, self.descent)

    def energy(self, action: Float[Tensor, "b h d"], cond: Float[Tensor, "b o c"]) -> Float[Tensor, "b"]:
        """Of scaled chunks, as the descent sees them; higher is less like the demonstrations."""
        with torch.autocast(action.device.type, enabled=False):
            return self._energy(cond)(self.descent.norms[self.descent.norm](action))

    def loss(self, action: Float[Tensor, "b h d"], cond: Float[Tensor, "b o c"], generator: torch.Generator) -> Tensor:
        with torch.autocast(action.device.type, enabled=False):  # a gradient's gradient in 8 bits is noise
            steps = train_steps(self._energy(cond), normal(action, generator), self.descent, generator)
            kept = steps[-1:] if self.descent.truncate else steps
            return torch.stack([mse_loss(now.action, action) for now in kept]).mean()

    def _energy(self, cond: Tensor) -> ChunkEnergy:
        clock, cond = cond.new_zeros(len(cond), dtype=torch.float32), cond.float()
        return lambda x: self.read(self.body(x, clock, cond), x)


def _hold(old: Step, new: Step, moved: Tensor) -> Step:
    action, velocity, energy, slope = (
        torch.where(moved.view(-1, *[1] * (b.ndim - 1)), b, a) for a, b in zip(old[:4], new[:4], strict=True)
    )
    return Step(action, velocity, energy, slope, moved)


def _finite(steps: list[Step], s: Descent) -> list[Step]:
    bad = [i for i, ok in enumerate(torch.stack([_sound(now) for now in steps]).tolist()) if not ok]
    if bad:
        raise UserError(
            f"the energy or its gradient is not finite at inner step {bad[0]} of {len(steps)}: lower descent.rate="
            f"{s.rate} or train.lr, or raise descent.temperature={s.temperature} (null: a rate that ignores the energy)"
        )
    return steps


def _sound(now: Step) -> Tensor:
    return (now.energy.isfinite() & now.slope.isfinite()).all() & now.action.isfinite().all()
