"""Colour images, from scratch: the encoder of Diffusion Policy (Chi et al. 2023, arXiv 2303.04137), which is robomimic's
with group norms, and the pooled one of SeedPolicy (Gui et al. 2026, arXiv 2603.05117)."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from torch import Generator, Tensor, nn
from torch.nn.functional import interpolate
from torchvision.models import resnet18

from polyarm.spec import Stream, UserError

STRIDE = 32
"""Pixels a side that ResNet18 turns into one cell of its last map."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the red, green and blue of ImageNet's pixels in [0, 1]."""


class Keypoints(nn.Module):
    """crop -> a convolutional body -> spatial softmax to `keypoints` positions -> `features` numbers (None: the positions).

    `crop` is a fraction of both sides or (height, width) in pixels: a random window an image with a generator, the centre
    without. Nothing is pretrained. One encoder a camera. `body` gives `channels` maps of one cell for `stride` pixels.
    Raises UserError for a stream that is no colour image, and for a crop larger than it or of one cell only.
    """

    def __init__(
        self,
        stream: Stream,
        crop: float | Sequence[int],
        body: nn.Module,
        channels: int,
        stride: int,
        keypoints: int,
        features: int | None,
    ) -> None:
        super().__init__()
        taker = type(self).__name__
        self.crop = crop_size(stream, crop, taker)
        if min(self.crop) <= stride:
            raise UserError(
                f"images of stream {stream.name!r} are cropped to {self.crop[0]}x{self.crop[1]}, where keypoints need more "
                f"than {stride} pixels a side: choose a larger crop or larger images"
            )
        self.body = body
        self.keypoints = nn.Conv2d(channels, keypoints, 1)
        self.head = nn.Identity() if features is None else nn.Sequential(nn.Linear(2 * keypoints, features), nn.ReLU())
        self.width = 2 * keypoints if features is None else features

    def forward(self, x: UInt8[Tensor, "n h w 3"], generator: Generator | None = None) -> Float[Tensor, "n c"]:
        top, left = offsets(x, self.crop, generator)
        pixels = windows(x, top, left, self.crop).float().div_(127.5).sub_(1)
        return self.head(positions(self.keypoints(self.body(pixels)).float()).flatten(1))


class ResNetKeypoints(Keypoints):
    """`Keypoints` of ResNet18 without its pooling. Norms are group norms, as averaged weights need."""

    def __init__(
        self, stream: Stream, crop: float | Sequence[int], keypoints: int = 32, features: int | None = 64
    ) -> None:
        net = resnet18(weights=None, norm_layer=lambda channels: nn.GroupNorm(channels // 16, channels))
        body = nn.Sequential(*list(net.children())[:-2])
        super().__init__(stream, crop, body, net.fc.in_features, STRIDE, keypoints, features)


class ConvKeypoints(Keypoints):
    """`Keypoints` of a few convolutions, for a CPU (Levine et al. 2016, arXiv 1504.00702, has three): one that strides, then
    one of 3x3 for each further number of `channels`. 11 MMAC a picture of 84 px with stride 4 and three times 32 channels."""

    def __init__(
        self,
        stream: Stream,
        crop: float | Sequence[int],
        channels: Sequence[int],
        stride: int,
        keypoints: int,
        features: int | None,
    ) -> None:
        layers: list[nn.Module] = [nn.Conv2d(3, channels[0], 2 * stride, stride, stride // 2), nn.ReLU()]
        for fan_in, fan_out in pairwise(channels):
            layers += [nn.Conv2d(fan_in, fan_out, 3, padding=1), nn.ReLU()]
        super().__init__(stream, crop, nn.Sequential(*layers), channels[-1], stride, keypoints, features)


class ResNetPooled(nn.Module):
    """whole image -> short side of `short_side` pixels (None: as it is) -> ResNet18 and its average pool, 512 numbers.

    SeedPolicy's image encoder (section 4 of the published reference): pixels in [-1, 1], resized with antialiasing, never
    cropped; 32 groups a norm. `imagenet` then takes ImageNet's mean and deviation off the [-1, 1] pixels, as its U-Net
    variant does. Raises UserError for a stream that is no colour image, and for a side below one cell.
    """

    def __init__(self, stream: Stream, short_side: int | None, imagenet: bool) -> None:
        super().__init__()
        self.crop = height, width = crop_size(stream, 1.0, "ResNetPooled")
        small = min(height, width)
        side = small if short_side is None else short_side
        if side < STRIDE:
            raise UserError(
                f"images of stream {stream.name!r} would have a short side of {side} pixels: give short_side={STRIDE} or more"
            )
        self.size = side * height // small, side * width // small
        self.imagenet = imagenet
        self.net = resnet18(weights=None, norm_layer=lambda channels: nn.GroupNorm(32, channels))
        self.width = self.net.fc.in_features
        self.net.fc = nn.Identity()

    def forward(self, x: UInt8[Tensor, "n h w 3"], generator: Generator | None = None) -> Float[Tensor, "n c"]:
        pixels = rearrange(x, "n h w c -> n c h w").float() / 127.5 - 1
        if pixels.shape[2:] != self.size:
            pixels = interpolate(pixels, self.size, mode="bilinear", antialias=True, align_corners=False)
        return self.net(standard(pixels, IMAGENET_MEAN, IMAGENET_STD) if self.imagenet else pixels)


def standard(pixels: Float[Tensor, "n 3 h w"], mean: Sequence[float], std: Sequence[float]) -> Float[Tensor, "n 3 h w"]:
    """(pixels - mean) / std, colour by colour."""
    return (pixels - pixels.new_tensor(mean)[:, None, None]) / pixels.new_tensor(std)[:, None, None]


def offsets(
    x: UInt8[Tensor, "n h w 3"], crop: tuple[int, int], generator: Generator | None
) -> tuple[Int[Tensor, "n"], Int[Tensor, "n"]]:
    """Top and left of each image's window: uniform with a generator, central without."""
    n = x.shape[0]
    room = [size - part for size, part in zip(x.shape[1:3], crop, strict=True)]
    if generator is None:
        top, left = (torch.full((n,), r // 2, device=x.device) for r in room)
    else:
        # drawn where the generator lives: one from the CPU crops alike on every device
        draw = [torch.randint(r + 1, (n,), generator=generator, device=generator.device) for r in room]
        top, left = (d.to(x.device, non_blocking=True) for d in draw)
    return top, left


def windows(
    x: UInt8[Tensor, "n h w c"], top: Int[Tensor, "n"], left: Int[Tensor, "n"], size: tuple[int, int]
) -> UInt8[Tensor, "n c h1 w1"]:
    """Image i from (top_i, left_i) on, channels first."""
    every = x.unfold(1, size[0], 1).unfold(2, size[1], 1)  # a view: [n, tops, lefts, c, h1, w1]
    pixels = rearrange(every, "n t l c h w -> n t l h w c")[torch.arange(x.shape[0], device=x.device), top, left]
    return rearrange(pixels, "n h w c -> n c h w")  # in memory still channels last, as convolutions like them


def seen(
    encoder: nn.Module | None, x: UInt8[Tensor, "n h w 3"], generator: Generator | None = None
) -> UInt8[Tensor, "n h1 w1 3"]:
    """The pixels that an encoder takes of images: windows of its `crop` (height, width), resized to its `size` where it has
    one; as they are, of an encoder that names neither. At random with a generator, as in training; central without."""
    crop: tuple[int, int] = getattr(encoder, "crop", (x.shape[1], x.shape[2]))
    size = getattr(encoder, "size", crop)
    pixels = windows(x, *offsets(x, crop, generator), crop)
    if size != crop:
        fine = interpolate(pixels.float(), size, mode="bilinear", antialias=True, align_corners=False)
        pixels = fine.round().clamp(0, 255).byte()
    return rearrange(pixels, "n c h w -> n h w c")


def positions(logits: Float[Tensor, "n k h w"]) -> Float[Tensor, "n k 2"]:
    """Spatial softmax (Levine et al. 2016): the mean (x, y) of each map, -1 at the left and top edge, 1 at the right and bottom."""
    h, w = logits.shape[-2:]
    weight = rearrange(rearrange(logits, "n k h w -> n k (h w)").softmax(-1), "n k (h w) -> n k h w", h=h)
    # sums of products, not matrix products, which mixed precision would round to 8 bits
    x = (weight.sum(-2) * torch.linspace(-1, 1, w, device=logits.device)).sum(-1)
    y = (weight.sum(-1) * torch.linspace(-1, 1, h, device=logits.device)).sum(-1)
    return torch.stack((x, y), dim=-1)


def crop_size(stream: Stream, crop: float | Sequence[int], taker: str) -> tuple[int, int]:
    """(height, width) of a crop given as a fraction of both sides or in pixels. Raises UserError for a stream that is no
    colour image, naming who would take it, and for a crop larger than the image."""
    if len(stream.shape) != 3 or stream.shape[2] != 3:
        raise UserError(
            f"stream {stream.name!r} of kind {stream.kind} has shape {stream.shape}: "
            f"{taker} takes (height, width, 3), choose another encoder for it"
        )
    height, width, _ = stream.shape
    size = (crop[0], crop[1]) if isinstance(crop, Sequence) else (round(height * crop), round(width * crop))
    if size[0] > height or size[1] > width:
        raise UserError(
            f"crop {size} exceeds the {height}x{width} images of stream {stream.name!r}: choose a smaller crop"
        )
    return size
