"""3D Diffuser Actor's denoiser (Ke et al. 2024, arXiv 2402.10885): noisy poses are tokens that lie in the scene they look at.

Rows of the chunk read the instruction, look at all tokens of the scene, then think together with a part of them in shared
layers and in one branch for the rotation, one for position and opening.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from polyarm.policies.nets.clock import sinusoidal
from polyarm.policies.nets.rotary import Attend, Feed, Kept, Turn, turn_at


class Scene(NamedTuple):
    """What was seen, as tokens and where they lie."""

    tokens: Float[Tensor, "b n c"]
    at: Turn
    few: Float[Tensor, "b m c"]
    """Those of `tokens` that the chunk thinks together with."""
    few_at: Turn
    gripper: Float[Tensor, "b g c"]
    """The gripper now and before."""
    words: Float[Tensor, "b w c"] | None = None
    given: Bool[Tensor, "b w"] | None = None
    """False where an instruction has ended."""
    known: Bool[Tensor, "b n"] | None = None
    """False where it is not known where a token lies, and none attends to it; None: all are known."""
    few_known: Bool[Tensor, "b m"] | None = None
    kept: tuple[Kept, ...] = ()
    """What each layer of the head that looks at the scene asks of it, where the head has made that already."""


class Answer(NamedTuple):
    """What the denoiser predicts of each row."""

    position: Float[Tensor, "b h 3"]
    rotation: Float[Tensor, "b h r"]
    opening: Float[Tensor, "b h o"]
    """Logits."""


class Layers(nn.Module):
    """Attention and a feed-forward map as wide as the tokens (`expand` times), over and over. The first `words` layers read
    the instruction before."""

    def __init__(
        self,
        width: int,
        heads: int,
        layers: int,
        dropout: float,
        *,
        expand: int = 1,
        adaptive: bool = False,
        whole: bool = False,
        words: int = 0,
    ) -> None:
        super().__init__()
        self.words = nn.ModuleList(Attend(width, heads, dropout, adaptive) for _ in range(words))
        self.attend = nn.ModuleList(Attend(width, heads, dropout, adaptive, whole) for _ in range(layers))
        self.feed = nn.ModuleList(Feed(width, expand * width, dropout, adaptive) for _ in range(layers))

    def forward(
        self,
        x: Float[Tensor, "b t c"],
        memory: Float[Tensor, "b s c"] | None = None,
        at: Turn | None = None,
        memory_at: Turn | None = None,
        signal: Float[Tensor, "b c"] | None = None,
        given: Bool[Tensor, "b s"] | None = None,
        scene: Scene | None = None,
        kept: Sequence[Kept] = (),
    ) -> Float[Tensor, "b t c"]:
        """`scene` has the instruction for the layers that read it; `kept` is the memory of each layer, where it was made."""
        for i, (attend, feed) in enumerate(zip(self.attend, self.feed, strict=True)):
            if i < len(self.words) and scene is not None:
                x = self.words[i](x, scene.words, signal=signal, given=scene.given)
            x = feed(attend(x, kept[i] if kept else memory, at, memory_at, signal, given), signal)
        return x

    def keep(self, memory: Float[Tensor, "b s c"], at: Turn) -> tuple[Kept, ...]:
        """What each layer asks of a memory that stays the same."""
        return tuple(attend.attention.keep(memory, at) for attend in self.attend)  # type: ignore[union-attr,operator]


class ActorHead(nn.Module):
    """`rotation` and `opening` are the widths of those parts of a row, `history` the gripper tokens.

    `words`: whether there is an instruction, which the rows read once; `words_feed`: followed by a feed-forward map, as in
    the successor. `shared_words`, `branch_words`: how many of the shared and of a branch's layers read it again, as published
    for CALVIN. `whole`: queries, keys and values are modulated where tokens attend to themselves; published: queries.
    """

    def __init__(
        self,
        rotation: int,
        opening: int,
        history: int,
        *,
        width: int,
        heads: int,
        cross_layers: int,
        shared_layers: int,
        branch_layers: int,
        dropout: float,
        words_dropout: float,
        words: bool,
        words_feed: bool,
        shared_words: int,
        branch_words: int,
        whole: bool,
    ) -> None:
        super().__init__()
        self.width = width
        self.rows = nn.Linear(3 + rotation, width)
        self.waves = sinusoidal(width)
        self.clock = _two_maps(width, width, width)
        self.gripper = _two_maps(history * width, width, width)
        self.read = Attend(width, heads, words_dropout) if words else None
        self.read_feed = Feed(width, 4 * width, words_dropout) if words and words_feed else None
        self.look = Layers(width, heads, cross_layers, dropout, adaptive=True)
        again = (shared_words, branch_words) if words else (0, 0)
        self.shared = Layers(width, heads, shared_layers, dropout, adaptive=True, whole=whole, words=again[0])
        branch = lambda: Layers(width, heads, branch_layers, dropout, adaptive=True, whole=whole, words=again[1])
        self.turning, self.moving = branch() if rotation else None, branch()
        self.rotation = _branch_end(width, rotation) if rotation else None
        self.position_features = nn.Linear(width, width)
        self.position = _two_maps(width, width, 3)
        self.opening = _two_maps(width, width, opening) if opening else None

    def keep(self, scene: Scene) -> Scene:
        """The scene with what denoising asks of it at every step made once."""
        return scene._replace(kept=self.look.keep(scene.tokens, scene.at))

    def forward(
        self, rows: Float[Tensor, "b h r"], xyz: Float[Tensor, "b h 3"], clock: Float[Tensor, "b"], scene: Scene
    ) -> Answer:
        """`rows`: noisy positions and rotations in the network's units; `xyz`: where they lie, in the scene's coordinates."""
        h = rows.shape[1]
        place = self.waves(torch.arange(h, device=rows.device, dtype=rows.dtype))
        x = self.rows(rows)
        if self.read is not None:
            x = self.read(x, scene.words, given=scene.given, place=place)
            x = x if self.read_feed is None else self.read_feed(x)
        signal = self.clock(self.waves(clock)) + self.gripper(scene.gripper.flatten(1))
        at = turn_at(xyz, self.width)
        x = self.look(x + place, scene.tokens, at, scene.at, signal, scene.known, kept=scene.kept)
        x = torch.cat((x, scene.few), dim=1)
        at = Turn(torch.cat((at.cos, scene.few_at.cos), dim=1), torch.cat((at.sin, scene.few_at.sin), dim=1))
        known = None if scene.few_known is None else nn.functional.pad(scene.few_known, (h, 0), value=True)
        think: dict[str, Any] = {"at": at, "signal": signal, "given": known, "scene": scene}
        x = self.shared(x, **think)
        moved = self.position_features(self.moving(x, **think)[:, :h])
        none = moved[..., :0]
        rotation, opening = none, none if self.opening is None else self.opening(moved)
        if self.turning is not None and self.rotation is not None:
            rotation = self.rotation(self.turning(x, **think)[:, :h])
        return Answer(self.position(moved), rotation, opening)


@torch.no_grad()
def farthest(
    features: Float[Tensor, "b n c"], keep: int, known: Bool[Tensor, "b n"] | None = None
) -> Int[Tensor, "b k"]:
    """Which tokens to keep, published: the first, then always the one farthest from those kept, in the space of features;
    those that are not `known` last."""
    x = features.double()
    rows = torch.arange(len(x), device=x.device)
    chosen = torch.zeros(len(x), keep, dtype=torch.long, device=x.device)
    nearest = x.new_full(x.shape[:2], torch.inf)
    if known is not None:
        nearest[~known] = -1
        chosen[:, 0] = known.to(torch.uint8).argmax(-1)
    for i in range(1, keep):
        nearest = torch.minimum(nearest, (x - x[rows, chosen[:, i - 1]][:, None]).square().sum(-1))
        chosen[:, i] = nearest.argmax(-1)
    return chosen


@torch.no_grad()
def sparsest(
    features: Float[Tensor, "b n c"], keep: int, known: Bool[Tensor, "b n"] | None = None, neighbours: int = 8
) -> Int[Tensor, "b k"]:
    """Which tokens to keep, in the successor: those with the largest mean distance to their nearest `neighbours`, themselves
    among these, in the space of features; the loneliest first, those that are not `known` last."""
    x = features.float()
    x = x - x.mean(1, keepdim=True)  # distances come of a product, which is exact near 0 alone
    apart = torch.cdist(x, x, compute_mode="use_mm_for_euclid_dist")
    if known is None:
        return apart.topk(min(neighbours, x.shape[1]), largest=False).values.mean(-1).topk(keep).indices
    near = apart.masked_fill(~known[:, None], torch.nan).topk(min(neighbours, x.shape[1]), largest=False).values
    return near.nanmean(-1).masked_fill(~known, -1).topk(keep).indices


def _two_maps(fan_in: int, hidden: int, fan_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(fan_in, hidden), nn.ReLU(), nn.Linear(hidden, fan_out))


def _branch_end(width: int, fan_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), _two_maps(width, width, fan_out))
