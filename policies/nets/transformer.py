"""The transformer body of Diffusion Policy (Chi et al. 2023, arXiv 2303.04137): action rows attend to what was seen.

Attention is written out because `nn.MultiheadAttention` takes another kernel, with other rounding, when it acts.
"""

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from polyarm.policies.nets.clock import sinusoidal
from polyarm.spec import UserError


class ChunkTransformer(nn.Module):
    """A decoder over action tokens whose memory is the clock token followed by one token an observation step.

    `causal`: action row i sees rows up to i. `cross_mask`: row i sees the clock and the observation steps up to i.
    `cond_layers` > 0 encodes the memory by self-attention, 0 token by token.
    """

    sees_rows: Tensor | None
    sees_memory: Tensor | None

    def __init__(
        self,
        action_dim: int,
        horizon: int,
        n_obs_steps: int,
        cond_dim: int,
        *,
        width: int,
        layers: int,
        heads: int,
        cond_layers: int = 0,
        p_drop_emb: float = 0.0,
        p_drop_attn: float,
        causal: bool = True,
        cross_mask: bool = True,
    ) -> None:
        super().__init__()
        if width % heads:
            raise UserError(f"width {width} is no multiple of heads {heads}: choose a width that {heads} divides")
        self.rows = nn.Linear(action_dim, width)
        self.row_place = nn.Parameter(torch.empty(1, horizon, width))
        self.clock = sinusoidal(width)
        self.seen = nn.Linear(cond_dim, width)
        self.memory_place = nn.Parameter(torch.empty(1, 1 + n_obs_steps, width))
        self.drop = nn.Dropout(p_drop_emb)
        self.memory = nn.Sequential(
            *(Block(width, heads, p_drop_attn, cross=False) for _ in range(cond_layers))
            if cond_layers
            else (nn.Linear(width, 4 * width), nn.Mish(), nn.Linear(4 * width, width))
        )
        self.blocks = nn.ModuleList(Block(width, heads, p_drop_attn, cross=True) for _ in range(layers))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, action_dim))
        row, token = torch.arange(horizon)[:, None], torch.arange(1 + n_obs_steps)
        self.register_buffer("sees_rows", row >= row.T if causal else None, persistent=False)
        self.register_buffer("sees_memory", row >= token - 1 if cross_mask else None, persistent=False)
        for weight in (*self.decay_groups()[0], self.row_place, self.memory_place):
            nn.init.normal_(weight, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(
        self, x: Float[Tensor, "b h d"], clock: Float[Tensor, "b"], cond: Float[Tensor, "b o c"]
    ) -> Float[Tensor, "b h d"]:
        memory = torch.cat((self.clock(clock)[:, None], self.seen(cond)), dim=1)
        memory = self.memory(self.drop(memory + self.memory_place))
        y = self.drop(self.rows(x) + self.row_place)
        for block in self.blocks:
            y = block(y, self.sees_rows, memory, self.sees_memory)
        return self.head(y)

    def decay_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """(decay, no decay): weight decay pulls on the weights of linear maps; not on biases, norms and places."""
        # weights are the only matrices: biases and norms are vectors, places have a batch axis
        return [p for p in self.parameters() if p.ndim == 2], [p for p in self.parameters() if p.ndim != 2]


class Block(nn.Module):
    """Pre-norm: self-attention, then cross-attention to `memory` if `cross`, then a feed-forward map 4 times as wide."""

    def __init__(self, width: int, heads: int, dropout: float, cross: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attend = Attention(width, heads, dropout)
        self.cross_norm = nn.LayerNorm(width) if cross else None
        self.cross = Attention(width, heads, dropout) if cross else None
        self.feed = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(4 * width, width),
            nn.Dropout(dropout),
        )
        self.drop = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "b t c"],
        sees: Bool[Tensor, "t t"] | None = None,
        memory: Float[Tensor, "b s c"] | None = None,
        sees_memory: Bool[Tensor, "t s"] | None = None,
    ) -> Float[Tensor, "b t c"]:
        x = x + self.drop(self.attend(self.norm(x), None, sees))
        if self.cross is not None and self.cross_norm is not None:
            x = x + self.drop(self.cross(self.cross_norm(x), memory, sees_memory))
        return x + self.feed(x)


class Attention(nn.Module):
    """Multi-head attention of `x` to `memory`, or to itself if that is None. `qkv` stacks the three maps."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self, x: Float[Tensor, "b t c"], memory: Float[Tensor, "b s c"] | None, sees: Bool[Tensor, "t _"] | None
    ) -> Float[Tensor, "b t c"]:
        if memory is None:
            qkv = self.qkv(x).chunk(3, dim=-1)
        else:
            c = x.shape[-1]
            weight, bias = self.qkv.weight, self.qkv.bias
            kv = linear(memory, weight[c:], bias[c:]).chunk(2, dim=-1)
            qkv = (linear(x, weight[:c], bias[:c]), *kv)
        q, k, v = (rearrange(z, "b t (n c) -> b n t c", n=self.heads) for z in qkv)
        y = scaled_dot_product_attention(q, k, v, sees, self.dropout if self.training else 0.0)
        return self.out(rearrange(y, "b n t c -> b t (n c)"))
