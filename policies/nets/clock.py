"""How a network is told the noise level."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polyarm.spec import UserError


class Waves(nn.Module):
    """clock -> cat(sin(clock * rates), cos(clock * rates)); `rates` are constants that are not saved."""

    rates: Tensor

    def __init__(self, rates: Float[Tensor, "r"]) -> None:
        super().__init__()
        self.register_buffer("rates", rates, persistent=False)

    def forward(self, clock: Float[Tensor, "b"]) -> Float[Tensor, "b c"]:
        phase = clock[:, None] * self.rates
        return torch.cat((phase.sin(), phase.cos()), dim=-1)


def sinusoidal(width: int) -> Waves:
    """The positional embedding of Vaswani et al. 2017 as DDPM networks use it: `width` / 2 rates from 1 down to 1/10000."""
    if width % 2 or width < 4:
        raise UserError(
            f"width {width} holds no pairs of sine and cosine at two rates: give an even width of at least 4"
        )
    half = width // 2
    return Waves(torch.exp(torch.arange(half) * (-math.log(10_000) / (half - 1))))


def periods(width: int, shortest: float, longest: float) -> Waves:
    """pi0's embedding (Black et al., 2024) of a time: `width` / 2 periods in geometric steps; there 0.004 to 4."""
    steps = torch.linspace(math.log(shortest), math.log(longest), width // 2, dtype=torch.float64)
    return Waves((2 * math.pi / steps.exp()).float())
