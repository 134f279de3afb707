"""Memory across chunks: SEGA, the self-evolving gated attention of SeedPolicy (Gui et al. 2026, arXiv 2603.05117).

State tokens S, fixed in number however long the episode, ask the observation tokens O and are asked by them, in two
streams side by side. What the state learnt is mixed in by a gate that the attention itself gives:

    S_t = G * Inter_t + (1 - G) * S_{t-1},    G = sigmoid(mean of the state stream's logits over layers, heads, observations)

The observation stream sees S_{t-1}: S_t acts only on the next call. Between calls `content` = S - P is carried, where P
is each token's learned place.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from polyarm.spec import UserError


class Sega(nn.Module):
    """`tokens` state tokens of `width`, through `depth` layers of two streams.

    Untrained, the published start is nearly a plain average with gate 1/2, and the tokens become alike within tens of
    calls (see `diversity`). Four remedies, all off by default: `orthogonal` > 0 starts from orthogonal tokens with this
    root mean square a channel in place of normal ones of 0.02; `place_std` > 0 starts the places from a normal draw in
    place of 0; `gate_bias` (first, last) gives each token its own learned bias of the gate's logit, evenly spaced, so
    that some tokens are slow; `gate_temperature` divides the logit.
    """

    def __init__(
        self,
        width: int,
        tokens: int,
        depth: int,
        heads: int,
        *,
        orthogonal: float,
        place_std: float,
        gate_bias: Sequence[float] | None,
        gate_temperature: float,
    ) -> None:
        super().__init__()
        _require_sizes(width, tokens, depth, heads, orthogonal, gate_temperature)
        self.gate_temperature = gate_temperature
        self.state_blocks = nn.ModuleList(TwoStreamBlock(width, heads) for _ in range(depth))
        self.obs_blocks = nn.ModuleList(TwoStreamBlock(width, heads) for _ in range(depth))
        self.state_norm = nn.LayerNorm(width)
        self.obs_norm = nn.LayerNorm(width)
        self.first = nn.Parameter(0.02 * torch.randn(1, tokens, width))
        self.place = nn.Parameter(place_std * torch.randn(1, tokens, width))
        if orthogonal:
            nn.init.orthogonal_(self.first[0], gain=orthogonal * width**0.5)
        self.gate_bias = None if gate_bias is None else nn.Parameter(_spread(gate_bias, tokens))

    def start(self, b: int) -> Float[Tensor, "b t c"]:
        """The content before the first call."""
        return self.first.expand(b, -1, -1)

    def forward(
        self, content: Float[Tensor, "b t c"], fresh: Bool[Tensor, "b"], seen: Float[Tensor, "b o c"]
    ) -> tuple[Float[Tensor, "b o c"], Float[Tensor, "b t c"]]:
        """(EObs, the next content). Rows flagged `fresh` start anew whatever their content, with gate 1."""
        anew = fresh[:, None, None]
        state = torch.where(anew, self.first, content) + self.place
        inter, enriched, logit = self.streams(state, seen)
        gate = torch.where(anew, 1.0, self.gate(logit))
        return enriched, gate * inter + (1 - gate) * state - self.place

    def streams(
        self, state: Float[Tensor, "b t c"], seen: Float[Tensor, "b o c"]
    ) -> tuple[Float[Tensor, "b t c"], Float[Tensor, "b o c"], Float[Tensor, "b t 1"]]:
        """(Inter, EObs, R). In every layer both streams use what the other was before it; R is the mean logit of each
        state token before the softmax."""
        logits = []
        for state_block, obs_block in zip(self.state_blocks, self.obs_blocks, strict=True):
            (state, logit), (seen, _) = state_block(state, seen), obs_block(seen, state)
            logits.append(logit.float().mean((1, 3)))  # in bfloat16 the gate would move in steps of 0.002
        return self.state_norm(state), self.obs_norm(seen), torch.stack(logits).mean(0)[..., None]

    def gate(self, logit: Float[Tensor, "b t 1"]) -> Float[Tensor, "b t 1"]:
        """How much of each token is replaced."""
        logit = logit / self.gate_temperature
        return (logit if self.gate_bias is None else logit + self.gate_bias).sigmoid()


def diversity(content: Float[Tensor, "b t c"]) -> Float[Tensor, "b"]:
    """Inter-token standard deviation, mean over channels: near 0 when the tokens have become copies of each other."""
    return content.std(1).mean(-1)


class TwoStreamBlock(nn.Module):
    """One layer of one stream: self-attention, attention to the other stream's tokens, feed-forward; norms come first,
    the memory has its own."""

    def __init__(self, width: int, heads: int, ratio: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.self_norm, self.cross_norm, self.memory_norm = (nn.LayerNorm(width) for _ in range(3))
        self.qkv, self.self_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.q, self.k, self.v, self.cross_out = (nn.Linear(width, width) for _ in range(4))
        self.feed = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, ratio * width), nn.GELU(), nn.Linear(ratio * width, width)
        )

    def forward(
        self, x: Float[Tensor, "b t c"], memory: Float[Tensor, "b s c"]
    ) -> tuple[Float[Tensor, "b t c"], Float[Tensor, "b n t s"]]:
        """(the stream after this layer, its scaled attention logits to the memory before the softmax)."""
        y, _ = self._attend(*self.qkv(self.self_norm(x)).chunk(3, dim=-1))
        x = x + self.self_out(y)
        memory = self.memory_norm(memory)
        y, logits = self._attend(self.q(self.cross_norm(x)), self.k(memory), self.v(memory))
        x = x + self.cross_out(y)
        return x + self.feed(x), logits

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = (rearrange(z, "b t (n c) -> b n t c", n=self.heads) for z in (q, k, v))
        logits = q @ k.mT * q.shape[-1] ** -0.5
        return rearrange(logits.softmax(-1) @ v, "b n t c -> b t (n c)"), logits


def _spread(ends: Sequence[float], tokens: int) -> Float[Tensor, "1 t 1"]:
    if len(ends) != 2:
        raise UserError(f"gate_bias={list(ends)}: give two numbers, the first token's and the last one's, or null")
    return torch.linspace(ends[0], ends[1], tokens)[None, :, None]


def _require_sizes(width: int, tokens: int, depth: int, heads: int, orthogonal: float, temperature: float) -> None:
    if min(width, tokens, depth, heads) < 1 or width % heads:
        raise UserError(
            f"memory of width={width}, tokens={tokens}, depth={depth}, heads={heads}: each must be at least 1 and width a "
            "multiple of heads"
        )
    if orthogonal and tokens > width:
        raise UserError(f"{tokens} tokens of width {width} cannot be orthogonal: give at most {width}, or orthogonal=0")
    if temperature <= 0:
        raise UserError(f"gate_temperature={temperature:g}: give a number above 0")
