"""CLIP's RN50 (Radford et al. 2021, arXiv 2103.00020) as five maps of frozen features, from a file of its weights."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polyarm.encoders.backbone import may_download
from polyarm.encoders.images import standard
from polyarm.spec import UserError

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of the pixels in [0, 1] that CLIP was trained on."""
LAYERS, STEM = (3, 4, 6, 3), 64


class ClipMaps(nn.Module):
    """Its residual network without the attention pool; 23,527,904 weights that are never trained.

    `weights`: a file of them, .safetensors or .pt (OpenAI's RN50.pt, or a state dictionary, of the whole of CLIP or of its visual
    part). A checkpoint holds them. `batch_statistics`: in training batch norms take the batch's statistics and run theirs on, as
    released; otherwise they keep those they came with. Raises UserError for a file that is not there or holds other weights.
    """

    channels = (64, 256, 512, 1024, 2048)

    def __init__(self, weights: str | None, batch_statistics: bool) -> None:
        super().__init__()
        half = STEM // 2
        self.conv1, self.bn1 = _conv(3, half, 3, 2), nn.BatchNorm2d(half)
        self.conv2, self.bn2 = _conv(half, half, 3), nn.BatchNorm2d(half)
        self.conv3, self.bn3 = _conv(half, STEM, 3), nn.BatchNorm2d(STEM)
        fan_in = STEM
        for i, layers in enumerate(LAYERS):
            width = STEM * 2**i
            blocks = [
                _Bottleneck(fan_in if j == 0 else 4 * width, width, 2 if i and j == 0 else 1) for j in range(layers)
            ]
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
            fan_in = 4 * width
        self.batch_statistics = batch_statistics
        if may_download():  # not where a checkpoint's own weights are about to be put here
            _fill(self, weights)
        self.requires_grad_(False).train()

    def forward(self, pixels: Float[Tensor, "n 3 h w"]) -> list[Tensor]:
        x = standard((pixels + 1) / 2, MEAN, STD)
        for i in (1, 2, 3):
            x = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x)).relu()
        maps, x = [x], nn.functional.avg_pool2d(x, 2)
        for i in range(len(LAYERS)):
            x = getattr(self, f"layer{i + 1}")(x)
            maps.append(x)
        return maps

    def train(self, mode: bool = True) -> ClipMaps:
        return super().train(mode and self.batch_statistics)


class _Bottleneck(nn.Module):
    """CLIP's: strides are average pools, before the last map and on the way past it. Names are those of its weights."""

    def __init__(self, fan_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(fan_in, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _conv(width, width, 3), nn.BatchNorm2d(width)
        self.avgpool = nn.AvgPool2d(stride)
        self.conv3, self.bn3 = _conv(width, 4 * width, 1), nn.BatchNorm2d(4 * width)
        self.downsample = None
        if stride > 1 or fan_in != 4 * width:
            past = [("-1", nn.AvgPool2d(stride)), ("0", _conv(fan_in, 4 * width, 1)), ("1", nn.BatchNorm2d(4 * width))]
            self.downsample = nn.Sequential(OrderedDict(past))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h1 w1"]:
        past = x if self.downsample is None else self.downsample(x)
        x = self.bn1(self.conv1(x)).relu()
        x = self.avgpool(self.bn2(self.conv2(x)).relu())
        return (self.bn3(self.conv3(x)) + past).relu()


def _conv(fan_in: int, fan_out: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(fan_in, fan_out, size, stride, size // 2, bias=False)


def _fill(net: ClipMaps, weights: str | None) -> None:
    if weights is None or not Path(weights).is_file():
        raise UserError(
            f"policy.encoder.image.trunk.weights={'null' if weights is None else weights}: give the file of CLIP's RN50, .pt or "
            ".safetensors, which is not downloaded; encoder=scene_resnet is trained from scratch"
        )
    found = _read(Path(weights))
    visual = {name.removeprefix("visual."): x for name, x in found.items() if name.startswith("visual.")} or found
    mine = net.state_dict()
    for name, x in mine.items():
        if name.endswith("num_batches_tracked"):
            continue
        if name not in visual or visual[name].shape != x.shape:
            told = "is not there" if name not in visual else f"has shape {tuple(visual[name].shape)}"
            raise UserError(f"{weights} holds no weights of CLIP's RN50, whose {name} {told}: give that model's file")
        mine[name] = visual[name].float()
    net.load_state_dict(mine)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        try:
            return dict(torch.jit.load(path, map_location="cpu").state_dict())
        except RuntimeError:  # a state dictionary, not OpenAI's archive
            found = torch.load(path, map_location="cpu", weights_only=True)
            return dict(found.get("state_dict", found))
    except Exception as e:  # whatever is wrong with a file of somebody's
        reason = str(e).strip().partition("\n")[0] or type(e).__name__
        raise UserError(f"{path} holds no weights ({reason}): give CLIP's RN50 as .pt or .safetensors") from e
