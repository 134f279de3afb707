"""Bodies for energies, and how a body's answer [b h d] becomes one energy a chunk.

Everything here is twice differentiable: attention is written out, and the activations have second derivatives.
"""

from collections.abc import Callable

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from polyarm.policies.generate.energy import gradient
from polyarm.spec import UserError


def mean_output(out: Float[Tensor, "b h d"], x: Float[Tensor, "b h d"]) -> Float[Tensor, "b"]:
    """The mean of what the body answers, EBT-Policy's energy (arXiv 2510.27545)."""
    return out.mean((1, 2))


def half_distance(out: Float[Tensor, "b h d"], x: Float[Tensor, "b h d"]) -> Float[Tensor, "b"]:
    """Half the mean squared distance from the chunk to what the body answers. With the rate h * d, and but for the body's
    own derivative, one step of descent goes all the way to the answer."""
    return (x - out).square().mean((1, 2)) / 2


class Slope(nn.Module):
    """A body whose answer is the gradient of an energy, `h * d` times `energy` of another body's answer.

    It keeps the bodies' contract: under any form it is trained by denoising score matching, and it acts, and mixes, like
    any other.
    """

    def __init__(
        self,
        action_dim: int,
        horizon: int,
        n_obs_steps: int,
        cond_dim: int,
        *,
        body: Callable[..., nn.Module],
        energy: Callable[[Tensor, Tensor], Tensor],
    ) -> None:
        super().__init__()
        self.body = body(action_dim=action_dim, horizon=horizon, n_obs_steps=n_obs_steps, cond_dim=cond_dim)
        self.read = energy

    def potential(
        self, x: Float[Tensor, "b h d"], clock: Float[Tensor, "b"], cond: Float[Tensor, "b o c"]
    ) -> Float[Tensor, "b"]:
        return x[0].numel() * self.read(self.body(x, clock, cond), x)

    def forward(
        self, x: Float[Tensor, "b h d"], clock: Float[Tensor, "b"], cond: Float[Tensor, "b o c"]
    ) -> Float[Tensor, "b h d"]:
        return gradient(self.potential)(x, clock, cond)


class ObsTransformer(nn.Module):
    """EBT-Policy's temporal encoder: pre-norm self-attention over the observation steps, each of which sees the earlier."""

    def __init__(
        self,
        n_obs_steps: int,
        cond_dim: int,
        *,
        width: int,
        layers: int,
        heads: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.width = width
        self.enter = nn.Linear(cond_dim, width)
        self.place = nn.Parameter(torch.zeros(1, n_obs_steps, width))
        self.blocks = nn.ModuleList(Block(width, None, heads, dropout) for _ in range(layers))
        step = torch.arange(n_obs_steps)
        self.register_buffer("sees", step[:, None] >= step, persistent=False)
        _xavier(self.blocks)

    def forward(self, cond: Float[Tensor, "b o c"]) -> Float[Tensor, "b o w"]:
        x = self.enter(cond) + self.place
        for block in self.blocks:
            x = block(x, sees=self.sees)
        return x


class EnergyTransformer(nn.Module):
    """EBT-Policy's energy network (arXiv 2510.27545): every row sees all rows, and row i the observation steps up to i.

    It has no notion of a noise level: `clock` is ignored. Its energy is `mean_output`.
    """

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
        dropout: float,
    ) -> None:
        super().__init__()
        self.rows = nn.Sequential(
            nn.Linear(action_dim, width), nn.LayerNorm(width), _gelu(), nn.Linear(width, width), _gelu()
        )
        self.register_buffer("place", places(horizon, width), persistent=False)
        self.blocks = nn.ModuleList(Block(width, cond_dim, heads, dropout) for _ in range(layers))
        # biased: where the rate grows with the energy, its level matters
        self.head = nn.Sequential(_norm(width), nn.Linear(width, width), _gelu(), nn.Linear(width, action_dim))
        row, step = torch.arange(horizon)[:, None], torch.arange(n_obs_steps)
        self.register_buffer("sees_obs", row >= step, persistent=False)
        _xavier(self.blocks)
        _xavier(self.head)

    def forward(
        self, x: Float[Tensor, "b h d"], clock: Float[Tensor, "b"], cond: Float[Tensor, "b o c"]
    ) -> Float[Tensor, "b h d"]:
        y = self.rows(x) + self.place
        for block in self.blocks:
            y = block(y, memory=cond, sees_memory=self.sees_obs)
        return self.head(y)


class Block(nn.Module):
    """Pre-norm: self-attention, cross-attention if there is a memory, then an MLP no wider than its input."""

    def __init__(self, width: int, memory_width: int | None, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm = _norm(width)
        self.attend = Attention(width, None, heads, dropout)
        self.cross_norm = None if memory_width is None else _norm(width)
        self.cross = None if memory_width is None else Attention(width, memory_width, heads, dropout)
        self.feed = nn.Sequential(_norm(width), nn.Linear(width, width), _gelu(), nn.Linear(width, width))

    def forward(
        self,
        x: Float[Tensor, "b t w"],
        sees: Bool[Tensor, "t t"] | None = None,
        memory: Float[Tensor, "b s c"] | None = None,
        sees_memory: Bool[Tensor, "t s"] | None = None,
    ) -> Float[Tensor, "b t w"]:
        x = x + self.attend(self.norm(x), None, sees)
        if self.cross is not None and self.cross_norm is not None:
            x = x + self.cross(self.cross_norm(x), memory, sees_memory)
        return x + self.feed(x)


class Attention(nn.Module):
    """Multi-head attention of `x` to a memory, or to itself where there is none; queries and keys are normalised a head."""

    def __init__(self, width: int, memory_width: int | None, heads: int, dropout: float) -> None:
        super().__init__()
        if width % heads:
            raise UserError(f"width {width} is no multiple of heads {heads}: choose a width that {heads} divides")
        self.heads = heads
        if memory_width is None:
            maps = [nn.Linear(width, 3 * width)]
        else:
            maps = [nn.Linear(width, width), nn.Linear(memory_width, 2 * width)]
        self.maps = nn.ModuleList(maps)
        self.query_norm, self.key_norm = _norm(width // heads), _norm(width // heads)
        self.drop = nn.Dropout(dropout)
        self.out = nn.Linear(width, width, bias=memory_width is None)

    def forward(
        self, x: Float[Tensor, "b t w"], memory: Float[Tensor, "b s c"] | None, sees: Bool[Tensor, "t _"] | None
    ) -> Float[Tensor, "b t w"]:
        sources = (x,) if memory is None else (x, memory)
        mapped = [z for to, source in zip(self.maps, sources, strict=True) for z in to(source).split(x.shape[-1], -1)]
        q, k, v = (rearrange(z, "b t (n c) -> b n t c", n=self.heads) for z in mapped)
        logits = self.query_norm(q) @ self.key_norm(k).mT / q.shape[-1] ** 0.5
        if sees is not None:
            logits = logits.masked_fill(~sees, -torch.inf)
        return self.out(rearrange(self.drop(logits.softmax(-1)) @ v, "b n t c -> b t (n c)"))


def places(n: int, width: int) -> Float[Tensor, "n c"]:
    """Fixed positions: sines, then cosines, of the row's index at width / 2 rates from 1 down to nearly 1/10000."""
    if width % 2:
        raise UserError(f"width {width} holds no pairs of sine and cosine: give an even width")
    rates = 10_000 ** -(torch.arange(width // 2, dtype=torch.float64) / (width // 2))
    phase = torch.arange(n)[:, None] * rates
    return torch.cat((phase.sin(), phase.cos()), dim=-1).float()


def _xavier(part: nn.Module) -> None:
    for module in part.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _norm(width: int) -> nn.RMSNorm:
    return nn.RMSNorm(width, eps=1e-6)


def _gelu() -> nn.GELU:
    return nn.GELU("tanh")
