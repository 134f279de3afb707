"""The image encoder against the published sizes (Diffusion Policy, section 3 of the published reference)."""

from functools import partial

import pytest
import torch
from torch import nn

from polyarm.encoders.fuse import Fuse
from polyarm.encoders.images import ResNetKeypoints
from polyarm.encoders.state import State
from polyarm.spec import ObsSpace, Scale, Stream


def camera(name="camera", height=96, width=96):
    return Stream(name, "image", (height, width, 3))


def state(name, width):
    return Stream(name, "state", (width,), tuple(f"{name}_{i}" for i in range(width)), scale=Scale.identity(width))


def meta(stream, **sizes):
    with torch.device("meta"):
        return ResNetKeypoints(stream, **sizes)


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_resnet_keypoints_has_the_published_parameters():
    """Mutations: keep the pooling's classifier, pretrained batch norms, a second linear map."""
    encoder = meta(camera())
    assert count(encoder.body) == 11_176_512
    assert count(encoder.keypoints) == 16_416
    assert count(encoder.head) == 4_160
    assert count(encoder) == 11_197_088


def test_every_norm_is_a_group_norm_of_16_channels():
    """Mutation: batch norm, whose running statistics averaged weights do not fit."""
    norms = [m for m in meta(camera()).modules() if isinstance(m, nn.GroupNorm | nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == 20
    assert {m.num_channels // m.num_groups for m in norms if isinstance(m, nn.GroupNorm)} == {16}


@pytest.mark.parametrize(
    ("image", "crop", "cropped", "cells"),
    [
        ((84, 84), 0.9, (76, 76), (3, 3)),
        ((96, 96), (84, 84), (84, 84), (3, 3)),
        ((240, 240), 0.9, (216, 216), (7, 7)),
        ((240, 320), 0.9, (216, 288), (7, 9)),
    ],
)
def test_crops_and_maps_are_the_published_ones(image, crop, cropped, cells):
    """Mutations: floor in place of round (84 -> 75), width before height, one stride less."""
    encoder = meta(camera("camera", *image), crop=crop)
    assert encoder.crop == cropped
    assert encoder.body(torch.empty(1, 3, *cropped, device="meta")).shape[2:] == cells


@pytest.mark.parametrize(
    ("cameras", "states", "width"), [(2, (3, 4, 2), 137), (1, (2,), 66), (4, (3, 4, 2, 3, 4, 2), 274)]
)
def test_features_are_as_wide_as_published(cameras, states, width):
    """Robomimic's lift, PushT, transport. Mutation: the 2 x 32 keypoints and the features both kept."""
    streams = [camera(f"camera_{i}") for i in range(cameras)] + [state(f"s{i}", n) for i, n in enumerate(states)]
    with torch.device("meta"):
        fuse = Fuse(ObsSpace(tuple(streams), 10.0), image=partial(ResNetKeypoints, crop=(84, 84)), state=State)
    assert fuse.width == width
    assert count(fuse) == cameras * 11_197_088
