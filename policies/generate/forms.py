"""What a network is trained to answer, and how its answer is read as clean actions.

Each form trains a network on its own clock and in its own coordinates. Whatever it predicts is some
`p * action + q * noise`; with x = cos * action + sin * noise that is one linear equation for the action, so a form is
no more than its coordinates, its clock, its (p, q) and its law of training angles. All of it stays finite on the whole
range of angles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from polyarm.policies.generate.angle import Schedule, flow_line, wide
from polyarm.spec import UserError, unknown

Denoise = Callable[..., Tensor]
"""(x [b h d], phi [b] or [b d], cond) -> clean actions [b h d]"""

Net = Callable[..., Tensor]
"""(its own coordinates [b h d], its own clock [b], cond) -> what it predicts [b h d]"""

Noise = torch.Generator | Sequence[torch.Generator]
"""Where random numbers come from: one generator a batch, or one a row."""


@runtime_checkable
class Reading(Protocol):
    """How a network is asked, and its answer read: all that acting needs (`energy.Energy` is no more)."""

    def enter(self, x: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]: ...  # -> network input, clock
    def leave(self, out: Tensor, x: Tensor, phi: Tensor) -> Tensor: ...  # network output -> clean actions


@runtime_checkable
class Form(Reading, Protocol):
    """`percent` turns the form's clock into percent of its noise schedule, the unit of every body in `policies.nets`."""

    @property
    def percent(self) -> float: ...
    @property
    def pairing(self) -> str: ...  # none, or optimal: which noise an action of the batch is trained with
    @property
    def condition_weight(self) -> float: ...
    def draw(self, n: int, generator: torch.Generator) -> Tensor: ...  # training angles [n]
    def target(self, action: Tensor, noise: Tensor, phi: Tensor) -> Tensor: ...


def normal(like: Tensor, generator: Noise) -> Tensor:
    """Standard normal noise of the shape of `like`; with a generator a row, a row's noise is independent of its batch."""
    if isinstance(generator, torch.Generator):
        return torch.randn(like.shape, generator=generator, device=generator.device, dtype=like.dtype).to(like.device)
    if len(generator) != len(like):
        raise UserError(f"{len(generator)} generators for {len(like)} rows: give one, or one a row")
    rows = [torch.randn(like.shape[1:], generator=g, device=g.device, dtype=like.dtype) for g in generator]
    return torch.stack(rows).to(like.device)


def denoiser(net: Net, form: Reading) -> Denoise:
    """Read a network as "noisy actions in, clean actions out"."""

    def denoise(x: Tensor, phi: Tensor, cond: Any = None) -> Tensor:
        return form.leave(net(*form.enter(x, phi), cond), x, phi)

    return denoise


def loss(net: Net, form: Form, action: Tensor, cond: Any, generator: torch.Generator) -> Tensor:
    """Mean squared error of the prediction at a random angle. `action`: [b h d], scaled."""
    phi = form.draw(len(action), generator).to(action)
    noise = paired(form, normal(action, generator), action, cond)
    x = wide(phi).cos() * action + wide(phi).sin() * noise
    return (net(*form.enter(x, phi), cond) - form.target(action, noise, phi)).square().mean()


def paired(form: Form, noise: Tensor, action: Tensor, cond: Any) -> Tensor:
    """The rows of `noise` [b h d] in the order that `form.pairing` gives them for these actions."""
    if form.pairing == "none":
        return noise
    return noise[assignment(noise, action, cond if form.condition_weight else None, form.condition_weight)]


@torch.no_grad()
def assignment(noise: Tensor, action: Tensor, cond: Any = None, weight: float = 0.0) -> Tensor:
    """Which row of noise each action gets, [b], so that the squared distances sum to the least (Pooladian et al., 2023;
    Tong et al., 2024). With conditions [b ...] a row of noise belongs to the condition it was drawn beside, and `weight`
    times the squared distance between conditions counts too (conditional optimal transport, Chemseddine et al., 2024)."""
    from scipy.optimize import linear_sum_assignment

    cost = torch.cdist(action.flatten(1).double(), noise.flatten(1).double()).square()
    if cond is not None:
        if not isinstance(cond, Tensor):
            raise UserError(
                f"policy.form.condition_weight={weight} compares conditions that are one tensor, this policy's are "
                f"{type(cond).__name__}: give 0, or pairing=none"
            )
        seen = cond.flatten(1).double()
        cost = cost + weight * torch.cdist(seen, seen).square()
    return torch.from_numpy(linear_sum_assignment(cost.cpu().numpy())[1]).to(noise.device)


Coefficients = Callable[[Tensor, Tensor], tuple[Any, Any]]
"""(cos, sin) -> (p, q): the prediction is p * action + q * noise"""


def _solve(coefficients: Coefficients, out: Tensor, x: Tensor, phi: Tensor) -> Tensor:
    """The action of x = cos * action + sin * noise and out = p * action + q * noise."""
    cos, sin = wide(phi).cos(), wide(phi).sin()
    p, q = coefficients(cos, sin)
    if q is None:  # the prediction is the action itself; the general formula is 0 / 0 at the clean end
        return out / p
    return (q * x - sin * out) / (q * cos - p * sin)


def _target(coefficients: Coefficients, action: Tensor, noise: Tensor, phi: Tensor) -> Tensor:
    p, q = coefficients(wide(phi).cos(), wide(phi).sin())
    return p * action if q is None else p * action + q * noise


def _pick(name: str, known: dict[str, Coefficients]) -> Coefficients:
    if name not in known:
        raise unknown("prediction", name, known)
    return known[name]


PAIRINGS = ("none", "optimal")


@dataclass(frozen=True)
class Uniform:
    """t is uniform on [0, 1)."""

    def __call__(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.rand(n, generator=generator, device=generator.device)


@dataclass(frozen=True)
class Beta:
    """t = low + (1 - low) Beta(alpha, 1), towards the noise (pi0, Black et al., 2024)."""

    alpha: float = 1.5
    low: float = 0.001

    def __call__(self, n: int, generator: torch.Generator) -> Tensor:
        return self.quantile(torch.rand(n, generator=generator, device=generator.device))

    def quantile(self, u: Tensor) -> Tensor:
        """The t below which a share `u` lies."""
        return self.low + (1 - self.low) * u ** (1 / self.alpha)


@dataclass(frozen=True)
class LogitNormal:
    """log(t / (1 - t)) ~ N(mean, std^2) (Esser et al., 2024, section 3.1)."""

    mean: float = 0.0
    std: float = 1.0

    def __call__(self, n: int, generator: torch.Generator) -> Tensor:
        return (self.mean + self.std * torch.randn(n, generator=generator, device=generator.device)).sigmoid()


@dataclass(frozen=True)
class Flow:
    """Rectified flow (Liu et al., 2023; Lipman et al., 2023). The network sees (1 - t) action + t noise at clock t, t = 1
    is noise, and predicts the velocity noise - action, or the clean actions. Training times follow a `law`.

    `pairing`: optimal gives every action of the batch the noise that is closest overall, which straightens the paths. Over
    the whole batch that makes the noise depend on what is seen: a policy that acts from any noise then samples another law
    than the demonstrations' for that observation. `condition_weight` > 0 is the remedy: the larger it is, the more equal
    the conditions must be for noise to change hands, and in the limit each condition keeps its law.
    """

    predict: str = "velocity"
    law: Uniform | Beta | LogitNormal = field(default_factory=Uniform)
    pairing: str = "none"
    condition_weight: float = 0.0
    percent: ClassVar[float] = 100.0
    targets: ClassVar[dict[str, Coefficients]] = {
        "velocity": lambda cos, sin: (-1.0, 1.0),
        "actions": lambda cos, sin: (1.0, None),
    }

    def __post_init__(self) -> None:
        _pick(self.predict, self.targets)
        if self.pairing not in PAIRINGS:
            raise unknown("pairing", self.pairing, PAIRINGS)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        t = self.law(n, generator)
        return torch.atan2(t, 1 - t)

    def enter(self, x: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
        norm, t = flow_line(phi)
        return x / wide(norm), t

    def leave(self, out: Tensor, x: Tensor, phi: Tensor) -> Tensor:
        return _solve(self.targets[self.predict], out, x, phi)

    def target(self, action: Tensor, noise: Tensor, phi: Tensor) -> Tensor:
        return _target(self.targets[self.predict], action, noise, phi)


@dataclass(frozen=True)
class Diffusion:
    """DDPM (Ho et al., 2020) on a discrete schedule. The network sees x itself at the step's index (between two training
    steps the index is interpolated) and predicts the noise, the clean actions, or v = cos noise - sin action
    (Salimans and Ho, 2022). Beyond the schedule's last angle it is asked as if at the last."""

    schedule: Schedule = field(default_factory=Schedule)
    predict: str = "noise"
    pairing: ClassVar[str] = "none"
    condition_weight: ClassVar[float] = 0.0
    targets: ClassVar[dict[str, Coefficients]] = {
        "noise": lambda cos, sin: (0.0, 1.0),
        "actions": lambda cos, sin: (1.0, None),
        "velocity": lambda cos, sin: (-sin, cos),
    }

    def __post_init__(self) -> None:
        _pick(self.predict, self.targets)

    @property
    def percent(self) -> float:
        return 100.0 / self.schedule.steps

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        index = torch.randint(self.schedule.steps, (n,), generator=generator, device=generator.device)
        return self.schedule.angles.to(index.device)[index]

    def enter(self, x: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
        angles = self.schedule.angles.to(phi)
        upper = torch.searchsorted(angles, phi.contiguous()).clamp(1, len(angles) - 1)
        low, high = angles[upper - 1], angles[upper]
        return x, (upper - 1 + (phi - low) / (high - low)).clamp(0, len(angles) - 1)

    def leave(self, out: Tensor, x: Tensor, phi: Tensor) -> Tensor:
        return _solve(self.targets[self.predict], out, x, phi.clamp(max=float(self.schedule.angles[-1])))

    def target(self, action: Tensor, noise: Tensor, phi: Tensor) -> Tensor:
        return _target(self.targets[self.predict], action, noise, phi)


@dataclass(frozen=True)
class LogNormal:
    """log(sigma) ~ N(mean, std^2), clamped (Karras et al., 2022, table 1)."""

    mean: float = -1.2
    std: float = 1.2

    def __call__(self, n: int, low: float, high: float, generator: torch.Generator) -> Tensor:
        draws = torch.randn(n, generator=generator, device=generator.device)
        return (draws * self.std + self.mean).exp().clamp(low, high)


@dataclass(frozen=True)
class LogLogistic:
    """log(sigma) is logistic around log(middle), cut to [low, high] by its quantiles (Reuss et al., 2023)."""

    middle: float = 0.5
    width: float = 0.5

    def __call__(self, n: int, low: float, high: float, generator: torch.Generator) -> Tensor:
        return self.quantile(torch.rand(n, generator=generator, device=generator.device), low, high)

    def quantile(self, u: Tensor, low: float, high: float) -> Tensor:
        """The sigma below which a share `u` of the cut law lies."""
        below = lambda sigma: 1 / (1 + (self.middle / sigma) ** (1 / self.width))
        first, last = below(low), below(high)
        return self.middle * torch.logit(first + u * (last - first)).mul(self.width).exp()


@dataclass(frozen=True)
class Karras:
    """EDM's preconditioning (Karras et al., 2022, table 1): unit-variance input, unit-variance target, clock log(sigma) / 4,
    training noise after a `law`. `scale` is the spread of the actions, sigma_data in the paper. In angles every
    coefficient is bounded: with r^2 = sin^2 + scale^2 cos^2 the input is x / r and the target
    sin / (r scale) * action - scale cos / r * noise."""

    scale: float = 0.5
    law: LogNormal | LogLogistic = field(default_factory=LogNormal)
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    percent: ClassVar[float] = 100.0
    pairing: ClassVar[str] = "none"
    condition_weight: ClassVar[float] = 0.0

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        return self.law(n, self.sigma_min, self.sigma_max, generator).atan()

    def enter(self, x: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
        clock = phi.tan().abs().clamp(self.sigma_min, self.sigma_max).log() / 4
        return x / self._spread(wide(phi).cos(), wide(phi).sin()), clock

    def leave(self, out: Tensor, x: Tensor, phi: Tensor) -> Tensor:
        return _solve(self._coefficients, out, x, phi)

    def target(self, action: Tensor, noise: Tensor, phi: Tensor) -> Tensor:
        return _target(self._coefficients, action, noise, phi)

    def _spread(self, cos: Tensor, sin: Tensor) -> Tensor:
        return (sin**2 + (self.scale * cos) ** 2).sqrt()

    def _coefficients(self, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        r = self._spread(cos, sin)
        return sin / (r * self.scale), -self.scale * cos / r
