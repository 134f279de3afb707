"""Features of frozen networks, computed once for all demonstrations instead of at every training step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from polyarm.encoders.fuse import Fuse
from polyarm.progress import Bar
from polyarm.spec import UserError

BATCH = 64


def frozen_features(
    policy: nn.Module, rows: Mapping[str, Any], show: bool = True
) -> dict[str, Float[np.ndarray, "N c"]]:
    """{stream: features of all its rows} for every stream whose encoder is frozen. Pictures are cropped at their centre, for a
    random crop would be another picture at every step.

    `rows`: {stream: uint8 [N h w 3]}, on disk or in memory. Raises UserError for a policy without a frozen encoder.
    """
    found: dict[str, np.ndarray] = {}
    for fuse in (m for m in policy.modules() if isinstance(m, Fuse)):
        for name, encoder in fuse.frozen():
            if name not in found:
                found[name] = _features(encoder, rows[name], f"features of {name}", show)
    if not found:
        raise UserError(
            "data.cache_features=true, but no encoder of this policy is frozen: give encoder=timm "
            "policy.encoder.image.pretrained=true policy.encoder.image.frozen=true, or data.cache_features=false"
        )
    return found


@torch.inference_mode()
def _features(encoder: Any, rows: Any, title: str, show: bool) -> np.ndarray:
    device = next(encoder.parameters()).device
    out: np.ndarray | None = None
    with Bar(title, len(rows), show=show) as bar:
        for i in range(0, len(rows), BATCH):
            x = encoder.pooled(torch.from_numpy(np.asarray(rows[i : i + BATCH])).to(device)).float().cpu().numpy()
            out = np.empty((len(rows), x.shape[1]), "f4") if out is None else out
            out[i : i + len(x)] = x
            bar.at(i + len(x))
    assert out is not None  # no store without rows is trained on
    return out
