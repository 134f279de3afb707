"""Colour images as maps of features that keep where things are: a trunk, then a feature pyramid (Lin et al. 2017)."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Protocol

from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Generator, Tensor, nn
from torch.nn.functional import interpolate
from torchvision.models import resnet18

from polyarm.spec import Stream, UserError


class Trunk(Protocol):
    """pixels in [-1, 1] [n 3 h w] -> maps, the finest first, of `channels`; a cell of map i is 2^(i + 1) pixels wide."""

    channels: Sequence[int]

    def __call__(self, pixels: Tensor) -> list[Tensor]: ...


class ResNetMaps(nn.Module):
    """The five maps of ResNet18, from scratch, with group norms, as averaged weights need."""

    channels = (64, 64, 128, 256, 512)

    def __init__(self) -> None:
        super().__init__()
        net = resnet18(weights=None, norm_layer=lambda channels: nn.GroupNorm(channels // 16, channels))
        stem = nn.Sequential(net.conv1, net.bn1, net.relu)
        self.parts = nn.ModuleList([stem, nn.Sequential(net.maxpool, net.layer1), net.layer2, net.layer3, net.layer4])

    def forward(self, pixels: Float[Tensor, "n 3 h w"]) -> list[Tensor]:
        return _one_after_another(self.parts, pixels)


class ConvMaps(nn.Module):
    """A few convolutions, each of which halves both sides, for a CPU."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.channels = tuple(channels)
        self.parts = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 5 if a == 3 else 3, 2, 2 if a == 3 else 1), nn.ReLU())
            for a, b in pairwise((3, *channels))
        )

    def forward(self, pixels: Float[Tensor, "n 3 h w"]) -> list[Tensor]:
        return _one_after_another(self.parts, pixels)


class Pyramid(nn.Module):
    """Maps of a trunk, from the coarsest up to cells of `stride` pixels, added where they lie: one map of `width` features.

    Of the published pyramid this is the one level that is looked at. Raises UserError for a stream that is no colour image,
    for a stride that the trunk has not, and for images smaller than its coarsest cell.
    """

    def __init__(self, stream: Stream, trunk: Callable[[], Trunk], width: int, stride: int) -> None:
        super().__init__()
        if stream.kind != "image":
            raise UserError(f"stream {stream.name!r} is of kind {stream.kind}: Pyramid takes images, give it one")
        self.trunk = trunk()
        strides = [2 ** (i + 1) for i in range(len(self.trunk.channels))]
        if stride not in strides:
            raise UserError(f"stride={stride} of a trunk with strides {strides}: give one of them")
        if min(stream.shape[:2]) < strides[-1]:
            raise UserError(
                f"images of stream {stream.name!r} are {stream.shape[0]}x{stream.shape[1]}, smaller than the {strides[-1]} pixels of the "
                "trunk's coarsest cell: give larger images, or a trunk with fewer maps"
            )
        self.level, self.width = strides.index(stride), width
        self.inner = nn.ModuleList(nn.Conv2d(c, width, 1) for c in self.trunk.channels[self.level :])
        self.outer = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: UInt8[Tensor, "n h w 3"], generator: Generator | None = None) -> Float[Tensor, "n c _ _"]:
        maps = self.trunk(rearrange(x, "n h w c -> n c h w").float() / 127.5 - 1)[self.level :]
        inner = [conv(each) for conv, each in zip(self.inner, maps, strict=True)]
        total = inner[-1]
        for finer in reversed(inner[:-1]):
            total = finer + interpolate(total, finer.shape[-2:], mode="nearest")
        return self.outer(total)


def _one_after_another(parts: nn.ModuleList, x: Tensor) -> list[Tensor]:
    maps = []
    for part in parts:
        x = part(x)
        maps.append(x)
    return maps
