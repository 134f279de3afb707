"""Point clouds: the encoder of DP3 (Ze et al., "3D Diffusion Policy", RSS 2024, arXiv 2403.03954), farthest point sampling of
tensors, and augmentations of pictures with a point for each pixel, after which a pixel still has its own point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from polyarm.spec import Stream, UserError


class PointNet(nn.Module):
    """Each point through layers of these `widths`, each with a layer norm and a ReLU, then where `last` is given a bare linear map
    to so many numbers; the maximum over points; a linear map to `features` and a layer norm (None: the maximum itself).

    `colours`: look at all channels, not at x y z alone. With a generator, as in training, every cloud loses all but a share `keep`
    of its points, and coordinates are moved by normal noise of `noise_m`. Raises UserError for a stream that is no cloud, and for
    colours where there are none.
    """

    def __init__(
        self,
        stream: Stream,
        widths: Sequence[int],
        last: int | None,
        features: int | None,
        colours: bool,
        keep: float,
        noise_m: float,
    ) -> None:
        super().__init__()
        if stream.kind != "points" or len(stream.shape) != 2 or stream.shape[1] < 3:
            raise UserError(
                f"stream {stream.name!r} of kind {stream.kind} has shape {stream.shape}: PointNet takes points (n, channels), x y z "
                "first, choose another encoder for it"
            )
        if colours and stream.shape[1] < 6:
            raise UserError(
                f"points {stream.name!r} have {stream.shape[1]} channels and no colours: give colours=false, or clouds with them"
            )
        self.channels = stream.shape[1] if colours else 3
        self.keep = max(1, round(keep * stream.shape[0]))
        self.noise = [noise_m * abs(gain) for gain in (stream.scale.gain[:3] if stream.scale else (1.0, 1.0, 1.0))]
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise((self.channels, *widths)):
            layers += [nn.Linear(fan_in, fan_out), nn.LayerNorm(fan_out), nn.ReLU()]
        if last is not None:
            layers.append(nn.Linear(widths[-1], last))
        top = widths[-1] if last is None else last
        self.each = nn.Sequential(*layers)
        self.head = (
            nn.Identity() if features is None else nn.Sequential(nn.Linear(top, features), nn.LayerNorm(features))
        )
        self.width = top if features is None else features

    def forward(self, x: Float[Tensor, "n p c"], generator: Generator | None = None) -> Float[Tensor, "n f"]:
        x = x[..., : self.channels]
        if generator is not None:
            x = self._augmented(x, generator)
        return self.head(self.each(x).amax(1))

    def _augmented(self, x: Float[Tensor, "n p c"], generator: Generator) -> Float[Tensor, "n q c"]:
        where = generator.device
        if self.keep < x.shape[1]:  # the same ones of the whole batch: the order of a cloud's points says little
            x = x[:, torch.randperm(x.shape[1], generator=generator, device=where)[: self.keep].to(x.device)]
        if any(self.noise):
            noise = torch.randn((*x.shape[:2], 3), generator=generator, device=where).to(x) * x.new_tensor(self.noise)
            x = torch.cat((x[..., :3] + noise, x[..., 3:]), -1)
        return x


def farthest(x: Float[Tensor, "b p c"], n: int, start: int | Generator = 0) -> Int[Tensor, "b n"]:
    """`polyarm.cloud.farthest` of each of a batch, in whatever space x lies: each next one is the farthest from all before, of
    equals the first. `start` is the first one, or what draws it for each of the batch."""
    b, p = x.shape[:2]
    if not 1 <= n <= p:
        raise UserError(f"{n} farthest of {p} points: give a number from 1 to {p}")
    if isinstance(start, Generator):
        now = torch.randint(p, (b,), generator=start, device=start.device).to(x.device)
    elif 0 <= start < p:
        now = torch.full((b,), start, device=x.device)
    else:
        raise UserError(f"farthest points from point {start} of {p} on: count from 0")
    near = x.new_full((b, p), torch.inf)
    chosen, every = [], torch.arange(b, device=x.device)
    for _ in range(n):
        chosen.append(now)
        near = torch.minimum(near, (x - x[every, now][:, None]).square().sum(-1))
        now = near.argmax(1)
    return torch.stack(chosen, 1)


@dataclass(frozen=True)
class ZoomAndCrop:
    """Maps `[b v h w c]` of the same pixels (pictures, points, depth) at another size, cut to the size they had: 3D Diffuser Actor's
    augmentation. Of each of the batch one zoom is drawn from [low, high] and one window; what is too small is filled by reflection
    at the right and bottom. Pixels are the nearest ones, never a mean of two: a mean of two points is a point where nothing is."""

    low: float = 0.75
    high: float = 1.25

    def __call__(self, maps: Sequence[Tensor], generator: Generator) -> tuple[Tensor, ...]:
        b, _, *size = maps[0].shape[:4]
        zoom = self.low + (self.high - self.low) * _uniform(b, generator)
        taken = []
        for n in size:
            new = (n * zoom).long().clamp(min=1)
            offset = (_uniform(b, generator) * ((new - n).clamp(min=0) + 1)).long()
            at = offset[:, None] + torch.arange(n)
            taken.append(_reflected(at, new[:, None]) * n // new[:, None])
        return _pick(maps, *taken)


@dataclass(frozen=True)
class ZoomAboutCentre:
    """Maps `[b v h w c]` of the same pixels zoomed about their centre, a `share` of the batch, edges filled by reflection, nearest
    pixels: 3D FlowMatch Actor's affine augmentation. (It also resizes a crop of one in ten by at most 5 %, which is left out.)"""

    low: float = 0.75
    high: float = 1.25
    share: float = 0.8

    def __call__(self, maps: Sequence[Tensor], generator: Generator) -> tuple[Tensor, ...]:
        b, _, *size = maps[0].shape[:4]
        zoom = self.low + (self.high - self.low) * _uniform(b, generator)
        zoom = torch.where(_uniform(b, generator) < self.share, zoom, 1.0)
        taken = []
        for n in size:
            at = (torch.arange(n) + 0.5 - n / 2) / zoom[:, None] + n / 2
            taken.append(_reflected(at.floor().long(), torch.tensor(n)))
        return _pick(maps, *taken)


def _uniform(b: int, generator: Generator) -> Float[Tensor, "b"]:
    return torch.rand(b, generator=generator, device=generator.device, dtype=torch.float64).cpu()


def _reflected(at: Int[Tensor, "b n"], n: Tensor) -> Int[Tensor, "b n"]:
    """Pixel numbers beyond 0 .. n - 1 reflected at the outermost pixels."""
    period = (2 * n - 2).clamp(min=1)
    at = at % period
    return torch.minimum(at, period - at).clamp(min=0)


def _pick(maps: Sequence[Tensor], rows: Int[Tensor, "b h"], columns: Int[Tensor, "b w"]) -> tuple[Tensor, ...]:
    shapes = {tuple(m.shape[:4]) for m in maps}
    if len(shapes) > 1:
        raise UserError(f"maps of other pixels, {sorted(shapes)}: give pictures and points of one size [b v h w c]")
    batch = torch.arange(len(rows))[:, None, None]
    out = []
    for m in maps:
        last = rearrange(m, "b v h w c -> b h w v c")
        picked = last[batch.to(m.device), rows[:, :, None].to(m.device), columns[:, None].to(m.device)]
        out.append(rearrange(picked, "b h w v c -> b v h w c"))
    return tuple(out)
