"""3D Diffuser Actor by yaml: from a store with point maps to acting, and at the published sizes.

Mutations that turn it red: a policy's yaml that does not choose body and encoder; a width that the body does not take from the
encoder; the published layers of another experiment; batch norms of a frozen trunk that run on.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

import polyarm
from polyarm.cli import main
from polyarm.config import build, compose
from polyarm.encoders.backbone import without_pretrained
from polyarm.encoders.clip import ClipMaps
from polyarm.policies import checkpoint
from polyarm.policies.mixture import Mixture
from polyarm.policies.policy import clip_losses, plan
from polyarm.spec import Clip, ObsSpace, Scale, Spec, Stream, UserError
from tests import boxes

SMALL = [
    "policy.encoder.image.trunk.channels=[8,8,16]", "policy.encoder.width=24", "policy.encoder.heads=2", "train.steps=3",
    "train.batch_size=4", "train.noise_samples=2", "train.val_every=0", "train.device=cpu", "data.val_ratio=0.25",
    "task.action_scale=limits", "data.constant=centre",
]  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return boxes.store(tmp_path_factory.mktemp("boxes") / "boxes.zarr")


STREAMS = ("front", "front_points", "tip")
SCENE = "task.streams=[front,front_points,tip]"


def words(store, out, *more):
    return [f"task.demos.path={store}", "task=own", SCENE, f"output_dir={out}", *SMALL, *more]


@pytest.mark.parametrize("policy", ["actor3d", "actor3d_ddpm"])
def test_it_trains_is_judged_and_acts(store, tmp_path, policy):
    few = ["policy.form.schedule.steps=5"] if policy == "actor3d_ddpm" else []
    few += [
        "policy.encoder.augment={_target_: polyarm.encoders.points.ZoomAboutCentre}"
    ]  # which its checkpoint may name
    assert main(["train", f"policy={policy}", *words(store, tmp_path / "run", *few)]) == 0
    assert main(["eval", str(tmp_path / "run"), "eval.samples=2", "eval.device=cpu"]) == 0
    agent = polyarm.load(tmp_path / "run")
    agent.reset(seed=1)
    e = boxes.episode(np.random.default_rng(3), 32)
    row = agent.act({name: e[name][0] for name in ("front", "front_points", "tip")})
    assert row.shape == (10,) and np.isfinite(row).all()


def test_it_mixes_with_policies_of_clouds_and_of_pictures(store, tmp_path, capsys):
    """And the pair of schedules is refused before anything is played. Mutation: no check of the parts' grids."""
    plain = ["policy.body.width=16", "policy.body.blocks=1", *SMALL[3:]]
    own = lambda out, *more: [f"task.demos.path={store}", "task=own", f"output_dir={tmp_path}/{out}", *plain, *more]
    assert main(["train", "policy=actor3d", *words(store, tmp_path / "scene")]) == 0
    assert main(["train", "policy=dp3", "encoder=points", "task.streams=[tip,cloud]", *own("points")]) == 0
    assert main(["train", "policy=flow", "encoder=small", "task.streams=[tip,front]", *own("image")]) == 0
    runs = [str(tmp_path / name) for name in ("scene", "points", "image")]
    mixed = ["eval", *runs, "--weights", "0.5", "0.3", "0.2", "eval.samples=1", "eval.device=cpu"]
    assert main([*mixed, f"output_dir={tmp_path}/mixed"]) == 0
    assert main(["train", "policy=actor3d_ddpm", *words(store, tmp_path / "pair")]) == 0
    capsys.readouterr()
    assert (
        main(["eval", str(tmp_path / "pair"), runs[0], "--weights", "0.5", "0.5", "eval.samples=1", "eval.device=cpu"])
        != 0
    )
    assert "such as policy=actor3d" in capsys.readouterr().err
    pair, other = (checkpoint.load(tmp_path / name) for name in ("pair", "scene"))
    Mixture([pair, pair], (0.5, 0.5))
    with pytest.raises(UserError, match="noises some channels by another schedule"):
        Mixture([other, pair], (0.9, 0.1))


def test_a_policy_chooses_its_body_and_encoder_and_a_word_chooses_another():
    assert compose(["policy=actor3d"]).policy.body._target_.endswith("ActorHead")
    larger = compose(["policy=actor3d", "encoder=scene_resnet", "body=actor_large"]).policy
    assert larger.body.width == larger.encoder.width == 144 and larger.body.shared_layers == 4
    assert compose(["policy=flow"]).policy.body._target_.endswith("ResidualMlp")


@pytest.mark.parametrize("policy", ["policy=actor3d", "policy=actor3d_ddpm"])
def test_parts_of_another_policy_are_refused(store, tmp_path, capsys, policy):
    assert main(["train", policy, "encoder=small", *words(store, tmp_path / "run")[:4], "data.constant=centre"]) != 0
    assert "encoder=scene" in capsys.readouterr().err
    assert (
        main(["train", "policy=flow", "encoder=scene", *words(store, tmp_path / "run")[:4], "data.constant=centre"])
        != 0
    )
    assert "policy=actor3d" in capsys.readouterr().err


@pytest.fixture(scope="module")
def rn50(tmp_path_factory):
    """A file with weights of CLIP's RN50 that were never trained, as a part of the whole of CLIP."""
    torch.manual_seed(0)
    with without_pretrained():
        net = ClipMaps(None, False)
    path = tmp_path_factory.mktemp("rn50") / "rn50.safetensors"
    save_file({f"visual.{name}": x + 0.01 * (x.ndim == 1) for name, x in net.state_dict().items()}, path)
    return str(path)


@pytest.mark.parametrize(
    ("experiment", "more", "published"),
    [
        ("actor3d_published", [], 3_584_290),
        (
            "actor3d_published",
            ["policy.encoder.width=192", "policy.body.shared_words=3", "policy.body.branch_words=1"],
            9_751_498,
        ),
        ("actor3d_flow_published", [], 5_174_938),
        ("actor3d_flow_published", ["policy.encoder.width=120"], 3_707_650),
    ],
)
def test_the_published_sizes(rn50, experiment, more, published):
    """But for what the released code makes and no gradient reaches, which tests/parity/test_actor.py names. The text model, of
    CLIP's width, is not counted."""
    config = compose([f"experiment={experiment}", f"policy.encoder.image.trunk.weights={rn50}", *more])
    text = {"_target_": "polyarm.encoders.language.Instruction", "_partial_": True, "width": 512}
    OmegaConf.update(config, "policy.encoder.text", text, merge=False)
    known, told = boxes.spec(256), Stream("task", "text", (53,))
    streams = [
        s if s.scale or not s.scaled else replace(s, scale=Scale.identity(s.shape[-1])) for s in known.obs.streams[:3]
    ]
    action = replace(known.action, scale=Scale.identity(10))
    policy = build(config.policy, Spec(ObsSpace((*streams, told), 10.0), action))
    trained = sum(p.numel() for name, p in policy.named_parameters() if p.requires_grad and "encoder.text." not in name)
    c = policy.encoder.width
    never = (64 + 256) * c + 2 * c + 4 * (9 * c * c + c)
    never += c + 8 * c * c + 7 * c if experiment == "actor3d_published" else 1024 * c + c + 4 * c
    assert trained + never == published
    frozen = sum(p.numel() for p in policy.parameters() if not p.requires_grad)
    pool = 50 * 2048 + 3 * (2048 * 2048 + 2048) + 2048 * 1024 + 1024  # CLIP's, which is not asked for
    assert frozen + pool == 38_316_896


def test_the_published_setting_learns_keyposes(store, rn50, tmp_path):
    """Mutation: leave `task.action_kind` out of the experiment."""
    assert compose(["experiment=actor3d_published", "task=stack_cube"]).task.streams == ["tip", "front", "front_points"]
    how = OmegaConf.to_container(compose(["experiment=actor3d_published"]).task.keyposes) | {"joints": None}
    found = ", ".join(f"{key}: {'null' if value is None else value}" for key, value in how.items())
    more = [f"policy.encoder.image.trunk.weights={rn50}", f"+task.keyposes={{{found}}}", *SMALL[1:]]
    own = ["task=own", SCENE, f"task.demos.path={store}", f"output_dir={tmp_path}/run", *more]
    assert main(["train", "experiment=actor3d_published", *own]) == 0
    action = checkpoint.read_spec(checkpoint.find(tmp_path / "run")).action
    assert action.kind == "keypose" and action.horizon == 3


@pytest.mark.slow
def test_boxes_are_learnt_by_heart():
    """At the CPU's size, four scenes whose box alone says where the way ends: within 1 cm, and whether the gripper is shut.
    Mutation: show all of a batch the first one's scene."""
    torch.manual_seed(0)
    known, random = boxes.spec(64), np.random.default_rng(0)
    streams = [
        replace(s, scale=Scale.identity(s.shape[-1])) if s.scaled else s for s in known.obs.pick(STREAMS).streams
    ]
    gain, offset = (6.0, 6.0, 7.0, *(1.0,) * 6, 25.0), (-3.6, 0.0, -1.0, *(0.0,) * 6, -1.0)
    action = replace(known.action, scale=Scale(gain, offset, 1.0))
    words = ["policy=actor3d", "policy.horizon=12", "policy.n_obs_steps=1", "policy.n_action_steps=12"]
    policy = build(compose(words).policy, Spec(ObsSpace(tuple(streams), 10.0), action)).train()
    each = [boxes.episode(random, 64) for _ in range(4)]
    start = each[0]["tip"][:1]  # the same of all
    seen = {
        name: torch.as_tensor(np.stack([start if name == "tip" else e[name][:1] for e in each])) for name in STREAMS
    }
    way = torch.as_tensor(np.stack([e["action"] for e in each]))
    clip = Clip({name: x[:, None] for name, x in seen.items()}, way[:, None], torch.ones(4, 1, dtype=torch.bool))
    optimiser, draws = torch.optim.Adam(policy.parameters(), 2e-3), torch.Generator().manual_seed(0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 300)
    for _ in range(300):
        optimiser.zero_grad()
        clip_losses(policy, clip, draws, noise_samples=4)[0]["loss"].backward()
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        found = plan(policy.eval(), seen, (), torch.Generator().manual_seed(1)).action
    assert (found - way)[..., :3].norm(dim=-1).max() < 0.01
    assert torch.equal(found[..., 9] > 0.04, way[..., 9] > 0.04)


def test_the_frozen_trunk_is_the_files_and_its_batch_norms_stay(rn50):
    net, running = ClipMaps(rn50, False).train(), ClipMaps(rn50, True).train()
    kept = load_file(rn50)
    assert all(torch.equal(x, kept[f"visual.{name}"]) for name, x in net.state_dict().items())
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    maps = net(pixels)
    assert [tuple(m.shape[1:]) for m in maps] == [(c, 32 >> i, 32 >> i) for i, c in enumerate(net.channels)]
    running(pixels)
    assert torch.equal(net.bn1.running_mean, kept["visual.bn1.running_mean"])
    assert not torch.equal(running.bn1.running_mean, kept["visual.bn1.running_mean"])
    assert torch.equal(maps[-1], net.eval()(pixels)[-1])


def test_weights_that_are_not_clips_are_refused(tmp_path):
    with pytest.raises(UserError, match="weights=null: give the file of CLIP's RN50"):
        ClipMaps(None, False)
    save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="whose conv1.weight has shape"):
        ClipMaps(str(tmp_path / "other.safetensors"), False)
    (tmp_path / "torn.pt").write_bytes(b"torn")
    with pytest.raises(UserError, match="torn.pt holds no weights"):
        ClipMaps(str(tmp_path / "torn.pt"), False)
