"""The image encoder against the published sizes (Diffusion Policy, section 3 of the published reference)."""

from functools import partial

import pytest
import torch
from torch import nn
from torchvision.transforms import v2

from polyarm.encoders.fuse import Fuse
from polyarm.encoders.state import State
from polyarm.spec import ObsSpace, Scale, Stream, UserError
from tests.from_yaml import ResNetKeypoints, ResNetPooled


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


@pytest.mark.parametrize(("image", "size"), [((240, 320), (76, 101)), ((320, 240), (101, 76)), ((96, 96), (76, 76))])
@pytest.mark.parametrize("imagenet", [False, True])
def test_pooled_images_are_scaled_and_resized_as_published(image, size, imagenet):
    """SeedPolicy, section 4 of the published reference: [-1, 1], the short side to 76 with antialiasing, then in the U-Net
    variant ImageNet's statistics. Mutations: no antialiasing, sizes rounded up, 320 taken for the short side, statistics
    of [0, 1] pixels."""
    encoder = ResNetPooled(camera("camera", *image), imagenet=imagenet)
    seen = []
    encoder.net.conv1.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    x = torch.randint(0, 256, (2, *image, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    encoder.eval()(x)
    steps = [v2.Normalize([0.5] * 3, [0.5] * 3), v2.Resize(76, antialias=True)]
    if imagenet:
        steps.append(v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    assert seen[0].shape[2:] == size
    torch.testing.assert_close(seen[0], v2.Compose(steps)(x.permute(0, 3, 1, 2) / 255), atol=2e-5, rtol=0)


def test_pooled_features_are_resnet18s_with_32_groups():
    """The published size 11,176,512 and the mean of the last map's 512 channels; nothing is cropped, whatever the
    generator. Mutations: groups of 16 channels, a classifier, spatial softmax."""
    encoder = ResNetPooled(camera("camera", 64, 80), short_side=None).eval()
    assert count(encoder) == 11_176_512 and encoder.width == 512
    assert {m.num_groups for m in encoder.modules() if isinstance(m, nn.GroupNorm)} == {32}
    maps = []
    encoder.net.layer4.register_forward_hook(lambda *found: maps.append(found[2]))
    x = torch.randint(0, 256, (2, 64, 80, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(encoder(x), maps[0].mean((2, 3)))
    assert torch.equal(encoder(x, torch.Generator().manual_seed(1)), encoder(x))


def test_pooled_images_below_a_cell_are_refused():
    with pytest.raises(UserError, match="would have a short side of 20 pixels: give short_side=32 or more"):
        ResNetPooled(camera(), short_side=20)
    with pytest.raises(UserError, match="ResNetPooled takes"):
        ResNetPooled(state("arm", 3))
