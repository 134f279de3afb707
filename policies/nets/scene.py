"""A scene as tokens that lie in space (3D Diffuser Actor, Ke et al. 2024, section 3.2): image features lifted by a point map,
told about the instruction, and looked at from where the gripper is and was."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.nn.functional import interpolate

from polyarm.policies.nets.actor import Layers, Scene
from polyarm.policies.nets.rotary import Turn, turn_at
from polyarm.spec import ObsSpace, Stream, UserError, unknown

RESIZE = {"nearest": "nearest-exact", "bilinear": "bilinear"}


class SceneEncoder(nn.Module):
    """`cameras` names the point map of each image; None where there is one of each. `image(stream, width=)` makes the maps'
    network, one for all cameras as published; `text(stream)` what has the instruction's tokens, where a stream of that kind is.

    `resize`: a token lies at its cell's middle pixel (nearest), or at the mean of the pixels next to that (bilinear, as
    published), which across an edge of depth is a point where nothing is. Where a pixel's depth is not known, nan, no token is.

    `places`: state streams whose channels `position` are a place, such as a goal that no camera sees: a token each, which the
    chunk thinks together with; None: all there are. What else such a stream has is told by its token. `gripper_state`: so
    it is with the gripper's own, such as its rotation; published: the gripper's position alone.

    `history`: rows of the gripper's position; of all else the newest row is looked at. `choose(tokens, n, known)` says which
    n = tokens / `thin` the chunk thinks together with. `augment(maps, generator)`: of a camera's pictures and points in training.
    """

    def __init__(
        self,
        obs_space: ObsSpace,
        history: int = 0,
        gripper: str = "",
        position: Sequence[str] = (),
        *,
        cameras: Mapping[str, str] | None,
        image: Callable[..., nn.Module],
        resize: str,
        text: Callable[[Stream], Any] | None,
        places: Sequence[str] | None,
        gripper_state: bool,
        width: int,
        heads: int,
        words_layers: int,
        gripper_layers: int,
        dropout: float,
        words_dropout: float,
        choose: Callable[..., Tensor],
        thin: int,
        augment: Callable[[Sequence[Tensor], Generator], tuple[Tensor, ...]] | None,
    ) -> None:
        super().__init__()
        if not history:
            raise UserError(
                "a scene's tokens are looked at by policy=actor3d alone: give another encoder, such as encoder=small"
            )
        if resize not in RESIZE:
            raise unknown("encoder.resize", resize, RESIZE)
        self.cameras = _cameras(obs_space, cameras)
        self.width, self.choose, self.thin, self.resize, self.augment = width, choose, thin, resize, augment
        self.image = image(obs_space[next(iter(self.cameras))], width=width)
        texts = [s for s in obs_space.streams if s.kind == "text"]
        if len(texts) > 1 or (texts and text is None):
            raise UserError(
                f"streams {', '.join(s.name for s in texts)} are instructions: give one of them, and what reads it as encoder.text"
            )
        self.text_stream = texts[0].name if texts else ""
        self.text = text(texts[0]) if text is not None and texts else None
        self.words = nn.Linear(self.text.token_width, width) if self.text is not None else None
        self.told = Layers(width, heads, words_layers, words_dropout, expand=4) if texts else None
        self.history, self.gripper = history, _Marks(obs_space[gripper], position, history, width, gripper_state)
        self.places = nn.ModuleDict(
            {
                name: _Marks(obs_space[name], position, 1, width, True)
                for name in _places(obs_space, gripper, position, places)
            }
        )
        self.looked = Layers(width, heads, gripper_layers, dropout)

    def forward(
        self, obs: Mapping[str, Tensor], place: Callable[[Tensor], Tensor], generator: Generator | None = None
    ) -> Scene:
        """`place`: points [b n 3] as they were seen -> coordinates."""
        each = [self._lifted(obs[image], obs[points], generator) for image, points in self.cameras.items()]
        pixels, xyz = (torch.cat(parts, dim=1) for parts in zip(*each, strict=True))
        known = xyz.isfinite().all(-1)
        if not known.any(-1).all():
            raise UserError(
                f"no token of {', '.join(self.cameras.values())} has a known place: look where the camera measures depth, or crop less"
            )
        marks = [marks(obs[name][:, -1:]) for name, marks in self.places.items()]
        tokens = torch.cat((pixels, *(token for token, _ in marks)), dim=1)
        where = torch.cat((xyz.where(known[..., None], 0), *(at for _, at in marks)), dim=1)
        words = given = None
        if self.text is not None and self.words is not None and self.told is not None:
            found = self.text.tokens(obs[self.text_stream][:, -1])
            words, given = self.words(found.each), found.given
            tokens = self.told(tokens, words, given=given)
        n, marked = pixels.shape[1], len(marks)
        keep = max(n // self.thin, 1)
        at, sure = turn_at(place(where), self.width), None if known.all() else known
        chosen = self.choose(tokens[:, :n].detach(), keep, sure)
        always = torch.arange(n, n + marked, device=chosen.device).expand(len(chosen), -1)
        chosen = torch.cat((chosen, always), dim=1)[..., None]
        pick = lambda x: x.gather(1, chosen.expand(-1, -1, x.shape[-1]))
        sure = None if sure is None else nn.functional.pad(sure, (0, marked), value=True)
        history, behind = self.gripper(obs[self.gripper.stream][:, -self.history :])
        looked = self.looked(history, tokens, turn_at(place(behind), self.width), at, given=sure)
        few_sure = None if sure is None else sure.gather(1, chosen[..., 0])
        few_at = Turn(pick(at.cos), pick(at.sin))
        return Scene(tokens, at, pick(tokens), few_at, looked, words, given, sure, few_sure)

    def _lifted(
        self, image: Tensor, points: Tensor, generator: Generator | None
    ) -> tuple[Float[Tensor, "b n c"], Float[Tensor, "b n 3"]]:
        image, points = image[:, -1:], points[:, -1:]
        if self.augment is not None and generator is not None:
            image, points = self.augment((image, points), generator)
        maps = self.image(image[:, 0])
        where = interpolate(rearrange(points[:, 0], "b h w c -> b c h w"), maps.shape[-2:], mode=RESIZE[self.resize])
        return rearrange(maps, "b c h w -> b (h w) c"), rearrange(where, "b c h w -> b (h w) c")


class _Marks(nn.Module):
    """Rows of a state stream as learnt tokens, one a row, with what the stream has beside a position told where `told`."""

    def __init__(self, stream: Stream, position: Sequence[str], rows: int, width: int, told: bool) -> None:
        super().__init__()
        for name in position:
            if name not in stream.names:
                raise unknown(f"channel of stream {stream.name!r}, where that is,", name, stream.names)
        self.stream, self.scale = stream.name, stream.scale
        self.at = [stream.names.index(name) for name in position]
        self.rest = [i for i in range(stream.shape[0]) if i not in self.at] if told else []
        self.tokens = nn.Parameter(torch.randn(rows, width))
        self.state = nn.Linear(len(self.rest), width) if self.rest else None

    def forward(self, x: Float[Tensor, "b r d"]) -> tuple[Float[Tensor, "b r c"], Float[Tensor, "b r 3"]]:
        tokens = self.tokens.expand(len(x), -1, -1)
        if self.state is not None:
            scaled = x if self.scale is None else self.scale.do(x)
            tokens = tokens + self.state(scaled[..., self.rest])
        return tokens, x[..., self.at]


def _places(space: ObsSpace, gripper: str, position: Sequence[str], places: Sequence[str] | None) -> list[str]:
    lie = [s.name for s in space.streams if s.kind == "state" and s.name != gripper and set(position) <= set(s.names)]
    for name in places or ():
        if name not in lie:
            raise unknown(f"stream with channels {', '.join(position)} in encoder.places", name, lie)
    return lie if places is None else list(places)


def _cameras(space: ObsSpace, cameras: Mapping[str, str] | None) -> dict[str, str]:
    """{image stream: its point map}, which must be of one size."""
    images, maps = ([s.name for s in space.streams if s.kind == kind] for kind in ("image", "points"))
    if cameras is None:
        if len(images) != 1 or len(maps) != 1:
            raise UserError(
                f"images {', '.join(images) or 'none'} and point maps {', '.join(maps) or 'none'}: name the point map of each image "
                "as encoder.cameras={image: points}, or see one of each"
            )
        cameras = {images[0]: maps[0]}
    for image, points in cameras.items():
        for kind, name, known in (("image", image, images), ("points", points, maps)):
            if name not in known:
                raise unknown(f"stream of kind {kind}", name, known)
        if space[points].shape != space[image].shape:
            raise UserError(
                f"point map {points!r} is {space[points].shape}, image {image!r} {space[image].shape}: give every pixel its point, [h, w, 3]"
            )
    return dict(cameras)
