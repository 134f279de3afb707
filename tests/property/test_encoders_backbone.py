"""Theorems of `Backbone`: timm's features, standardised as the network wants, norms that averaged weights fit, clear refusals."""

from pathlib import Path

import pytest
import torch
from torch import nn

from polyarm.config import build, compose
from polyarm.encoders.backbone import without_pretrained
from polyarm.policies import checkpoint
from polyarm.spec import ActionSpace, ObsSpace, Scale, Spec, Stream, UserError
from tests.from_yaml import Backbone

timm = pytest.importorskip("timm")
CAMERA = Stream("camera", "image", (40, 44, 3))


def images(n=2, height=40, width=44):
    return torch.randint(0, 256, (n, height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def made(name="test_resnet", **settings):
    torch.manual_seed(0)
    return Backbone(CAMERA, name, **{"crop": (36, 40), **settings})


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of weights as timm writes them, with statistics as training leaves them."""
    torch.manual_seed(1)
    net = timm.create_model("test_resnet")
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.normal_(m.running_mean)
            nn.init.uniform_(m.running_var, 0.5, 2)
            nn.init.uniform_(m.weight, 0.5, 2)
    path = tmp_path_factory.mktemp("weights") / "net.pth"
    torch.save(net.state_dict(), path)
    return str(path), net.eval()


def test_frozen_features_are_timms_own(weights):
    """Standardised by the network's own mean and deviation, in eval mode whatever the policy's, never trained. Mutations:
    [-1, 1] pixels, norms replaced in a frozen network, training mode."""
    path, net = weights
    encoder = made(pretrained=path, frozen=True, features=None, crop=1.0)
    config = timm.data.resolve_model_data_config(net)
    mean, std = (torch.tensor(config[k])[:, None, None] for k in ("mean", "std"))
    pixels = (images().permute(0, 3, 1, 2) / 255 - mean) / std
    want = net.forward_head(net.forward_features(pixels), pre_logits=True)
    torch.testing.assert_close(encoder.train()(images()), want, atol=1e-5, rtol=1e-5)
    assert encoder.width == want.shape[1]
    head = made(pretrained=path, frozen=True).train()
    head(images()).sum().backward()
    assert {name for name, p in head.named_parameters() if p.grad is not None} == {"head.0.weight", "head.0.bias"}


@pytest.mark.parametrize(
    "name", ["test_resnet", "test_efficientnet", "test_convnext", "test_vit", "test_mobilenetv3_100"]
)
def test_every_kind_of_network_gives_its_width_and_learns(name):
    """The pooled width differs from `num_features` where a network has a hidden layer behind its pool; a network of one
    size gets it. Mutation: num_features for all."""
    if not timm.is_model(name):
        name = "mobilenetv3_small_050"
    encoder = made(name, features=None)
    out = encoder(images(), torch.Generator().manual_seed(0))
    assert out.shape == (2, encoder.width)
    out.square().sum().backward()
    assert sum(p.grad is not None for p in encoder.parameters()) == len(list(encoder.parameters()))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in encoder.modules())


def test_group_norms_keep_gains_and_do_not_see_neighbours(weights):
    """Mutations: batch norms kept, gains drawn anew, the fused activation lost."""
    path, net = weights
    encoder = made(pretrained=path)
    norms = [m for m in encoder.net.modules() if isinstance(m, nn.GroupNorm)]
    old = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == len(old)
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(norms, old, strict=True))
    x = images(3)
    torch.testing.assert_close(encoder.train()(x), encoder.eval()(x[[2, 0, 1]])[[1, 2, 0]])
    fused = [m for m in timm.create_model("test_efficientnet").modules() if isinstance(m, nn.BatchNorm2d)]
    kept = [m for m in made("test_efficientnet").net.modules() if isinstance(m, nn.Sequential)
            and len(m) == 3 and isinstance(m[0], nn.GroupNorm)]  # fmt: skip
    assert len(kept) == len(fused)


def test_batch_norms_without_group_norms_keep_their_statistics(weights):
    """Mutation: statistics that go on running, which averaged weights would not fit."""
    path, net = weights
    encoder = made(pretrained=path, group_norm=False).train()
    encoder(images()).sum().backward()
    stem = [m for m in encoder.net.modules() if isinstance(m, nn.BatchNorm2d)]
    old = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(torch.equal(a.running_var, b.running_var) for a, b in zip(stem, old, strict=True))
    assert all(m.weight.grad is not None for m in stem)


def test_crops_are_random_with_a_generator_and_central_without():
    encoder = made()
    seeded = lambda seed: torch.Generator().manual_seed(seed)
    x = images(1).expand(6, -1, -1, -1)
    assert torch.equal(encoder(x, seeded(1)), encoder(x, seeded(1)))
    assert len(encoder(x, seeded(1)).unique(dim=0)) > 1
    torch.testing.assert_close(encoder(x), encoder(images(1)).expand(6, -1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "resnet8"}, "unknown timm network 'resnet8': did you mean 'resnet"),
        ({"pretrained": "nowhere.pth"}, "the weights nowhere.pth of 'test_resnet' do not exist: give a file"),
        ({"frozen": True}, "frozen without pretrained weights would never see anything"),
        ({"group_norm": False}, "has batch norms that never saw an image: give group_norm=true"),
        ({"crop": 1.5}, "exceeds the 40x44 images"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(UserError, match=message):
        made(**settings)


def test_a_stream_without_colours_is_refused():
    with pytest.raises(UserError, match=r"Backbone takes \(height, width, 3\), choose another encoder"):
        Backbone(Stream("depth", "depth", (40, 44)), "test_resnet")


def test_weights_that_cannot_be_had_are_one_sentence(monkeypatch):
    def offline(*_, **__):
        raise OSError("no route to host\nmore")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(
        UserError, match=r"no pretrained weights of 'test_resnet' from the hub \(no route to host\): connect"
    ):
        made(pretrained=True)


def test_a_missing_package_names_its_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(UserError, match=r"needs timm: install it with pip install 'polyarm\[vision\]'"):
        made()


def test_a_checkpoint_needs_its_pretrained_weights_no_more(weights, tmp_path):
    """Mutation: `checkpoint.load` looks for the file again."""
    path = tmp_path / "gone.pth"
    path.write_bytes(Path(weights[0]).read_bytes())
    obs = ObsSpace((CAMERA,), 10.0)
    config = compose([
        "encoder=timm", "policy.encoder.image.name=test_resnet", f"policy.encoder.image.pretrained={path}",
        "policy.body.width=16", "policy.body.blocks=1",
    ])  # fmt: skip
    spec = Spec(obs, ActionSpace(("x",), ("m",), "base", 10.0, scale=Scale.identity(1)))
    policy = build(config.policy, spec)
    checkpoint.save(tmp_path / "c", config, Spec(obs, policy.action_space), policy.state_dict())
    path.unlink()
    again = checkpoint.load(tmp_path / "c")
    x = {"camera": images(2)[:, None].expand(-1, 2, -1, -1, -1)}
    with torch.no_grad():
        assert torch.equal(again.encode(x, ())[0], policy.eval().encode(x, ())[0])
    with pytest.raises(UserError, match="do not exist"):
        build(config.policy, spec)
    with without_pretrained():
        build(config.policy, spec)
