"""Colour images through any network of `timm`, by name, trained from scratch or not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Generator, Tensor, nn
from torch.nn.functional import interpolate

from polyarm.encoders.images import crop_size, offsets, standard, windows
from polyarm.spec import Stream, UserError, unknown

_BARE = ContextVar("_BARE", default=False)


@contextmanager
def without_pretrained() -> Iterator[None]:
    """Inside, networks are built without looking for pretrained weights, and nothing is downloaded: a checkpoint's own are
    about to replace them, and whose it is may not be known."""
    token = _BARE.set(True)
    try:
        yield
    finally:
        _BARE.reset(token)


def may_download() -> bool:
    """Whether a network is built at the user's own word, not at a checkpoint's."""
    return not _BARE.get()


class Backbone(nn.Module):
    """crop -> the pooled features of timm's network `name` -> `features` numbers (None: the pooled ones as they are).

    `pretrained`: false; true for the weights that timm names, which are downloaded once; or a file of them. `crop` as in
    `ResNetKeypoints`; a network that takes one size only gets the crop resized to it. Pixels are standardised as the
    network was trained with. `frozen` keeps the network as it is and trains what follows.

    `group_norm` puts group norms of 16 channels in place of batch norms, keeping their gains. Averaged weights need that:
    an average of weights has no running statistics that fit it, and batches of neighbouring frames no statistics worth
    running. Without it batch norms keep the statistics they came with, in training as well.

    Raises UserError for an unknown name, a missing package, missing weights, and images that do not fit.
    """

    def __init__(
        self,
        stream: Stream,
        name: str,
        pretrained: bool | str,
        crop: float | Sequence[int],
        features: int | None,
        frozen: bool,
        group_norm: bool,
    ) -> None:
        super().__init__()
        self.crop = crop_size(stream, crop, "Backbone")
        self.net = _network(name, pretrained)
        _require_sense(name, self.net, pretrained, frozen, group_norm)
        config = _data_config(self.net)
        self.size = tuple(config["input_size"][1:]) if self.net.pretrained_cfg.get("fixed_input_size") else self.crop
        self.mean, self.std = config["mean"], config["std"]
        if group_norm and not frozen:
            self.net = _with_group_norms(self.net)
        self.frozen = frozen
        self.net.requires_grad_(not frozen)
        pooled = getattr(self.net, "head_hidden_size", None) or self.net.num_features
        self.head = nn.Identity() if features is None else nn.Sequential(nn.Linear(pooled, features), nn.ReLU())
        self.width = pooled if features is None else features
        self.train()

    def forward(self, x: UInt8[Tensor, "n h w 3"], generator: Generator | None = None) -> Float[Tensor, "n c"]:
        return self.head(self.pooled(x, generator))

    def pooled(self, x: UInt8[Tensor, "n h w 3"], generator: Generator | None = None) -> Float[Tensor, "n c"]:
        """What timm's network makes of it, before the head."""
        top, left = offsets(x, self.crop, generator)
        pixels = windows(x, top, left, self.crop).float() / 255
        if self.size != self.crop:
            pixels = interpolate(pixels, self.size, mode="bilinear", antialias=True, align_corners=False)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self.net(standard(pixels, self.mean, self.std))

    def train(self, mode: bool = True) -> Backbone:
        super().train(mode)
        if self.frozen:
            self.net.eval()
        for module in self.net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


def _network(name: str, pretrained: bool | str) -> Any:
    try:
        import timm
    except ImportError as e:
        raise UserError(f"encoder {name!r} needs timm: install it with pip install 'polyarm[vision]'") from e
    plain = name.partition(".")[0]  # "resnet18.a1_in1k": the part behind the dot names weights
    if not timm.is_model(plain):
        raise unknown("timm network", name, timm.list_models())
    wanted: dict[str, Any] = {}
    if pretrained and may_download():
        wanted["pretrained"] = True
        if isinstance(pretrained, str):
            if not Path(pretrained).is_file():
                raise UserError(f"the weights {pretrained} of {name!r} do not exist: give a file, or true, or false")
            wanted["pretrained_cfg_overlay"] = {"file": pretrained}
    try:
        return timm.create_model(name, num_classes=0, **wanted)
    except Exception as e:  # whatever a hub, a file or a network's constructor may raise
        reason = str(e).strip().partition("\n")[0] or type(e).__name__
        if not wanted:
            raise UserError(f"timm makes no {name!r} ({reason}): give one of timm.list_models()") from e
        raise UserError(
            f"no pretrained weights of {name!r} from {pretrained if isinstance(pretrained, str) else 'the hub'} ({reason}): "
            "connect once, name a file of them, or give pretrained=false"
        ) from e


def _require_sense(name: str, net: nn.Module, pretrained: bool | str, frozen: bool, group_norm: bool) -> None:
    if pretrained:
        return
    if frozen:
        raise UserError(
            f"{name!r} frozen without pretrained weights would never see anything: give pretrained, or frozen=false"
        )
    if not group_norm and any(isinstance(m, nn.BatchNorm2d) for m in net.modules()):
        raise UserError(
            f"{name!r} has batch norms that never saw an image: give group_norm=true, or pretrained weights"
        )


def _data_config(net: Any) -> dict[str, Any]:
    from timm.data import resolve_model_data_config

    return resolve_model_data_config(net)


def _with_group_norms(net: nn.Module) -> nn.Module:
    """Every batch norm replaced, with what timm may have fused into it (an activation, a dropout) behind it."""
    if isinstance(net, nn.BatchNorm2d):
        norm: nn.Module = nn.GroupNorm(_groups(net.num_features), net.num_features, net.eps, net.affine)
        if net.affine:
            norm.load_state_dict({"weight": net.weight, "bias": net.bias})
        after = [getattr(net, part) for part in ("drop", "act") if hasattr(net, part)]
        return nn.Sequential(norm, *after) if after else norm
    for name, child in net.named_children():
        setattr(net, name, _with_group_norms(child))
    return net


def _groups(channels: int) -> int:
    """Of 16 channels, or a little more where 16 do not divide them."""
    return max(g for g in range(1, max(channels // 16, 1) + 1) if channels % g == 0)
