"""Theorems of the point encoder, of farthest points in tensors, and of augmentations after which a pixel has its own point.

Mutations that turn it red: a mean in place of the maximum; a norm over points; colours seen where they were left out; noise on
colours, or not in metres; augmentation without a generator; rows and columns exchanged; a window of pictures and another of points;
bilinear points; the last of equals.
"""

from functools import partial

import pytest
import torch

from polyarm.cloud import farthest as farthest_of_arrays
from polyarm.encoders.fuse import Fuse
from polyarm.encoders.points import ZoomAboutCentre, ZoomAndCrop, farthest
from polyarm.policies.nets.actor import farthest as farthest_of_tokens
from polyarm.spec import FRAMES, ObsSpace, Scale, Stream, UserError
from polyarm.streams import points
from tests.from_yaml import ColourPointNet, PointNet


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("make", "c"), [(PointNet, 3), (PointNet, 6), (ColourPointNet, 6)])
def test_the_order_of_points_and_their_copies_say_nothing(make, c):
    encoder, x = make(points("cloud", 20, c == 6)), drawn(4, 20, c)
    want = encoder(x)
    assert torch.equal(encoder(x[:, torch.randperm(20, generator=seeded())]), want)
    assert torch.equal(encoder(torch.cat((x, x[:, :7], x[:, 3:4].expand(-1, 30, -1)), 1)), want)
    assert not torch.allclose(encoder(x[:, 1:]), want)  # though a point says something


def test_colours_are_seen_where_they_are_asked_for():
    x = drawn(4, 20, 6)
    other = torch.cat((x[..., :3], drawn(4, 20, 3, seed=1)), -1)
    bare, coloured = PointNet(points("cloud", 20, True)), ColourPointNet(points("cloud", 20, True))
    assert torch.equal(bare(x), bare(other)) and not torch.allclose(coloured(x), coloured(other))


def test_training_drops_and_moves_points_and_acting_does_not():
    """Noise is in metres whatever the scale, and never on colours."""
    gain = (4.0, 0.5, -2.0, 1.0, 1.0, 1.0)
    stream = points("cloud", 5000, True)
    stream = Stream(stream.name, "points", stream.shape, stream.names, stream.units, scale=Scale(gain, (0.0,) * 6))
    encoder, x = ColourPointNet(stream, keep=0.5, noise_m=0.01), torch.zeros(2, 5000, 6)
    seen = []
    encoder.each.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        encoder(x), encoder(x, seeded())
    assert torch.equal(seen[0], x) and seen[1].shape == (2, 2500, 6) and not seen[1][..., 3:].any()
    assert seen[1][..., :3].std((0, 1)).tolist() == pytest.approx([0.04, 0.005, 0.02], rel=0.1)
    kept = torch.arange(5000.0)[None, :, None].expand(1, 5000, 6)
    with torch.no_grad():
        other = PointNet(points("c", 5000, True), keep=0.5)
        other.each.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        other(kept, seeded())
    assert len(seen[-1][0, :, 0].unique()) == 2500  # different ones


def test_a_marked_point_keeps_its_colours():
    """Mutation: other points of the places than of the colours."""
    encoder, number = ColourPointNet(points("cloud", 60, True), keep=0.5, noise_m=0.001), torch.arange(60.0)
    seen = []
    encoder.each.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        encoder(number[None, :, None] * torch.tensor([1.0, -1, 2, 1, 2, 3]), seeded())
    place, colour = seen[0][0, :, :3], seen[0][0, :, 3:]
    assert len(place) == 30 and torch.equal(colour, colour[:, :1] * torch.tensor([1.0, 2, 3]))
    assert torch.allclose(place, colour[:, :1] * torch.tensor([1.0, -1, 2]), atol=0.01, rtol=0)


def test_clouds_are_scaled_by_channel_and_a_frame_is_encoded_once():
    stream = points("cloud", 8)
    stream = Stream(
        "cloud", "points", stream.shape, stream.names, stream.units, scale=Scale((2.0, 3.0, 4.0), (1.0, 0.0, -1.0))
    )
    fuse, x = Fuse(ObsSpace((stream,), 10.0), points=PointNet), drawn(2, 2, 8, 3)
    x[1, 0] = x[0, 1]
    seen = []
    fuse.encoders[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    want = fuse({"cloud": x})
    assert torch.equal(seen[0], stream.scale.do(x.flatten(0, 1)))
    got = fuse({"cloud": x, FRAMES: torch.tensor([[4, 5], [5, 6]])})
    assert [len(s) for s in seen] == [4, 3]
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize(
    ("make", "stream", "said"),
    [
        (PointNet, Stream("q", "state", (3,), ("a", "b", "c")), "PointNet takes points"),
        (PointNet, Stream("flat", "points", (30,)), r"shape \(30,\): PointNet takes points"),
        (ColourPointNet, points("cloud", 8), "3 channels and no colours"),
        (partial(Fuse, points=PointNet), ObsSpace((points("cloud", 8),), 10.0), "'cloud' has no scale"),
    ],
)
def test_what_is_no_cloud_is_refused(make, stream, said):
    with pytest.raises(UserError, match=said):
        make(stream)


def test_clouds_without_channel_names_stay_as_they_are():
    """As older demonstrations have them."""
    fuse, x = Fuse(ObsSpace((Stream("cloud", "points", (8, 3)),), 10.0), points=PointNet), drawn(1, 1, 8, 3)
    assert torch.equal(fuse({"cloud": x})[0], fuse.encoders[0](x[0]))


def test_tensors_farthest_points_are_the_arrays():
    x = drawn(3, 200, 3).double()
    got = farthest(x, 40, 5)
    assert got.tolist() == [farthest_of_arrays(one.numpy(), 40, 5).tolist() for one in x]
    assert torch.equal(farthest_of_tokens(x, 40), farthest(x, 40))
    features = drawn(2, 50, 17)  # of any space, equals included
    features[:, 25:] = features[:, :25]
    assert sorted(farthest(features, 25)[0].tolist()) == list(range(25))
    starts = farthest(x, 1, seeded(3))
    assert torch.equal(starts, farthest(x, 1, seeded(3))) and len(starts.unique()) > 1
    for bad in (0, 201):
        with pytest.raises(UserError, match="give a number from 1 to 200"):
            farthest(x, bad)


def marked(b=3, v=2, h=24, w=36):
    """(pictures, points): the colours of a pixel say which it is, its point too."""
    number = torch.arange(b * v * h * w).view(b, v, h, w, 1)
    rgb = torch.cat((number // 65536, number // 256 % 256, number % 256), -1).byte()
    return rgb, torch.cat((number * 1e-3, number * -2e-3, number * 0.5), -1).double()


@pytest.mark.parametrize("augment", [ZoomAndCrop(), ZoomAboutCentre()])
@pytest.mark.parametrize("seed", range(4))
def test_a_marked_pixel_keeps_its_point(augment, seed):
    """All pixels, of every picture: what its colours say it was has the point that it now has."""
    rgb, xyz = marked()
    new_rgb, new_xyz = augment((rgb, xyz), seeded(seed))
    assert new_rgb.dtype == torch.uint8 and new_rgb.shape == rgb.shape
    code = new_rgb.long() @ torch.tensor([65536, 256, 1])
    assert torch.equal(new_xyz, xyz.reshape(-1, 3)[code])
    assert torch.equal(new_rgb, rgb.reshape(-1, 3)[code])
    at = torch.arange(3)[:, None, None, None]
    assert torch.equal(code // (24 * 36) // 2, at.expand_as(code))  # of its own sample
    place = code % (24 * 36)
    assert torch.equal(place[:, 0], place[:, 1])  # a sample's cameras alike
    assert len(place[:, 0].unique(dim=0)) > 1  # samples each its own


def test_a_zoom_is_that_of_nearest_pixels():
    """Against resize, pad and crop by the book, of a zoom and a window that are given by ends of a range."""
    rgb, _ = marked(1, 1)
    picture = rgb[0, 0].permute(2, 0, 1)[None].float()
    for zoom in (0.75, 1.0, 1.25):
        height, width = int(24 * zoom), int(36 * zoom)
        big = torch.nn.functional.interpolate(
            picture, (height, width), mode="nearest-exact" if zoom == 1 else "nearest"
        )
        big = torch.nn.functional.pad(big, (0, max(36 - width, 0), 0, max(24 - height, 0)), mode="reflect")
        windows = [
            big[0, :, i : i + 24, j : j + 36].permute(1, 2, 0).byte()
            for i in range(big.shape[2] - 23)
            for j in range(big.shape[3] - 35)
        ]
        found = {
            i
            for seed in range(60)
            for i, w in enumerate(windows)
            if torch.equal(ZoomAndCrop(zoom, zoom)((rgb,), seeded(seed))[0][0, 0], w)
        }
        assert len(found) > min(len(windows), 25) * 0.6, (zoom, len(found), len(windows))


def test_a_zoom_about_the_centre_keeps_it_and_reflects_edges():
    rgb, xyz = marked(1, 1, 9, 9)
    for zoom in (0.75, 1.25):
        _, got = ZoomAboutCentre(zoom, zoom, share=1.0)((rgb, xyz), seeded())
        assert torch.equal(got[0, 0, 4, 4], xyz[0, 0, 4, 4])
        assert torch.equal(got.flip(2)[0, 0, :, 4, 2] - xyz[0, 0, 4, 4, 2], xyz[0, 0, 4, 4, 2] - got[0, 0, :, 4, 2])
    row = ZoomAboutCentre(0.75, 0.75, share=1.0)((xyz,), seeded())[0][0, 0, 4, :, 0] / 1e-3 - 36
    assert row.round().tolist() == [1, 0, 1, 3, 4, 5, 7, 8, 7]  # (x - 4) / 0.75 + 4: -1.33 is pixel 1 reflected
    assert torch.equal(ZoomAboutCentre(share=0.0)((rgb,), seeded())[0], rgb)


def test_maps_of_other_pixels_are_refused():
    rgb, xyz = marked()
    with pytest.raises(UserError, match="maps of other pixels"):
        ZoomAndCrop()((rgb, xyz[:, :, :-1]), seeded())
