"""Theorems of the image encoder: crops are windows, keypoints are coordinates."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polyarm.encoders.images import offsets, positions, windows
from polyarm.spec import Stream, UserError
from tests.from_yaml import ConvKeypoints, ResNetKeypoints

SIDES = st.integers(2, 9)
quick = settings(max_examples=30, deadline=None)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def images(n, height=40, width=44, seed=0):
    return torch.randint(0, 256, (n, height, width, 3), dtype=torch.uint8, generator=seeded(seed))


@pytest.fixture(scope="module", params=[ResNetKeypoints, ConvKeypoints], ids=["resnet", "conv"])
def encoder(request):
    torch.manual_seed(0)
    return request.param(Stream("camera", "image", (40, 44, 3)), crop=(36, 40), keypoints=4, features=8)


@quick
@given(h=SIDES, w=SIDES, data=st.data())
def test_keypoint_of_a_delta_is_its_coordinate(h, w, data):
    """Mutations: (y, x), grids over cells' edges, softmax over one axis."""
    row, column = data.draw(st.integers(0, h - 1)), data.draw(st.integers(0, w - 1))
    logits = torch.zeros(1, 1, h, w)
    logits[..., row, column] = 1e4
    want = torch.tensor([-1 + 2 * column / (w - 1), -1 + 2 * row / (h - 1)])
    torch.testing.assert_close(positions(logits)[0, 0], want)


@quick
@given(h=SIDES, w=SIDES, seed=st.integers(0, 99))
def test_shifting_a_map_moves_its_keypoint_by_a_cell(h, w, seed):
    """For mass away from the edges. Mutation: keypoints of the mean map, an average over images."""
    blob = torch.randn(2, 3, h, w, generator=seeded(seed))
    here, there = torch.full((2, 2, 3, h + 2, w + 3), -1e4)
    here[..., :h, :w] = blob
    there[..., 2:, 3:] = blob
    moved = positions(there) - positions(here)
    torch.testing.assert_close(moved, torch.tensor([6 / (w + 2), 4 / (h + 1)]).expand(2, 3, 2))


@quick
@given(h=SIDES, w=SIDES)
def test_keypoint_of_a_flat_map_is_the_centre(h, w):
    """Mutation: no softmax, grids on 0..1."""
    torch.testing.assert_close(positions(torch.full((1, 2, h, w), 7.0)), torch.zeros(1, 2, 2), atol=1e-6, rtol=0)


@quick
@given(h=SIDES, w=SIDES, data=st.data())
def test_every_crop_is_a_window_of_its_image(h, w, data):
    """Pixels tell their image, row and column. Mutations: rows and columns exchanged, one image's offset for all."""
    size = data.draw(st.integers(1, h)), data.draw(st.integers(1, w))
    i, row, column = torch.meshgrid(*(torch.arange(n, dtype=torch.uint8) for n in (5, h, w)), indexing="ij")
    x = torch.stack((i, row, column), dim=-1)
    top, left = offsets(x, size, seeded(data.draw(st.integers(0, 99))))
    got = windows(x, top, left, size).long()
    assert (got[:, 0] == torch.arange(5)[:, None, None]).all()
    assert (got[:, 1] == (top[:, None] + torch.arange(size[0]))[:, :, None]).all()
    assert (got[:, 2] == (left[:, None] + torch.arange(size[1]))[:, None, :]).all()


def test_random_windows_are_uniform_over_the_whole_room():
    """All 3 x 5 corners, each image its own. Mutations: the last offset left out, one draw for both sides."""
    top, left = offsets(torch.zeros(6000, 10, 12, 3, dtype=torch.uint8), (8, 8), seeded())
    counts = torch.bincount(top * 5 + left, minlength=15)
    assert len(counts) == 15
    assert (counts - 400).abs().max() < 5 * 400**0.5


def test_without_a_generator_the_crop_is_central():
    """Mutation: the top left corner."""
    top, left = offsets(torch.zeros(3, 96, 84, 3, dtype=torch.uint8), (84, 76), None)
    assert (top.tolist(), left.tolist()) == ([6] * 3, [4] * 3)


def test_features_are_a_function_of_the_generator(encoder):
    """Mutation: torch's global generator anywhere in the encoder."""
    x, before = images(3), torch.get_rng_state()
    first = encoder(x, seeded(1))
    assert torch.equal(encoder(x, seeded(1)), first)
    assert not torch.equal(encoder(x, seeded(2)), first)
    assert torch.equal(encoder(x), encoder(x))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_random_crop_is_what_the_centre_of_that_window_gives(encoder):
    """Only the window is seen. Mutation: augment after the crop, or see the border."""
    x = images(1)
    top, left = offsets(x, encoder.crop, seeded(3))
    alone = windows(x, top, left, encoder.crop).permute(0, 2, 3, 1)
    torch.testing.assert_close(encoder(alone), encoder(x, seeded(3)))


def test_pixels_enter_between_minus_one_and_one(encoder):
    """Section 2: scale 2, offset -1 of [0, 1]. Mutation: divide by 255 only."""
    seen = []
    hook = encoder.body.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    encoder(torch.tensor([0, 51, 255], dtype=torch.uint8).expand(1, 40, 44, 3))
    hook.remove()
    torch.testing.assert_close(seen[0].unique(), torch.tensor([-1.0, -0.6, 1.0]))
    torch.testing.assert_close(seen[0][0, :, 0, 0], torch.tensor([-1.0, -0.6, 1.0]))


def test_training_mode_and_neighbours_change_nothing(encoder):
    """Mutation: batch norm."""
    x = images(3)
    torch.testing.assert_close(encoder.train()(x), encoder.eval()(x[[2, 0, 1]])[[1, 2, 0]])


@pytest.mark.parametrize("stride", [2, 4])
def test_a_few_convolutions_keep_a_map_of_one_cell_for_a_stride(stride):
    """Mutation: no padding, a stride in every layer."""
    encoder = ConvKeypoints(Stream("camera", "image", (16, 24, 3)), crop=1.0, stride=stride, channels=[8, 8, 8, 4])
    assert encoder.body(torch.zeros(1, 3, 16, 24)).shape == (1, 4, 16 // stride, 24 // stride)


def test_without_a_head_the_features_are_the_keypoints():
    """Mutation: a width that stays that of the head."""
    encoder = ConvKeypoints(Stream("camera", "image", (40, 44, 3)), crop=1.0, keypoints=5, features=None)
    found = encoder(images(2))
    assert found.shape == (2, encoder.width) == (2, 10)
    assert (found.abs() <= 1).all()


def test_pixels_lie_channels_last_in_memory_as_convolutions_are_fastest():
    """Mutation: a copy to channels first."""
    x = images(3)
    got = windows(x, *offsets(x, (36, 40), seeded()), (36, 40))
    assert got.is_contiguous(memory_format=torch.channels_last)


def test_gradient_reaches_every_parameter(encoder):
    """Mutations: a detached body, keypoints that one cell determines."""
    encoder.zero_grad()
    encoder(images(4), seeded()).square().sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(
    ("shape", "crop", "message"),
    [
        ((96, 96, 3), (97, 84), r"crop \(97, 84\) exceeds the 96x96 images of stream 'camera': choose a smaller crop"),
        ((96, 96, 3), 1.5, r"crop \(144, 144\) exceeds"),
        ((64, 64, 3), 0.5, "cropped to 32x32, where keypoints need more than 32 pixels a side"),
        ((64, 64, 1), 0.9, r"has shape \(64, 64, 1\): ResNetKeypoints takes \(height, width, 3\)"),
    ],
)
def test_unfit_images_are_refused(shape, crop, message):
    with pytest.raises(UserError, match=message):
        ResNetKeypoints(Stream("camera", "image", shape), crop=crop)
