"""A scene as tokens that lie in space (3D Diffuser Actor, Ke et al. 2024, section 3.2): image features lifted by a point map,
told about the instruction, and looked at from where the gripper is and was."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate

from polyarm.policies.nets.actor import Layers, Scene
from polyarm.policies.nets.rotary import Turn, turn_at
from polyarm.spec import ObsSpace, Stream, UserError, unknown


class SceneEncoder(nn.Module):
    """`cameras` names the point map of each image; None where there is one of each. `image(stream, width=)` makes the maps'
    network, one for all cameras as published; `text(stream)` what has the instruction's tokens, where a stream of that kind is.

    `history`: rows of the gripper's position; of images and points the newest row is looked at. `choose(tokens, n)` says
    which n = tokens / `thin` the chunk thinks together with.
    """

    def __init__(
        self,
        obs_space: ObsSpace,
        history: int = 0,
        *,
        cameras: Mapping[str, str] | None,
        image: Callable[..., nn.Module],
        text: Callable[[Stream], Any] | None,
        width: int,
        heads: int,
        words_layers: int,
        gripper_layers: int,
        dropout: float,
        words_dropout: float,
        choose: Callable[[Tensor, int], Tensor],
        thin: int,
    ) -> None:
        super().__init__()
        if not history:
            raise UserError(
                "a scene's tokens are looked at by policy=actor3d alone: give another encoder, such as encoder=small"
            )
        self.cameras = _cameras(obs_space, cameras)
        self.width, self.choose, self.thin = width, choose, thin
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
        self.gripper = nn.Parameter(torch.randn(history, width))
        self.looked = Layers(width, heads, gripper_layers, dropout)

    def forward(
        self,
        obs: Mapping[str, Tensor],
        place: Callable[[Tensor], Tensor],
        gripper: Float[Tensor, "b g 3"],
    ) -> Scene:
        """`place`: points [b n 3] as they were seen -> coordinates; `gripper` is in coordinates already."""
        each = [self._lifted(obs[image][:, -1], obs[points][:, -1]) for image, points in self.cameras.items()]
        tokens, xyz = (torch.cat(parts, dim=1) for parts in zip(*each, strict=True))
        words = given = None
        if self.text is not None and self.words is not None and self.told is not None:
            found = self.text.tokens(obs[self.text_stream][:, -1])
            words, given = self.words(found.each), found.given
            tokens = self.told(tokens, words, given=given)
        at = turn_at(place(xyz), self.width)
        history = self.gripper.expand(len(tokens), -1, -1)
        looked = self.looked(history, tokens, turn_at(gripper, self.width), at)
        chosen = self.choose(tokens.detach(), max(tokens.shape[1] // self.thin, 1))[..., None]
        pick = lambda x: x.gather(1, chosen.expand(-1, -1, x.shape[-1]))
        return Scene(tokens, at, pick(tokens), Turn(pick(at.cos), pick(at.sin)), looked, words, given)

    def _lifted(self, image: Tensor, points: Tensor) -> tuple[Float[Tensor, "b n c"], Float[Tensor, "b n 3"]]:
        maps = self.image(image)
        where = interpolate(rearrange(points, "b h w c -> b c h w"), maps.shape[-2:], mode="bilinear")
        return rearrange(maps, "b c h w -> b (h w) c"), rearrange(where, "b c h w -> b (h w) c")


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
