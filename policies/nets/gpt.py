"""BESO's score network (Reuss et al., RSS 2023): a causal transformer over noise level, goals, states and noisy actions."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from polyarm.policies.nets.transformer import Attention
from polyarm.spec import UserError


class DiffusionGpt(nn.Module):
    """Tokens: noise level, goals, s_1, a_1, s_2, a_2, ..., each of which sees itself and those before it; or all, without
    `causal`, so that the rows of a chunk agree on one of several ways to go.

    `cond` are `goals` rows of goals, then the states, `n_obs_steps` rows in all; one map reads both. Row i of the chunk
    and state i share a learned place. Published: as many rows as states. A longer chunk goes on without states.
    """

    before: Tensor | None

    def __init__(
        self,
        action_dim: int,
        horizon: int,
        n_obs_steps: int,
        cond_dim: int,
        *,
        goals: int,
        width: int,
        layers: int,
        heads: int,
        p_drop_attn: float,
        p_drop_resid: float,
        causal: bool,
    ) -> None:
        super().__init__()
        self.goals, self.states = goals, n_obs_steps - goals
        if width % heads:
            raise UserError(f"width {width} is no multiple of heads {heads}: choose a width that {heads} divides")
        if not 0 < self.states <= horizon:
            raise UserError(
                f"n_obs_steps={self.states} states for horizon={horizon} rows: give at least 1 and at most one a row"
            )
        self.clock = nn.Linear(1, width)
        self.seen = nn.Linear(cond_dim, width)
        self.rows = nn.Linear(action_dim, width)
        self.place = nn.Parameter(torch.empty(1, goals + horizon + 1, width))  # as published, the last is never used
        self.blocks = nn.ModuleList(_Block(width, heads, p_drop_attn, p_drop_resid) for _ in range(layers))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, action_dim))
        tokens = n_obs_steps + horizon + 1
        before = torch.ones(tokens, tokens, dtype=torch.bool).tril() if causal else None
        self.register_buffer("before", before, persistent=False)
        nn.init.normal_(self.place, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(
        self, x: Float[Tensor, "b h d"], clock: Float[Tensor, "b"], cond: Float[Tensor, "b o c"]
    ) -> Float[Tensor, "b h d"]:
        g, w = self.goals, self.states
        place = self.place[:, g:-1]
        goals, states = self.seen(cond).split((g, w), dim=1)
        states, rows = states + place[:, :w], self.rows(x) + place
        pairs = rearrange([states, rows[:, :w]], "two b w c -> b (w two) c")
        level = self.clock(clock[:, None, None] / 100)  # published nets count log(sigma) / 4, ours in percent
        y = torch.cat((level, goals + self.place[:, :g], pairs, rows[:, w:]), dim=1)
        for block in self.blocks:
            y = block(y, self.before)
        return self.head(torch.cat((y[:, g + 2 : g + 2 * w + 1 : 2], y[:, g + 2 * w + 1 :]), dim=1))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, p_drop_attn: float, p_drop_resid: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attend = Attention(width, heads, p_drop_attn)
        self.drop = nn.Dropout(p_drop_resid)
        self.feed = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(p_drop_resid)
        )  # fmt: skip

    def forward(self, x: Float[Tensor, "b t c"], sees: Tensor | None) -> Float[Tensor, "b t c"]:
        x = x + self.drop(self.attend(self.norm(x), None, sees))
        return x + self.feed(x)
