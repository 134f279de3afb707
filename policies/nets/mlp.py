"""A residual MLP: the body for one CPU core."""

import math

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from polyarm.policies.nets.clock import Waves

RATES = 16
"""Clock frequencies: 1 to 200 rad over the whole schedule."""


class ResidualMlp(nn.Module):
    """The flattened chunk, conditioned additively on clock and observations. It answers 0 until trained."""

    def __init__(
        self,
        action_dim: int,
        horizon: int,
        n_obs_steps: int,
        cond_dim: int,
        *,
        width: int,
        blocks: int,
        expand: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.chunk = nn.Linear(horizon * action_dim, width)
        self.cond = nn.Linear(n_obs_steps * cond_dim, width)
        waves = Waves(torch.exp(torch.linspace(0, math.log(200), RATES)) / 100)
        self.clock = nn.Sequential(waves, nn.Linear(2 * RATES, width))
        self.blocks = nn.ModuleList(_block(width, expand, dropout) for _ in range(blocks))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.SiLU(), _zero_linear(width, horizon * action_dim))

    def forward(
        self, x: Float[Tensor, "b h d"], clock: Float[Tensor, "b"], cond: Float[Tensor, "b o c"]
    ) -> Float[Tensor, "b h d"]:
        y = self.chunk(x.flatten(1)) + self.cond(cond.flatten(1)) + self.clock(clock)
        for block in self.blocks:
            y = y + block(y)
        return rearrange(self.head(y), "b (h d) -> b h d", h=x.shape[1])


def _block(width: int, expand: int, dropout: float) -> nn.Sequential:
    hidden = width * expand
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, hidden), nn.SiLU(), nn.Dropout(dropout), _zero_linear(hidden, width)
    )


def _zero_linear(fan_in: int, fan_out: int) -> nn.Linear:
    linear = nn.Linear(fan_in, fan_out)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
