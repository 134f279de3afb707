"""Energies read as denoisers: their gradient is the score, or their descent the answer.

An energy that sees its noise level is trained like any network: what a form predicts is, at every angle, an affine
function of the chunk and the score, and so the gradient of a potential. `gradient(potential)` under any form is
denoising score matching (Vincent, 2011); nothing else is needed to mix it with other families.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from polyarm.policies.generate.angle import wide
from polyarm.policies.generate.forms import Denoise, Net, Reading

EnergyFn = Callable[..., Tensor]
"""(x [b h d], phi [b], cond) -> energy [b]"""


@dataclass(frozen=True)
class Energy:
    """An energy that sees its noise level: -gradient = score = (cos * action - x) / sin^2 (Vincent, 2011).

    Towards pure noise the action is the small difference of large numbers. Beyond sigma = 1000 the energy is asked as
    if there, so that its error is not blown up without bound.
    """

    last: ClassVar[float] = math.atan(1000.0)

    def enter(self, x: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
        return x, phi.clamp(max=self.last)

    def leave(self, gradient: Tensor, x: Tensor, phi: Tensor) -> Tensor:
        phi = phi.clamp(max=self.last)
        return (x - wide(phi).sin() ** 2 * gradient) / wide(phi).cos()


def value_and_gradient(energy: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """The energies [b] and their gradient in x [b h d], also where gradients are off; where they are on, both can be
    differentiated again. Attention takes its plain kernel: the fused ones have no second derivative."""
    again = torch.is_grad_enabled()
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        if not (again and x.requires_grad):
            x = x.detach().requires_grad_()
        value = energy(x)
        slope = torch.autograd.grad(value.sum(), x, create_graph=again)[0]
    return (value if again else value.detach()), slope


def gradient(energy: EnergyFn) -> Net:
    """A network that answers with the energy's gradient in x."""

    def net(x: Tensor, phi: Tensor, cond: Any = None) -> Tensor:
        return value_and_gradient(lambda x: energy(x, phi, cond), x)[1]

    return net


def energy_of(potential: EnergyFn, form: Reading) -> EnergyFn:
    """The energy behind a potential that was trained under `form`: `gradient` of it, read by `Energy`, is the same
    denoiser. Up to a constant an angle it is the negative log density of x; infinite at phi = 0."""

    def energy(x: Tensor, phi: Tensor, cond: Any = None) -> Tensor:
        one = torch.ones_like(x[:, :1, :1])
        cos, sin = wide(phi).cos(), wide(phi).sin()
        z, clock = form.enter(x, phi)
        unit = form.enter(one, phi)[0]  # z = unit * x
        of_out, of_x = form.leave(one, 0 * one, phi), form.leave(0 * one, one, phi)  # action = of_out * out + of_x * x
        bowl = ((1 - cos * of_x) / sin**2 * x.square()).sum((1, 2)) / 2
        return bowl - (cos * of_out / (unit * sin**2))[:, 0, 0] * potential(z, clock, cond)

    return energy


def descent(energy: EnergyFn, steps: int, rate: float) -> Denoise:
    """The clean actions are where `steps` of plain descent on the energy end; blind to the angle if the energy is."""
    slope = gradient(energy)

    def denoise(x: Tensor, phi: Tensor, cond: Any = None) -> Tensor:
        for _ in range(steps):
            x = x - rate * slope(x, phi, cond)
        return x

    return denoise
