"""One step instead of many: what a network of average velocities is trained towards.

Coordinates are rectified flow's, z = (1 - t) action + t noise with t = 1 at the noise and velocity v = noise - action. From
time t down to r the flow moves along the average velocity

    u(z, r, t) = 1 / (t - r) * integral of v from r to t,        z_r = z - (t - r) u,        u(z, t, t) = v(z, t),

so a network of u goes from noise to a chunk in one step. The point where the average line meets t = 0, z - t u, is an average
of the clean actions that are seen on the way, and so never leaves the range of the demonstrations.

An objective draws times and says what u should be there; its target is a constant, made by the network as it is now. Each
is a pure function of the network, the actions and the generator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from polyarm.policies.generate.angle import wide
from polyarm.policies.generate.forms import Denoise
from polyarm.spec import UserError

Average = Callable[..., Tensor]
"""(z [b h d], r [b], t [b], cond) -> average velocity [b h d]"""

Velocity = Callable[[Tensor, Tensor], Tensor]
"""(z [b h d], t [b]) -> velocity [b h d]"""

Objective = Callable[..., "Aim"]
"""(average, law, actions [b h d], noise [b h d], cond [b o c], generator, teacher's velocity or None) -> Aim. Its `power` is
`robust`'s; `taught` says whether it needs a teacher."""

Law = Callable[[int, torch.Generator], Tensor]
"""(n, generator) -> times [n]"""


class Aim(NamedTuple):
    """What the network answers at time t, and what it should."""

    answer: Tensor  # [b h d], average velocities
    target: Tensor  # [b h d]
    t: Tensor  # [b]


def jump(average: Average, z: Tensor, r: Tensor, t: Tensor, cond: Any) -> Tensor:
    """z at time r from z at time t."""
    return z - wide(t - r) * average(z, r, t, cond)


def robust(error: Tensor, power: float, floor: float = 1e-3) -> Tensor:
    """Mean over rows of m / (m + floor)^power, m a row's mean square, with the divisor taken for a constant (Geng et al.,
    2025, section 4.3). Power 0 is the squared error; 1/2 has, twice, the gradient of the pseudo-Huber sqrt(m + floor)."""
    m = error.square().flatten(1).mean(1)
    return (m / (m.detach() + floor) ** power).mean()


def meanflow(average: Average, z: Tensor, v: Tensor, r: Tensor, t: Tensor, cond: Any) -> tuple[Tensor, Tensor]:
    """(u, v - (t - r) du/dt), the second a constant: the MeanFlow identity (Geng et al., 2025, equations 6 to 10). The
    derivative along the path, v . grad u + d_t u, is one forward-mode product; attention takes its plain kernel, the only
    one that has it."""
    with sdpa_kernel(SDPBackend.MATH):
        direction = (v, torch.zeros_like(r), torch.ones_like(t))
        u, slope = torch.func.jvp(lambda z, r, t: average(z, r, t, cond), (z, r, t), direction)[:2]
    return u, (v - wide(t - r) * slope).detach()


@torch.no_grad()
def two_halves(average: Average, z: Tensor, r: Tensor, t: Tensor, cond: Any) -> Tensor:
    """The average velocity from t to r as that of two steps half as long (Frans et al., 2025, equation 4)."""
    middle = (r + t) / 2
    first = average(z, middle, t, cond)
    return (first + average(z - wide(t - middle) * first, r, middle, cond)) / 2


@torch.no_grad()
def through(average: Average, velocity: Velocity, z: Tensor, r: Tensor, m: Tensor, t: Tensor, cond: Any) -> Tensor:
    """The average velocity from t to r when a teacher goes to m and the network from there (Kim et al., 2024, equation 9).
    r = m: the teacher's alone. CTM compares where both end after a last jump to 0, here the lines themselves are compared:
    the same for r = 0, and an evaluation less."""
    rest = jump(average, heun(velocity, z, m, t), r, m, cond)
    return (z - rest) / wide(t - r)


def heun(velocity: Velocity, z: Tensor, r: Tensor, t: Tensor) -> Tensor:
    """z at time r by one of Heun's steps from t, each row on its own times; Euler's where it ends in r = 0."""
    first = velocity(z, t)
    ahead = z - wide(t - r) * first
    second = torch.where(wide(r > 0), velocity(ahead, r), first)
    return z - wide(t - r) * (first + second) / 2


def velocity_of(denoise: Denoise, cond: Any) -> Velocity:
    """A denoiser of any family as the velocity of its flow: (z - actions) / t at t > 0."""

    def velocity(z: Tensor, t: Tensor) -> Tensor:
        phi = torch.atan2(t, 1 - t)
        action = denoise(z * wide(phi.cos() + phi.sin()), phi, cond)
        return (z - action) / wide(t).clamp(min=1e-6)

    return velocity


def on_line(action: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """(z, velocity) at time t of the straight line from noise to action."""
    return (1 - wide(t)) * action + wide(t) * noise, noise - action


@dataclass(frozen=True)
class MeanFlow:
    """Geng et al., "Mean Flows for One-step Generative Modeling" (2025); on robots MP1 (Sheng et al., 2025). Times are two
    draws of the law, the larger is t; a `share` of the rows has r = t, where the target is the velocity itself.

    Left out: guidance inside the target, which needs a network that also knows no condition, and MP1's dispersive loss,
    which reads the hidden states of one body.
    """

    share: float = 0.5
    power: float = 0.5
    taught: ClassVar[bool] = False

    def __call__(
        self,
        average: Average,
        law: Law,
        action: Tensor,
        noise: Tensor,
        cond: Any,
        generator: torch.Generator,
        teacher: Velocity | None = None,
    ) -> Aim:
        n = len(action)
        one, two = law(n, generator).to(action), law(n, generator).to(action)
        t = torch.maximum(one, two)
        r = torch.minimum(one, two)
        k = round(self.share * n)  # a batch is in random order
        r[:k] = t[:k]
        z, v = on_line(action, noise, t)
        return Aim(*meanflow(average, z, v, r, t, cond), t)


@dataclass(frozen=True)
class Shortcut:
    """Frans et al., "One Step Diffusion via Shortcut Models" (2025). A `share` of the rows learns a step of 1/finest * 2, 4,
    ..., 1, between multiples of it, from two of half its length; the others learn the velocity as the shortest step's, at
    times after the law. It acts in 1, 2, 4, ... steps; other numbers are between what it learnt.

    The network's target is itself as it is now; the paper takes its running average. It clips targets to +-4, which scaled
    actions do not need.
    """

    share: float = 0.125
    finest: int = 128
    power: float = 0.0
    taught: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.finest < 2 or self.finest & (self.finest - 1):
            raise UserError(
                f"finest={self.finest} steps cannot be halved down to one: give a power of two, such as 128"
            )

    def __call__(
        self,
        average: Average,
        law: Law,
        action: Tensor,
        noise: Tensor,
        cond: Tensor,
        generator: torch.Generator,
        teacher: Velocity | None = None,
    ) -> Aim:
        n, k = len(action), round(self.share * len(action))
        t = law(n, generator).to(action)
        levels = self.finest.bit_length() - 1
        power = torch.randint(levels, (k,), generator=generator, device=generator.device).to(t)
        d = 0.5**power  # from 1 to 2 / finest
        share = torch.rand(k, generator=generator, device=generator.device).to(t)
        t[:k] = d * (1 + (share * 2**power).floor().clamp(max=2**power - 1))
        r = (t - 1 / self.finest).clamp(min=0)
        r[:k] = t[:k] - d
        z, target = on_line(action, noise, t)
        target[:k] = two_halves(average, z[:k], r[:k], t[:k], cond[:k])
        return Aim(average(z, r, t, cond), target, t)


@dataclass(frozen=True)
class Consistency:
    """Consistency distillation from a teacher of any family: consistency trajectory models (Kim et al., 2024), on robots
    Consistency Policy (Prasad et al., 2024). On an even grid of `bins` times, t and s < t uniform: the jump from t to s must
    end where the teacher's Heun step to the next bin and the network's own jump from there end. Every action is taught the
    velocity of the demonstrations as well, as the papers' denoising term, at a time after the law.

    The network's target is itself as it is now, not a running average: that needs no second set of weights to be saved and
    resumed, and is what "Improved Techniques for Training Consistency Models" (Song and Dhariwal, 2024) found better.
    """

    bins: int = 20
    power: float = 0.5
    taught: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.bins < 1:
            raise UserError(f"bins={self.bins} of the teacher's time: give 1 or more")

    def __call__(
        self,
        average: Average,
        law: Law,
        action: Tensor,
        noise: Tensor,
        cond: Tensor,
        generator: torch.Generator,
        teacher: Velocity | None,
    ) -> Aim:
        assert teacher is not None
        n = len(action)
        later = torch.randint(1, self.bins + 1, (n,), generator=generator, device=generator.device).to(action)
        share = torch.rand(n, generator=generator, device=generator.device).to(action)
        t, m, s = (x / self.bins for x in (later, later - 1, (share * later).floor().clamp(max=later - 1)))
        z, _ = on_line(action, noise, t)
        target = through(average, teacher, z, s, m, t, cond)
        free = law(n, generator).to(action)
        z_free, v = on_line(action, noise, free)
        both = lambda a, b: torch.cat((a, b))
        answer = average(both(z, z_free), both(s, free), both(t, free), both(cond, cond))
        return Aim(answer, both(target, v), both(t, free))
