"""What a policy that sees images saw of an observation: the pixels that its encoders take, in acting and in training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8
from torch import nn

from polyarm.encoders.fuse import Fuse
from polyarm.encoders.images import offsets, seen
from polyarm.eval.rollout import Worlds
from polyarm.policies.policy import Policy, leaves

WINDOWS = 3
"""Training crops that are shown of a picture."""


@dataclass(frozen=True)
class Seen:
    """One camera of one policy."""

    stream: str
    policy: str
    whole: UInt8[np.ndarray, "h w 3"]
    """As the world gives it."""
    acting: UInt8[np.ndarray, "h1 w1 3"]
    training: list[UInt8[np.ndarray, "h1 w1 3"]]
    """The same picture as training may see it; empty where that is as in acting."""
    box: tuple[int, int, int, int]
    """Top, left, height and width of what acting takes, in pixels of the whole."""
    said: bool
    """Whether the encoder names what it takes; otherwise the whole is shown."""


def image_streams(policy: Policy) -> list[str]:
    return [s.name for s in policy.obs_space.streams if s.kind == "image"]


def first(worlds: Worlds, seed: int) -> dict[str, np.ndarray]:
    """The first observation of an episode, {stream: [...]}; resets the first world for it."""
    mask = np.arange(worlds.num_envs) == 0
    obs, _ = worlds.reset(seed=[seed, *[None] * (worlds.num_envs - 1)], options={"reset_mask": mask})
    return {name: np.array(x[0]) for name, x in obs.items()}


def saw(policy: Policy, obs: Mapping[str, np.ndarray]) -> list[Seen]:
    """Every image stream of an observation {stream: [...]}, as each part of a policy takes it."""
    found = []
    for part in leaves(policy):
        encoders = _encoders(part)
        found += [_camera(name, part.name, obs[name], encoders.get(name)) for name in image_streams(part)]
    return found


def _camera(stream: str, policy: str, whole: np.ndarray, encoder: nn.Module | None) -> Seen:
    x = torch.from_numpy(whole)[None]
    acting = seen(encoder, x)[0].numpy()
    many = seen(encoder, x.expand(WINDOWS, -1, -1, -1), torch.Generator().manual_seed(0)).numpy()
    crop = getattr(encoder, "crop", whole.shape[:2])
    top, left = (int(at) for at in offsets(x, crop, None))
    alike = all(np.array_equal(one, acting) for one in many)
    return Seen(
        stream, policy, whole, acting, [] if alike else list(many), (top, left, *crop), hasattr(encoder, "crop")
    )


def _encoders(policy: object) -> dict[str, nn.Module]:
    """Of the streams of an observation, by name."""
    fuses = [m for m in policy.modules() if isinstance(m, Fuse)] if isinstance(policy, nn.Module) else []
    return {s.name: e for fuse in fuses for s, e in zip(fuse.obs_space.streams, fuse.encoders, strict=True)}
