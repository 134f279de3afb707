"""Attention between tokens that lie in space: 3D Diffuser Actor's layers (Ke et al. 2024, arXiv 2402.10885) and its
successor's (3D FlowMatch Actor, Gkanatsios et al. 2025, arXiv 2508.11002).

Queries and keys are turned by angles that grow with their coordinates (rotary encoding, Su et al. 2021, here on three
axes), so that a logit depends on where two tokens lie to each other and not on where both are.
"""

import math
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from polyarm.spec import UserError


class Turn(NamedTuple):
    """By how much each pair of channels is turned: cosines and sines, alike for both channels of a pair."""

    cos: Float[Tensor, "b n c"]
    sin: Float[Tensor, "b n c"]


class Kept(NamedTuple):
    """Keys, turned to where their tokens lie, and values, by head."""

    keys: Float[Tensor, "b n s d"]
    values: Float[Tensor, "b n s d"]


@torch.no_grad()
def turn_at(xyz: Float[Tensor, "b n 3"], width: int) -> Turn:
    """A third of the channels for each axis, an even number of them and the rest for z; the pairs of an axis' d channels
    turn by coordinate * 10000^(-2j / d), the fastest by 1 rad a unit. No gradient reaches the coordinates."""
    d = width // 3 // 2 * 2
    phases = [
        xyz[..., i, None].float() * torch.exp(torch.arange(0, n, 2, device=xyz.device) * (-math.log(10_000) / n))
        for i, n in enumerate((d, d, width - 2 * d))
    ]
    phase = torch.cat(phases, dim=-1).repeat_interleave(2, dim=-1)
    return Turn(phase.cos().to(xyz), phase.sin().to(xyz))


def turned(x: Float[Tensor, "b n c"], by: Turn) -> Float[Tensor, "b n c"]:
    """Pairs of neighbouring channels (a, b) -> (a cos - b sin, b cos + a sin)."""
    swapped = torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)
    return x * by.cos + swapped * by.sin


class RotaryAttention(nn.Module):
    """Multi-head attention whose queries and keys are turned in full width, before they are cut into heads, as released.

    Where a head has an odd number of channels (120 in 8 heads) pairs lie across two heads, and logits depend on where
    the scene is: published, and to be avoided. `qkv` stacks the three maps.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        if width % heads or width % 2 or width < 12:
            raise UserError(
                f"width {width} with {heads} heads: choose an even width of at least 12 that {heads} divides, with an even "
                "quotient for attention that does not depend on where the scene is"
            )
        self.heads, self.dropout = heads, dropout
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        nn.init.xavier_uniform_(self.qkv.weight)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.out.bias)

    def forward(
        self,
        x: Float[Tensor, "b t c"],
        memory: Float[Tensor, "b s c"] | Kept,
        at: Turn | None = None,
        memory_at: Turn | None = None,
        given: Bool[Tensor, "b s"] | None = None,
    ) -> Float[Tensor, "b t c"]:
        """`given`: False where there is no token of the memory. A memory that stays the same may be `keep` of it."""
        c = x.shape[-1]
        q = linear(x, self.qkv.weight[:c], self.qkv.bias[:c])
        k, v = memory if isinstance(memory, Kept) else self.keep(memory, None if at is None else memory_at)
        q = self._heads(q if at is None or memory_at is None else turned(q, at))
        sees = None if given is None else given[:, None, None]
        y = scaled_dot_product_attention(q, k, v, sees, self.dropout if self.training else 0.0)
        return self.out(rearrange(y, "b n t c -> b t (n c)"))

    def keep(self, memory: Float[Tensor, "b s c"], at: Turn | None) -> Kept:
        """What attention asks of a memory."""
        c = memory.shape[-1]
        k, v = linear(memory, self.qkv.weight[c:], self.qkv.bias[c:]).chunk(2, dim=-1)
        return Kept(self._heads(k if at is None else turned(k, at)), self._heads(v))

    def _heads(self, x: Float[Tensor, "b t c"]) -> Float[Tensor, "b n t d"]:
        return rearrange(x, "b t (n d) -> b n t d", n=self.heads)


class AdaLN(nn.Module):
    """x (1 + gain) + shift by a signal; it does not normalise, and changes nothing until trained."""

    def __init__(self, width: int) -> None:
        super().__init__()
        linear = nn.Linear(width, 2 * width)
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
        self.modulation = nn.Sequential(nn.SiLU(), linear)

    def forward(self, x: Float[Tensor, "b t c"], signal: Float[Tensor, "b c"] | None) -> Float[Tensor, "b t c"]:
        if signal is None:
            return x
        gain, shift = self.modulation(signal)[:, None].chunk(2, dim=-1)
        return x * (1 + gain) + shift


class Attend(nn.Module):
    """norm(x + attention(modulated x, memory)); the tokens themselves are the memory where none is given. `whole`: then keys
    and values are modulated as queries are, as in the successor; published: queries alone."""

    def __init__(self, width: int, heads: int, dropout: float, adaptive: bool = False, whole: bool = False) -> None:
        super().__init__()
        self.adapt = AdaLN(width) if adaptive else None
        self.attention = RotaryAttention(width, heads, dropout)
        self.drop, self.norm, self.whole = nn.Dropout(dropout), nn.LayerNorm(width), whole

    def forward(
        self,
        x: Float[Tensor, "b t c"],
        memory: Float[Tensor, "b s c"] | Kept | None = None,
        at: Turn | None = None,
        memory_at: Turn | None = None,
        signal: Float[Tensor, "b c"] | None = None,
        given: Bool[Tensor, "b s"] | None = None,
        place: Float[Tensor, "t c"] | None = None,
    ) -> Float[Tensor, "b t c"]:
        """`place` is added to the queries alone."""
        query = x if place is None else x + place
        if self.adapt is not None:
            query = self.adapt(query, signal)
        if memory is None:
            memory, memory_at = (query if self.whole else x), at
        return self.norm(x + self.drop(self.attention(query, memory, at, memory_at, given)))


class Feed(nn.Module):
    """norm(y + two maps of y) of the modulated y."""

    def __init__(self, width: int, hidden: int, dropout: float, adaptive: bool = False) -> None:
        super().__init__()
        self.adapt = AdaLN(width) if adaptive else None
        self.maps = nn.Sequential(
            nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, width), nn.Dropout(dropout)
        )
        self.norm = nn.LayerNorm(width)
        for i in (0, 3):
            nn.init.xavier_uniform_(self.maps[i].weight)  # type: ignore[arg-type]

    def forward(self, x: Float[Tensor, "b t c"], signal: Float[Tensor, "b c"] | None = None) -> Float[Tensor, "b t c"]:
        y = x if self.adapt is None else self.adapt(x, signal)
        return self.norm(y + self.maps(y))
