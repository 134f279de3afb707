"""Samplers: pure functions of a denoiser, a noisy chunk, a falling row of angles, what was seen, and a generator.

`x`: [b h d], standard normal at the first angle. `angles`: [steps + 1], or [steps + 1, d] for a schedule a channel,
ending at 0. `generator`: one, or one a row; the same generator gives the same chunk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from inspect import signature
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyarm.policies.generate.angle import flow_line
from polyarm.policies.generate.compose import clip
from polyarm.policies.generate.forms import Denoise, Noise, normal
from polyarm.spec import UserError

Solver = Callable[..., Tensor]
Line = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class Sampler:
    """A solver on its grid. `limit` clips the clean actions to +-limit at every step (None: never).

    `shrink`: start from sigma * noise, as score models do, which in angles is a normal shrunk by the first angle's sine;
    otherwise from a standard normal, as DDPM does. At pi/2 both are the same; at sigma = 1 the second is twice too wide.
    """

    solver: Solver
    angles: Tensor
    limit: float | None = 1.0
    shrink: bool = False

    def __call__(self, denoise: Denoise, x: Tensor, cond: Any, generator: Noise) -> Tensor:
        if self.limit is not None:
            denoise = clip(denoise, -self.limit, self.limit)
        if self.shrink:
            x = (x * self.angles[0].to(x.device).sin()).to(x)
        return self.solver(denoise, x, self.angles, cond, generator)

    @property
    def bound(self) -> float | None:
        """The least that clean actions are clipped at, by `limit` or by a solver that clips itself; None: nowhere."""
        own = signature(self.solver).parameters.get("limit")
        limits = (self.limit, None if own is None else own.default)
        return min((float(x) for x in limits if x is not None), default=None)


def euler(denoise: Denoise, x: Tensor, angles: Tensor, cond: Any = None, generator: Noise | None = None) -> Tensor:
    """DDIM (Song et al., 2021), the probability-flow Euler step and rectified flow's Euler step: one and the same."""
    for now, nxt in _steps(angles, x):
        action = denoise(x, _rows(now, x), cond)
        x = (nxt.cos() * action + nxt.sin() * (x - now.cos() * action) / now.sin()).to(x)
    return x


def ddim_released(
    denoise: Denoise, x: Tensor, angles: Tensor, cond: Any = None, generator: Noise | None = None, *, limit: float = 1.0
) -> Tensor:
    """DDIM as diffusers runs it by default: actions are clipped, but the noise is the one that belongs to the unclipped.

    `euler` behind a clipped denoiser takes the noise that fits the clipped actions; this is the switch for parity with
    the released Diffusion Policy. Use it with `Sampler(limit=None)`.
    """
    for now, nxt in _steps(angles, x):
        action = denoise(x, _rows(now, x), cond)
        x = (nxt.cos() * action.clamp(-limit, limit) + nxt.sin() * (x - now.cos() * action) / now.sin()).to(x)
    return x


def ancestral(denoise: Denoise, x: Tensor, angles: Tensor, cond: Any = None, generator: Noise | None = None) -> Tensor:
    """DDPM (Ho et al., 2020, algorithm 2) with the posterior variance: forget part of the noise, then add as much again."""
    if generator is None:
        raise UserError("the ancestral sampler draws noise at every step: give it a generator")
    for now, nxt in _steps(angles, x):
        action = denoise(x, _rows(now, x), cond)
        noise = (x - now.cos() * action) / now.sin()
        ratio = nxt.tan() / now.tan()  # in [0, 1)
        x = (nxt.cos() * action + nxt.sin() * ratio * noise).to(x)
        if nxt.any():
            x = (x + nxt.sin() * (1 - ratio**2).sqrt() * normal(x, generator)).to(x)
    return x


def heun(
    denoise: Denoise,
    x: Tensor,
    angles: Tensor,
    cond: Any = None,
    generator: Noise | None = None,
    *,
    line: Line = flow_line,
) -> Tensor:
    """Heun's second order step along a `line`: `karras_line` gives algorithm 1 of Karras et al. (2022) without churn,
    `flow_line` Heun on rectified flow. In both the slope is (x / norm - action) / time. The last step is Euler's."""
    for now, nxt in _steps(angles, x):
        (norm, time), (next_norm, next_time) = line(now), line(nxt)
        if not (time.abs() < 1e6).all():
            raise UserError(
                "karras_line is infinite at pure noise: start from a finite sigma (grid karras), or walk the flow_line"
            )
        here = x / norm
        slope = (here - denoise(x, _rows(now, x), cond)) / time
        there = here + (next_time - time) * slope
        if nxt.any():
            next_slope = (there - denoise((there * next_norm).to(x), _rows(nxt, x), cond)) / next_time
            there = here + (next_time - time) * (slope + next_slope) / 2
        x = (there * next_norm).to(x)
    return x


def midpoint(denoise: Denoise, x: Tensor, angles: Tensor, cond: Any = None, generator: Noise | None = None) -> Tensor:
    """The slope halfway through each step of rectified flow's line, second order; two evaluations a step, also the last.
    That one ends in 2 * (actions seen halfway) - (actions seen here), which a limit on either does not bound."""
    for now, nxt in _steps(angles, x):
        (norm, time), (next_norm, next_time) = flow_line(now), flow_line(nxt)
        here, stride = x / norm, next_time - time
        middle = time + stride / 2
        phi = torch.atan2(middle, 1 - middle)
        halfway = here + stride / 2 * (here - denoise(x, _rows(now, x), cond)) / time
        seen = denoise((halfway * flow_line(phi)[0]).to(x), _rows(phi, x), cond)
        x = ((here + stride * (halfway - seen) / middle) * next_norm).to(x)
    return x


def multistep(denoise: Denoise, x: Tensor, angles: Tensor, cond: Any = None, generator: Noise | None = None) -> Tensor:
    """DPM-Solver++(2M) (Lu et al., 2022, algorithm 2), in log signal-to-noise; the first and the last step are Euler's."""
    before, stride_before = None, torch.tensor(torch.inf)
    for now, nxt in _steps(angles, x):
        action = denoise(x, _rows(now, x), cond)
        # at pi/2 the cosine is a rounding error: there, as towards the clean end, the stride is infinite
        ratio = torch.where(now.cos() < 1e-12, 0, nxt.sin() * now.cos() / (nxt.cos() * now.sin()))
        stride = -ratio.log()
        ahead = action
        if before is not None and nxt.any():
            ahead = action + (action - before) * stride / (2 * stride_before)
        x = (nxt.sin() / now.sin() * x + nxt.cos() * (1 - ratio) * ahead).to(x)
        before, stride_before = action, stride
    return x


Step = Callable[[Callable[[Tensor, Tensor], Tensor], Tensor, Tensor, Tensor], Tensor]
"""(ask, z, now, next) -> z at next: from one sigma to the next, z = action + sigma noise, ask(z, sigma) -> clean actions"""


def in_sigma(
    denoise: Denoise,
    x: Tensor,
    angles: Tensor,
    cond: Any = None,
    generator: Noise | None = None,
    *,
    step: Step,
    eta: float = 0.0,
    churn: float = 0.0,
) -> Tensor:
    """A one-step solver in the coordinates of Karras et al. (2022), with the two ways to add noise of k-diffusion.

    `churn`: raise sigma by min(churn / steps, sqrt(2) - 1) of itself before a step (algorithm 2). `eta`: step further
    down than the grid and add the difference as noise after it; 1 is ancestral, which with `euler_step` is DDPM.
    """
    if generator is None and (churn or eta):
        raise UserError(f"churn={churn}, eta={eta} draw noise at every step: give a generator, or 0 for both")
    sigma, ask = _sigma(angles, x), _asking(denoise, x, cond)
    raised = 1 + min(churn / (len(sigma) - 1), 2**0.5 - 1)
    z = x / sigma[0].atan().cos()
    for now, nxt in pairwise(sigma):
        if churn:
            z = z + now * (raised**2 - 1) ** 0.5 * normal(x, generator)  # type: ignore[arg-type]
            now = now * raised
        up = torch.minimum(nxt, eta * nxt * (1 - (nxt / now) ** 2).sqrt())
        z = step(ask, z, now, (nxt**2 - up**2).sqrt())
        if eta and nxt.any():
            z = z + up * normal(x, generator)  # type: ignore[arg-type]
    return (z * sigma[-1].atan().cos()).to(x)


def euler_step(ask: Any, z: Tensor, now: Tensor, nxt: Tensor) -> Tensor:
    """Euler; also DDIM and DPM-Solver-1."""
    return z + (nxt - now) * (z - ask(z, now)) / now


def heun_step(ask: Any, z: Tensor, now: Tensor, nxt: Tensor) -> Tensor:
    """Heun, Euler at the end (Karras et al., 2022, algorithm 2)."""
    slope = (z - ask(z, now)) / now
    there = z + (nxt - now) * slope
    return z + (nxt - now) * (slope + (there - ask(there, nxt)) / nxt) / 2 if nxt.any() else there


def dpm2_step(ask: Any, z: Tensor, now: Tensor, nxt: Tensor) -> Tensor:
    """DPM-Solver-2 as Karras et al. (2022) use it: the slope halfway in log(sigma), Euler at the end."""
    slope, middle = (z - ask(z, now)) / now, (now * nxt).sqrt()
    if nxt.any():
        there = z + (middle - now) * slope
        slope = (there - ask(there, middle)) / middle
    return z + (nxt - now) * slope


def dpmpp_2s_step(ask: Any, z: Tensor, now: Tensor, nxt: Tensor) -> Tensor:
    """DPM-Solver++(2S) (Lu et al., 2022, algorithm 1) with its second point halfway in log(sigma), Euler at the end."""
    action, middle = ask(z, now), (now * nxt).sqrt()
    if nxt.any():
        action = ask(action + middle / now * (z - action), middle)
    return action + nxt / now * (z - action)


def lms(
    denoise: Denoise,
    x: Tensor,
    angles: Tensor,
    cond: Any = None,
    generator: Noise | None = None,
    *,
    order: int = 4,
) -> Tensor:
    """Linear multistep of Katherine Crowson's k-diffusion: the last `order` slopes as a polynomial in sigma, integrated."""
    sigma, ask = _sigma(angles, x), _asking(denoise, x, cond)
    z = x / sigma[0].atan().cos()
    slopes: list[Tensor] = []
    for i, (now, nxt) in enumerate(pairwise(sigma)):
        slopes = [*slopes, (z - ask(z, now)) / now][-order:]
        weights = _adams(sigma[i + 1 - len(slopes) : i + 1], now, nxt)
        z = z + sum(w * slope for w, slope in zip(weights, slopes, strict=True))
    return (z * sigma[-1].atan().cos()).to(x)


def _adams(nodes: Tensor, low: Tensor, high: Tensor) -> list[Tensor]:
    """Integrals from low to high of the Lagrange polynomials on `nodes` [m] or [m d], by a Gauss rule exact for them."""
    points, rule = (torch.from_numpy(a).to(nodes) for a in np.polynomial.legendre.leggauss(len(nodes)))
    total = [torch.zeros_like(low) for _ in nodes]
    for point, weight in zip(points, rule, strict=True):
        at = low + (high - low) * (point + 1) / 2
        for j, node in enumerate(nodes):
            others = [(at - other) / (node - other) for k, other in enumerate(nodes) if k != j]
            total[j] = total[j] + weight * (high - low) / 2 * math.prod(others, start=torch.ones_like(at))
    return total


def _sigma(angles: Tensor, x: Tensor) -> Tensor:
    sigma = angles.to(device=x.device, dtype=torch.float64).tan()
    if not (sigma < 1e6).all():
        raise UserError(
            "sigma is infinite at pure noise: start from a finite one (grids karras, exponential, linear_sigma)"
        )
    return sigma


def _asking(denoise: Denoise, x: Tensor, cond: Any) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda z, sigma: denoise((z * sigma.atan().cos()).to(x), _rows(sigma.atan(), x), cond)


def _steps(angles: Tensor, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of angles in float64 on x's device: near the ends sine and cosine keep their digits until they meet x."""
    return pairwise(angles.to(device=x.device, dtype=torch.float64))


def _rows(phi: Tensor, x: Tensor) -> Tensor:
    """[] -> [b], [d] -> [b d], in x's precision."""
    return phi.to(x.dtype).expand(len(x), *phi.shape)
