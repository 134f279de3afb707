"""The whole line from pictures: collected, trained, gone on with, judged; and what makes it worth its processor time.

Mutations that turn it red: the demo with the poses of cube and target among its streams; runs of neighbours that a resumed
training cuts elsewhere; frames told apart by their place in the batch; features cached from random crops, or of a network
that learns; bf16 on a processor that has none.
"""

import json

import numpy as np
import pytest
import torch

from polyarm import job
from polyarm.bench import speed
from polyarm.bench.plan import chosen, compose_task, read_plan
from polyarm.cli import main
from polyarm.config import compose
from polyarm.datasets.store import Store
from polyarm.datasets.windows import Windows
from polyarm.policies import checkpoint
from polyarm.policies.diffusion import DiffusionPolicy
from polyarm.spec import CACHED, FRAMES, UserError
from polyarm.train import fit
from tests.contract.test_resume import killed, same, trained

SMALL = (
    "task.env_kwargs.image_size=[32,32]", "policy.body.width=32", "policy.body.blocks=1", "train.batch_size=8", "train.log_every=2",
    "train.val_every=4", "data.val_ratio=0.3", "train.threads=1", "policy.encoder.image.channels=[8,8]",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """`polyarm demo --images` in seconds."""
    out = tmp_path_factory.mktemp("images") / "demo"
    more = [
        "collect.episodes=3",
        "collect.workers=1",
        "train.steps=4",
        "eval.episodes=2",
        "eval.workers=0",
        "eval.videos=1",
    ]
    assert main(["demo", "--images", f"output_dir={out}", *SMALL, *more]) == 0
    return out


@pytest.fixture
def settings(run):
    return lambda *more: compose(
        ["experiment=pick_place_image", f"task.demos.path={run}/demos.zarr", *SMALL, "train.steps=4", *more]
    )


def test_the_demo_from_pictures_sees_pictures_and_joints_alone(run):
    spec = checkpoint.read_spec(checkpoint.find(run))
    assert spec.obs.names == ("joint_pos", "front", "wrist")
    assert [s.shape for s in spec.obs.streams] == [(6,), (32, 32, 3), (32, 32, 3)]
    result = json.loads((run / "result.json").read_text())
    assert result["n"] == 2 and 0 <= result["success_rate"] <= 1
    assert (run / "report.html").exists()
    assert {"front", "wrist", "cube"} <= set(Store.open(run / "demos.zarr").spec.obs.names)


def test_pictures_and_an_experiment_are_not_both_chosen(capsys):
    assert main(["demo", "--images", "experiment=demo"]) == 2
    assert "--images is experiment=demo_images: give one of them" in capsys.readouterr().err


@pytest.mark.parametrize("more", [(), ("policy.n_obs_steps=2", "data.neighbours=3", "train.noise_samples=3")])
def test_training_from_pictures_resumes_to_the_bit(settings, tmp_path, monkeypatch, more):
    made = lambda out, *words: settings(f"output_dir={out}", "train.checkpoint_every=2", *words)
    whole = fit(made(tmp_path / "whole", *more))
    broken = killed(made, monkeypatch, tmp_path / "broken", *more, at=3)
    assert checkpoint.find(broken).name == "step_00000002"
    same(trained(whole), trained(fit(made(broken, *more))))


def test_neighbours_share_their_frames(settings):
    """As many pictures are encoded as there are, and the loss is that of every window by itself."""
    prepared = job.prepare(settings("policy.n_obs_steps=2", "data.neighbours=8", "train.batch_size=16"))
    clip = next(iter(prepared.batches(settings("policy.n_obs_steps=2", "data.neighbours=8", "train.batch_size=16"),
                                      prepared.learner(settings()))))  # fmt: skip
    obs = {name: x[:, 0] for name, x in clip.obs.items()}
    rows = obs[FRAMES]
    assert len(rows.unique()) <= 16 + 4 < rows.numel()
    for row in rows.unique()[:5]:
        alike = obs["front"][rows == row]
        assert (alike == alike[0]).all()
    want = prepared.policy.encode({k: v for k, v in obs.items() if k != FRAMES}, ())[0]
    torch.testing.assert_close(prepared.policy.encode(obs, ())[0], want)


@pytest.fixture
def frozen(run, tmp_path):
    """The words of a training whose networks are frozen, with weights of a file."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    net = timm.create_model("test_resnet")
    torch.save(net.state_dict(), tmp_path / "net.pth")
    image = "policy.encoder.image."
    return [
        "experiment=pick_place_image", f"task.demos.path={run}/demos.zarr", *(w for w in SMALL if "channels" not in w),
        "train.steps=2", "encoder=timm", f"{image}name=test_resnet", f"{image}pretrained={tmp_path}/net.pth",
        f"{image}frozen=true",
    ]  # fmt: skip


def test_features_of_frozen_networks_are_cached(frozen, tmp_path):
    plain, cached = (job.prepare(compose([*frozen, f"data.cache_features={x}"])) for x in ("false", "true"))
    for windows in ("windows", "held_out"):
        a, b = (getattr(j, windows).__getitems__(np.arange(6)).obs for j in (plain, cached))
        assert {CACHED + "front", CACHED + "wrist", "joint_pos"} == set(b)
        see = [j.policy.encode({k: v[:, 0] for k, v in x.items()}, ())[0] for j, x in ((plain, a), (cached, b))]
        torch.testing.assert_close(*see)
    done = fit(compose([*frozen, "data.cache_features=true", f"output_dir={tmp_path}/run"]))
    assert main(["eval", str(done), "eval.episodes=1", "eval.workers=0", "eval.videos=0"]) == 0


def test_features_of_a_network_that_learns_are_not_cached(settings):
    with pytest.raises(UserError, match=r"data.cache_features=true, but no encoder .* frozen"):
        job.prepare(settings("data.cache_features=true"))


@pytest.mark.parametrize(
    ("asked", "has", "found"),
    [("native", True, "bf16"), ("native", False, "no"), ("auto", True, "no"), ("no", True, "no")],
)
def test_a_processor_computes_in_bf16_where_it_can_and_is_asked_to(settings, monkeypatch, asked, has, found):
    monkeypatch.setattr(job, "_cpu_has_bf16", lambda: has)
    accelerator = job.make_accelerator(settings(f"train.mixed_precision={asked}", "train.device=cpu"))
    assert accelerator.mixed_precision == found


def test_where_the_time_of_training_goes(settings, tmp_path, monkeypatch):
    """Shares of one whole, each the part's own: an encoder that sleeps is the encoder's time, and so for a loader. Mutations:
    parts exchanged, windows of one chunk counted for a clip of several, noises counted as windows."""
    monkeypatch.setattr(speed, "WARM", 1)
    monkeypatch.setattr(speed.time, "process_time", speed.time.perf_counter)  # sleeping is no processor time
    quick = settings("train.noise_samples=4")
    looked = DiffusionPolicy.encode
    monkeypatch.setattr(
        DiffusionPolicy, "encode", lambda self, *a, **k: (speed.time.sleep(0.5), looked(self, *a, **k))[1]
    )
    found = speed.speed(quick, 2)
    assert found["encoder"] > 0.8
    assert found["loader"] + found["encoder"] + found["body"] == pytest.approx(1, abs=1e-6)
    assert found["noises_per_s"] == pytest.approx(4 * found["samples_per_s"])
    assert found["samples_per_s"] == pytest.approx(8 / found["ms_per_step"] * 1e3)
    monkeypatch.setattr(DiffusionPolicy, "encode", looked)
    read = Windows.__getitems__
    monkeypatch.setattr(Windows, "__getitems__", lambda self, items: (speed.time.sleep(0.5), read(self, items))[1])
    assert speed.speed(quick, 2)["loader"] > 0.8
    memory = speed.speed(settings("policy=seed", "policy.token_width=16", "train.batch_size=2", "policy.n_chunks=3"), 2)
    assert memory["samples_per_s"] == pytest.approx(6 / memory["ms_per_step"] * 1e3)


@pytest.mark.parametrize("name", ["images", "image_training"])
def test_every_entry_of_the_benches_of_pictures_is_a_training(name, tmp_path):
    plan = read_plan(name, [])
    for task, about in plan.tasks.items():
        for entry in chosen(plan).values():
            config = compose_task(task, about, entry["settings"], tmp_path)
            assert config.task.streams == ["joint_pos", "front", "wrist"]


def test_a_bench_of_speed_is_a_table_beside_its_first_entry():
    row = {"task": "a", "loader": 0.1, "encoder": 0.7, "body": 0.2, "ms_per_step": 5.0, "noises_per_s": 40.0}
    text = speed.table([{**row, "name": "x", "samples_per_s": 10.0}, {**row, "name": "y", "samples_per_s": 25.0}])
    assert text.splitlines()[3] == "| a | y | 25 | 2.5 | 40 | 5 | 10% | 70% | 20% |"
