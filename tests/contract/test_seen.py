"""The report's pictures are the very pixels that the policy's network is given, and of the first observation."""

import base64
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

from polyarm.encoders.fuse import Fuse
from polyarm.encoders.images import offsets, seen
from polyarm.eval.report import view, write_report
from polyarm.eval.run import evaluate
from polyarm.eval.seen import WINDOWS, saw
from polyarm.policies.policy import Plain
from polyarm.spec import ObsSpace, Stream
from tests.contract.test_report import Page, result
from tests.from_yaml import Backbone, ResNetKeypoints, ResNetPooled

FRONT, WRIST = Stream("front", "image", (48, 64, 3)), Stream("wrist", "image", (40, 40, 3))
SIDE = ["task.env_kwargs.cameras=[front,wrist]", "task.env_kwargs.image_size=[48,64]"]


def seeded():
    return torch.Generator().manual_seed(5)


def images(stream, n=3):
    return torch.randint(0, 256, (n, *stream.shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def timm_network(**more):
    pytest.importorskip("timm")
    return lambda stream: Backbone(stream, "test_resnet", **more)


class Whole(torch.nn.Module):
    """An encoder that says nothing of what it takes."""

    width = 1

    def __init__(self, stream):
        super().__init__()
        self.body = torch.nn.Flatten()

    def forward(self, x, generator=None):
        return self.body(x / 127.5 - 1).mean(1, keepdim=True)


@pytest.mark.parametrize("generator", [None, seeded])
@pytest.mark.parametrize(
    ("make", "inside", "grid"),
    [
        (lambda s: ResNetKeypoints(s, crop=(36, 40)), "body", 1),
        (lambda s: ResNetKeypoints(s, crop=1.0), "body", 1),
        (lambda s: ResNetPooled(s, short_side=None), "net", 1),
        (lambda s: ResNetPooled(s, short_side=32), "net", 0.51),
        (timm_network(crop=(33, 40), group_norm=True), "net", 1),
    ],
    ids=["keypoints", "uncropped", "pooled", "resized", "timm"],
)
def test_the_pixels_shown_are_those_the_network_is_given(make, inside, grid, generator):
    """In acting and in training. Mutations: the central window in training; a size that is not resized to; another draw."""
    encoder, x, given = make(FRONT), images(FRONT), []
    hook = getattr(encoder, inside).register_forward_pre_hook(lambda _, args: given.append(args[0]))
    encoder(x, generator and generator())
    hook.remove()
    if hasattr(encoder, "mean"):
        mean, std = (torch.tensor(v)[:, None, None] for v in (encoder.mean, encoder.std))
        taken = 255 * (given[0] * std + mean)
    else:
        taken = 127.5 * (given[0] + 1)
    found = seen(encoder, x, generator and generator()).permute(0, 3, 1, 2)
    assert found.dtype == torch.uint8 and found.shape == taken.shape
    assert (found - taken).abs().max() <= (grid if grid < 1 else 1e-3)


class Nested(Plain, torch.nn.Module):
    """A policy that keeps its encoders where it likes."""

    name, n_obs_steps, n_action_steps = "mine", 1, 1
    action_space = None
    start = encode = denoise = sampler = lambda self, *_: None

    def __init__(self, obs_space, **encoders):
        super().__init__()
        self.obs_space, self.deep = obs_space, torch.nn.ModuleList([Fuse(obs_space, **encoders)])


def test_every_camera_is_shown_as_its_own_encoder_takes_it(tmp_path):
    """Whichever attribute of the policy holds the encoders. Mutations: one encoder for all; the wrong box; smoothed or lossy
    pictures; training crops of an encoder that never crops."""
    space = ObsSpace((FRONT, WRIST), 10.0)
    policy = Nested(space, front=lambda s: ResNetKeypoints(s, crop=(36, 40)), wrist=Whole)
    obs = {s.name: images(s, 1)[0].numpy() for s in (FRONT, WRIST)}
    front, wrist = saw(policy, obs)
    top, left, height, width = front.box
    assert (top, left, height, width) == (6, 12, 36, 40) and front.said and not wrist.said
    assert np.array_equal(front.acting, obs["front"][top : top + height, left : left + width])
    assert len(front.training) == WINDOWS and wrist.training == [] and np.array_equal(wrist.acting, obs["wrist"])
    places = offsets(torch.empty(WINDOWS, 48, 64, 3, dtype=torch.uint8), (36, 40), torch.Generator().manual_seed(0))
    for i, picture in enumerate(front.training):
        y, x = (int(p[i]) for p in places)
        assert np.array_equal(picture, obs["front"][y : y + 36, x : x + 40])

    write_report(tmp_path / "r.html", title="t", result=result(), views=[front, wrist])
    page = Page(tmp_path / "r.html")
    shown = page.all("img", class_="pixels")
    pictures = [np.asarray(Image.open(io.BytesIO(base64.b64decode(e["src"].partition(",")[2])))) for e in shown]
    wanted = [front.whole, front.acting, *front.training, wrist.whole, wrist.acting]
    assert all(np.array_equal(a, b) for a, b in zip(pictures, wanted, strict=True))
    assert all(e["src"].startswith("data:image/png;base64,") for e in shown)
    box = next(e["style"] for e in page.all("b") if "top:" in e.get("style", ""))
    assert [float(x) for x in re.findall(r":([\d.]+)%", box)] == [12.5, 18.75, 75, 62.5]
    assert re.search(r"\.pixels {[^}]*image-rendering: pixelated", page.one("style")["text"])
    said = page.one("section", id="seen")["text"]
    assert "seed 100000 as the world gives it" in said and "central 36 × 40 of 48 × 64 pixels" in said
    assert "names no crop, so the whole picture of 40 × 40 pixels is shown" in said
    assert "sees the same" in view(saw(Nested(ObsSpace((FRONT,), 1.0), image=ResNetPooled), obs)[0])["said"]


def test_a_policy_without_a_picture_shows_none(tmp_path):
    write_report(tmp_path / "r.html", title="t", result=result(), views=[])
    assert not Page(tmp_path / "r.html").all("section", id="seen")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A flow that sees both cameras, hardly trained, beside its store."""
    from polyarm.collect import collect_task
    from polyarm.config import compose
    from polyarm.train import fit

    home = tmp_path_factory.mktemp("seen")
    words = [*SIDE, "task.streams=[joint_pos,front,wrist]", f"task.demos.path={home}/demos.zarr"]
    collect_task(compose([*words, "collect.episodes=3", "collect.workers=1"]))
    small = ["policy.body.width=16", "policy.body.blocks=1", "train.steps=1", "train.batch_size=2", "data.val_ratio=0.34",
             "train.val_every=1", "train.val_batches=1"]  # fmt: skip
    return fit(compose([*words, *small, f"output_dir={home}/run"]))


def test_the_first_observation_of_the_first_seed_is_shown(run):
    """Mutation: another seed's, or a later step's."""
    from polyarm.sim.world import make_world

    found = evaluate([run], ["eval.episodes=2", "eval.seed=7", "eval.n_envs=2", "eval.workers=0", "eval.videos=0", "+task.env_kwargs.max_steps=9"])  # fmt: skip
    assert found["notes"] == []
    (page,) = (Page(p) for p in run.glob("eval*/report.html"))
    world = make_world("polyarm/PickPlace-v0", {"cameras": ["front", "wrist"], "image_size": [48, 64]})
    obs, _ = world.reset(seed=7)
    world.close()
    whole = [e["src"] for e in page.all("img", class_="pixels") if e["alt"].endswith("as observed")]
    for src, camera in zip(whole, ("front", "wrist"), strict=True):
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(src.partition(",")[2])))), obs[camera])
    assert "seed 7 as the world gives it" in page.one("section", id="seen")["text"]


def test_offline_the_first_recorded_picture_is_shown_and_gone_data_are_said(run, tmp_path):
    from polyarm.datasets.store import Store

    words = ["task.measure=action_error", f"output_dir={tmp_path}/out", "eval.samples=2"]
    found = evaluate([run], words)
    assert found["notes"] and not any("no " in note for note in found["notes"])
    page = Page(tmp_path / "out" / "report.html")
    store = Store.open(run.parent / "demos.zarr")
    begin = np.insert(store.episode_ends, 0, 0)[found["per_episode"][0]["episode"]]
    src = next(e["src"] for e in page.all("img", class_="pixels") if e["alt"] == "wrist as observed")
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(src.partition(",")[2]))))
    assert np.array_equal(shown, store.read("wrist")[begin])
    assert f"held-out episode {found['per_episode'][0]['episode']} as it was recorded" in page.one("section", id="seen")["text"]  # fmt: skip
    assert page.one("pre", id="command")["text"].startswith(f"polyarm eval {run} ")
    away = run.parent / "away.zarr"
    (run.parent / "demos.zarr").rename(away)
    try:
        found = evaluate([run], ["eval.episodes=1", "eval.workers=0", "eval.videos=0", "+task.env_kwargs.max_steps=9", f"output_dir={tmp_path}/gone"])  # fmt: skip
    finally:
        away.rename(run.parent / "demos.zarr")
    said = Page(tmp_path / "gone" / "report.html").one("section", id="data")["text"]
    assert f"{run.parent}/demos.zarr do not exist: make them with" in said
    assert found["notes"] == []
