"""The convolutional body of Diffusion Policy (Chi et al. 2023, arXiv 2303.04137): a 1-D U-Net over the chunk's rows."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import mish

from polyarm.policies.nets.clock import sinusoidal
from polyarm.spec import UserError

LAST_GROUPS = 8


class Unet1d(nn.Module):
    """Every residual block is modulated by g = cat(clock embedding, flattened observations); there is no attention.

    `clock_dim` is the embedding's width. `groups` are those of every norm but the last block's, which has 8 whatever the others
    have: so the published code builds it, and so networks trained by it compute what they did. `pairs`: two residual blocks a level;
    otherwise one, as Simple DP3 (Ze et al. 2024, arXiv 2403.03954) has it. Without observations (`n_obs_steps` or `cond_dim` 0) g is the clock alone.
    Raises UserError for a horizon that cannot be halved once a level but the last, and for widths that groups do not divide.
    """

    def __init__(
        self,
        action_dim: int,
        horizon: int,
        n_obs_steps: int,
        cond_dim: int,
        *,
        down_dims: Sequence[int],
        clock_dim: int,
        kernel_size: int,
        groups: int,
        pairs: bool = True,
        predict_scale: bool = True,
    ) -> None:
        super().__init__()
        _require_sizes(horizon, down_dims, groups)
        g_dim = clock_dim + n_obs_steps * cond_dim
        block = partial(ResidualBlock, g_dim=g_dim, kernel_size=kernel_size, groups=groups, predict_scale=predict_scale)
        top, bottom = down_dims[0], down_dims[-1]
        steps = list(pairwise(down_dims))
        self.clock = nn.Sequential(
            sinusoidal(clock_dim), nn.Linear(clock_dim, 4 * clock_dim), nn.Mish(), nn.Linear(4 * clock_dim, clock_dim)
        )
        level = partial(Pair, block=block, pair=pairs)
        self.enter = level(action_dim, top)
        self.shrink = nn.ModuleList(nn.Conv1d(above, above, 3, stride=2, padding=1) for above, _ in steps)
        self.down = nn.ModuleList(level(above, below) for above, below in steps)
        self.middle = level(bottom, bottom)
        self.up = nn.ModuleList(level(2 * below, above) for above, below in reversed(steps))
        self.grow = nn.ModuleList(
            nn.ConvTranspose1d(above, above, 4, stride=2, padding=1) for above, _ in reversed(steps)
        )
        self.leave = nn.Sequential(_conv(top, top, kernel_size, LAST_GROUPS), nn.Conv1d(top, action_dim, 1))

    def forward(
        self, x: Float[Tensor, "b h d"], clock: Float[Tensor, "b"], cond: Float[Tensor, "b o c"]
    ) -> Float[Tensor, "b h d"]:
        g = mish(torch.cat((self.clock(clock), cond.flatten(1)), dim=1))
        y = self.enter(rearrange(x, "b h d -> b d h"), g)
        skips = []
        for shrink, pair in zip(self.shrink, self.down, strict=True):
            y = pair(shrink(y), g)
            skips.append(y)
        y = self.middle(y, g)
        for pair, grow in zip(self.up, self.grow, strict=True):
            y = grow(pair(torch.cat((y, skips.pop()), dim=1), g))
        return rearrange(self.leave(y), "b d h -> b h d")


class Pair(nn.Module):
    """Two residual blocks, or without `pair` one; the first changes the width."""

    def __init__(self, c_in: int, c_out: int, block: Callable[[int, int], "ResidualBlock"], pair: bool) -> None:
        super().__init__()
        self.first = block(c_in, c_out)
        self.second = block(c_out, c_out) if pair else None

    def forward(self, x: Float[Tensor, "b c_in h"], g: Float[Tensor, "b g"]) -> Float[Tensor, "b c_out h"]:
        y = self.first(x, g)
        return y if self.second is None else self.second(y, g)


class ResidualBlock(nn.Module):
    """conv -> FiLM -> conv, plus the input."""

    def __init__(self, c_in: int, c_out: int, g_dim: int, kernel_size: int, groups: int, predict_scale: bool) -> None:
        super().__init__()
        self.first = _conv(c_in, c_out, kernel_size, groups)
        self.film = Film(g_dim, c_out, predict_scale)
        self.second = _conv(c_out, c_out, kernel_size, groups)
        self.carry = nn.Identity() if c_in == c_out else nn.Conv1d(c_in, c_out, 1)

    def forward(self, x: Float[Tensor, "b c_in h"], g: Float[Tensor, "b g"]) -> Float[Tensor, "b c_out h"]:
        return self.second(self.film(self.first(x), g)) + self.carry(x)


class Film(nn.Module):
    """Feature-wise modulation (Perez et al. 2018): scale * x + bias, both linear in g; without `predict_scale` x + bias.

    `g` comes through its Mish already: that is the same for all blocks and so is computed once.
    """

    def __init__(self, g_dim: int, channels: int, predict_scale: bool) -> None:
        super().__init__()
        self.predict_scale = predict_scale
        self.linear = nn.Linear(g_dim, channels * (2 if predict_scale else 1))

    def forward(self, x: Float[Tensor, "b c h"], g: Float[Tensor, "b g"]) -> Float[Tensor, "b c h"]:
        out = self.linear(g)[..., None]
        if not self.predict_scale:
            return x + out
        scale, bias = out.chunk(2, dim=1)
        return scale * x + bias


def _conv(c_in: int, c_out: int, kernel_size: int, groups: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv1d(c_in, c_out, kernel_size, padding=kernel_size // 2), nn.GroupNorm(groups, c_out), nn.Mish()
    )


def _require_sizes(horizon: int, down_dims: Sequence[int], groups: int) -> None:
    unit = 2 ** (len(down_dims) - 1)
    if horizon < 1 or horizon % unit:
        near = max(horizon // unit, 1) * unit
        raise UserError(
            f"horizon {horizon} cannot be halved {len(down_dims) - 1} times by a U-Net of {len(down_dims)} levels, "
            f"which needs a multiple of {unit}: choose {near} or {near + unit}"
        )
    if down_dims[0] % LAST_GROUPS:
        raise UserError(
            f"down_dims {down_dims[0]} is no multiple of {LAST_GROUPS}, the groups of the last block whatever the others have: "
            f"choose a first width that {LAST_GROUPS} divides"
        )
    for dim in down_dims:
        if dim % groups:
            raise UserError(f"down_dims {dim} is no multiple of groups {groups}: choose widths that {groups} divides")
