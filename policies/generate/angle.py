"""Noise angles: schedules of the families, read as falling rows of angles that end at the clean chunk.

A grid is a float64 tensor [steps + 1], falling, whose last entry is 0. A grid [steps + 1, d] gives every action
channel its own schedule.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from polyarm.spec import UserError


def wide(phi: Tensor) -> Tensor:
    """Angles against chunks: [b] -> [b 1 1]; one angle a channel, [b d] -> [b 1 d]."""
    return phi[:, None, None] if phi.ndim == 1 else phi[:, None, :]


@dataclass(frozen=True)
class Schedule:
    """A discrete noise schedule of diffusers, by its name there; the default is Diffusion Policy's."""

    steps: int = 100
    beta_schedule: str = "squaredcos_cap_v2"

    @cached_property
    def cumprod(self) -> Tensor:
        """Product of (1 - beta) up to each step, [steps] float64, falling (alpha bar)."""
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

        try:
            found = DDPMScheduler(num_train_timesteps=self.steps, beta_schedule=self.beta_schedule)
        except NotImplementedError:
            raise UserError(
                f"unknown beta_schedule {self.beta_schedule!r}: give one of diffusers' DDPMScheduler, such as "
                "squaredcos_cap_v2, linear, scaled_linear, sigmoid"
            ) from None
        return found.alphas_cumprod.double()

    @cached_property
    def angles(self) -> Tensor:
        """Angle of each training step, [steps] float64, rising."""
        return angle_of(self.cumprod)


def angle_of(cumprod: Tensor) -> Tensor:
    """Alpha bar -> noise angle: cos^2 = alpha bar, sin^2 = 1 - alpha bar."""
    return torch.atan2((1 - cumprod).sqrt(), cumprod.sqrt())


def beside(phi: Tensor, schedule: Schedule, other: Schedule) -> Tensor:
    """The angle of `other` at the step at which `schedule` has `phi`, so that two kinds of channels walk their own schedules
    together; between steps, and from the first one down to the clean chunk, in proportion."""
    if schedule.steps != other.steps:
        raise UserError(
            f"noise schedules of {schedule.steps} and of {other.steps} steps side by side: give both the same number"
        )
    here, there = (torch.cat((s.angles.new_zeros(1), s.angles)).to(phi.device) for s in (schedule, other))
    upper = torch.searchsorted(here, phi.to(here).contiguous()).clamp(1, len(here) - 1)
    share = ((phi - here[upper - 1]) / (here[upper] - here[upper - 1])).clamp(0, 1)
    return torch.lerp(there[upper - 1], there[upper], share).to(phi)


def ddpm(schedule: Schedule) -> Tensor:
    """Every training step once (Ho et al., 2020)."""
    return _to_clean(schedule.angles.flip(0))


def ddim_leading(schedule: Schedule, steps: int) -> Tensor:
    """diffusers' "leading" spacing: 100 training steps in 10 give 90, 80, ..., 0. Sampling starts from N(0, 1)
    taken for the first of them, as the published Diffusion Policy does."""
    return _to_clean(schedule.angles[_leading(schedule, steps)])


def ddim_trailing(schedule: Schedule, steps: int) -> Tensor:
    """diffusers' "trailing" spacing: 100 training steps in 10 give 99, 89, ..., 9 (Lin et al., 2024)."""
    _positive(steps, schedule.steps)
    # not arange(train, 0, -train / steps), as diffusers has it: by rounding that is one too long for 29 of 100 steps
    index = (schedule.steps - torch.arange(steps, dtype=torch.float64) * schedule.steps / steps).round().long() - 1
    return _to_clean(schedule.angles[index])


def linear_flow(steps: int) -> Tensor:
    """Rectified flow's even times 1, ..., 1 / steps, 0; the interpolant (1 - t) action + t noise has tan(phi) = t / (1 - t)."""
    _positive(steps)
    t = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    return torch.atan2(t, 1 - t)


def karras(steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Tensor:
    """Karras et al. (2022), equation 5; tan(phi) = sigma."""
    _positive(steps)
    if not 0 < sigma_min <= sigma_max:
        raise UserError(f"karras grid from sigma {sigma_max} to {sigma_min}: give 0 < sigma_min <= sigma_max")
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    sigma = (sigma_max ** (1 / rho) + ramp * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho
    return _to_clean(sigma.atan())


def exponential(steps: int, sigma_min: float = 0.005, sigma_max: float = 1.0) -> Tensor:
    """Even steps in log(sigma), BESO's default (Reuss et al., 2023). It is also the grid of the variance-exploding
    model (Song et al., 2021) as Karras et al. (2022), table 1, have it."""
    _falls("exponential", sigma_min, sigma_max)
    return _to_clean(_ramp(math.log(sigma_max), math.log(sigma_min), steps).exp().atan())


def linear_sigma(steps: int, sigma_min: float = 0.005, sigma_max: float = 1.0) -> Tensor:
    """Even steps in sigma."""
    _falls("linear", sigma_min, sigma_max)
    return _to_clean(_ramp(sigma_max, sigma_min, steps).atan())


def vp(steps: int, beta_d: float = 19.9, beta_min: float = 0.1, eps: float = 1e-3) -> Tensor:
    """Even times from 1 to `eps` of the variance-preserving model (Song et al., 2021), whose alpha bar at time t is
    exp(-beta_d t^2 / 2 - beta_min t)."""
    t = _ramp(1.0, eps, steps)
    return _to_clean(angle_of((-beta_d * t**2 / 2 - beta_min * t).exp()))


def flow_line(phi: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates in which rectified flow is a straight line: (norm, time) with x / norm = (1 - t) action + t noise."""
    norm = phi.cos() + phi.sin()
    return norm, phi.sin() / norm


def karras_line(phi: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates of Karras et al.: (norm, time) with x / norm = action + sigma noise. Infinite at pure noise."""
    return phi.cos(), phi.tan()


def _ramp(first: float, last: float, steps: int) -> Tensor:
    _positive(steps)
    return torch.linspace(first, last, steps, dtype=torch.float64)


def _falls(name: str, sigma_min: float, sigma_max: float) -> None:
    if not 0 < sigma_min <= sigma_max:
        raise UserError(f"{name} grid from sigma {sigma_max} to {sigma_min}: give 0 < sigma_min <= sigma_max")


def _leading(schedule: Schedule, steps: int) -> Tensor:
    _positive(steps, schedule.steps)
    return torch.arange(steps).flip(0) * (schedule.steps // steps)


def _to_clean(angles: Tensor) -> Tensor:
    return torch.cat([angles, torch.zeros_like(angles[:1])])


def _positive(steps: int, most: int | None = None) -> None:
    if steps < 1 or (most is not None and steps > most):
        raise UserError(
            f"steps={steps} denoising steps: give 1 to {most} for this schedule"
            if most
            else f"steps={steps}: give 1 or more"
        )
