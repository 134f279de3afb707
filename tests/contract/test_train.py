"""Training: losses, averages and learning rates of the published recipe, what is logged when, what each process draws.

Mutations that turn it red: EMA numbers that are not the configuration's; no clipping; the same noise on all ranks; validation at
the wrong steps, or with goals hidden; rollouts on evaluation's seeds, or not as it plays; accelerate's variables heard.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from polyarm.config import build, compose, override, read_yaml
from polyarm.datasets.chains import ChainLoader
from polyarm.job import make_accelerator
from polyarm.learner import Learner, parameter_groups
from polyarm.log import read_log
from polyarm.policies import checkpoint
from polyarm.policies.generate.angle import linear_flow
from polyarm.policies.generate.sample import Sampler, euler
from polyarm.policies.policy import Plain, clip_loss
from polyarm.spec import ActionSpace, Clip, ObsSpace, Scale, Spec, UserError
from polyarm.train import _prepare, _Rollouts, fit, validate


def weights(run):
    folder = checkpoint.find(run)
    return load_file(folder / "model.safetensors"), torch.load(folder / "train_state.pt", weights_only=True)


@pytest.mark.parametrize(
    "more, said",
    [
        (["policy.n_action_steps=16"], ["n_action_steps=16", "at most 15"]),
        (["task.streams=[joint_pos,cubes]"], ["cubes", "cube"]),
        (["task.demos.path=/nowhere/x.zarr"], ["/nowhere/x.zarr", "polyarm collect"]),
        (["task.action_scale=gaussian"], ["policy.sampler.limit", "null"]),
        (["task.obs_scale=zscore"], ["zscore", "gaussian"]),
        (["body=unet", "policy.horizon=15"], ["15"]),
        (["train.batch_size=100000"], ["batch_size=100000"]),
        (["policy.form.predict=epsilon"], ["epsilon", "velocity"]),
        (["train.device=tpu"], ["tpu", "cuda"]),
        (["policy=diffusion", "sampler=ddim", "policy.sampler.angles.steps=101"], ["101", "100"]),
    ],
)
def test_bad_settings_are_said_in_one_sentence_before_training(words, tmp_path, more, said):
    plain = [w for w in words(tmp_path / "run") if "body" not in w]
    with pytest.raises(UserError) as e:
        fit(compose([*plain, *more]))
    assert "\n" not in str(e.value) and all(w in str(e.value) for w in said), str(e.value)
    assert not (tmp_path / "run").exists()


def _learner(steps=10_000, warmup=500, policy=None, **changes):
    policy = policy or torch.nn.Linear(2, 2)
    config = compose(
        [
            f"train.steps={steps}",
            f"train.warmup_steps={warmup}",
            "train.lr=1e-4",
            "train.device=cpu",
            *[f"train.{k}={v}" for k, v in changes.items()],
        ]
    )
    return Learner.create(policy, config, make_accelerator(config))


def test_learning_rates_of_the_published_recipe():
    """Diffusion Policy, section 7: warm-up 500 of 10000, cosine to zero."""
    learner = _learner()
    printed = {1: 2e-7, 250: 5e-5, 500: 1e-4, 2500: 8.9457e-5, 5000: 5.4129e-5, 7500: 1.6136e-5, 10_000: 0}
    for step in range(1, 10_001):
        learner.optimizer.step()
        learner.schedule.step()
        if step in printed:
            assert learner.schedule.get_last_lr()[0] == pytest.approx(printed[step], rel=2e-5, abs=1e-12)


def test_ema_decays_of_the_published_recipe():
    """Diffusion Policy, section 7: the n-th call, counted from 0, decays by 1 - (1 + (n - 1))^-0.75, at most 0.9999."""
    ema = _learner().ema
    printed = {
        0: 0,
        1: 0,
        2: 0.405396,
        3: 0.561309,
        11: 0.834440,
        101: 0.968612,
        1001: 0.994381,
        10_001: 0.999000,
        215_445: 0.9999,
    }
    for n, decay in printed.items():
        assert ema.get_decay(n) == pytest.approx(decay, abs=1e-6)


def test_ema_weights_are_what_is_saved(settings, tmp_path):
    """The weights that act are the averaged ones, not the last ones."""
    run = fit(settings(tmp_path / "run"))
    acting, state = weights(run)
    names = [name for name, _ in checkpoint.load(run).named_parameters()]
    for name, average in zip(names, state["ema"]["shadow_params"], strict=True):
        assert torch.equal(acting[name], average)
    assert any(not torch.equal(acting[name], state["model"][name]) for name in names)


def test_a_killed_save_leaves_the_checkpoint_before(words, tmp_path):
    """`kill -9` at random moments of a run that saves all the time: whatever `last` names is whole and loads."""
    out = tmp_path / "run"
    rng = np.random.default_rng(0)
    program = (
        "import sys; from polyarm.config import compose; from polyarm.train import fit; fit(compose(sys.argv[1:]))"
    )
    words = words(out, "train.steps=100000", "train.checkpoint_every=1")
    loaded = 0
    for _ in range(3):
        child = subprocess.Popen(
            [sys.executable, "-c", program, *words],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 900
        before = checkpoint.find(out).name if (out / "checkpoints" / "last").exists() else ""
        while time.monotonic() < deadline and child.poll() is None:
            if (out / "checkpoints" / "last").exists() and checkpoint.find(out).name > before:
                break
            time.sleep(0.01)
        time.sleep(float(rng.uniform(0, 0.2)))
        child.kill()
        child.wait()
        checkpoint.load(out)
        torch.load(checkpoint.find(out) / "train_state.pt", weights_only=True)
        loaded += 1
    assert loaded == 3
    for line in (out / "log.jsonl").read_text().splitlines()[:-1]:
        json.loads(line)


def test_weight_decay_spares_what_the_transformer_names():
    """Diffusion Policy, section 5: no decay on biases, layer norms and position embeddings."""
    from tests.from_yaml import ChunkTransformer

    net = ChunkTransformer(2, 8, 2, 5, width=16, layers=1, heads=2)
    groups = parameter_groups(net, 0.1)
    decayed = {id(p) for p in groups[0]["params"]}
    assert groups[1]["weight_decay"] == 0
    assert len(decayed) + len(groups[1]["params"]) == len(list(net.parameters()))
    assert all(p.ndim < 2 or p.ndim == 3 for p in net.parameters() if id(p) not in decayed)


def test_goals_are_learned_and_shown(settings, tmp_path):
    """From training with goals to rollouts: the world's goal matters, guidance 0 ignores it, which is to act without."""
    from polyarm.eval.rollout import make_worlds, rollout

    more = ["policy=beso", "task.streams=[joint_pos,cube]", "policy.goal_steps=2", "policy.drop_rows=true"]
    run = fit(settings(tmp_path / "run", *more))
    folder = checkpoint.find(run)
    assert read_log(run / "log.jsonl")[-1]["val_loss"] > 0

    def played(goals, *more):
        config = override(read_yaml(folder / "config.yaml"), ["eval.workers=0", *more])
        worlds = make_worlds(config, 2)
        return np.stack([p.actions for p in rollout(checkpoint.load(folder, config), worlds, [1, 2], goals=goals)])

    free = played(False)
    assert np.array_equal(free, played(True, "policy.guidance=0.0"))
    assert not np.allclose(free, played(True)) and not np.allclose(played(True), played(True, "policy.guidance=2.0"))


def test_a_world_without_a_goal_says_so(settings, tmp_path):
    from polyarm.eval.rollout import make_worlds, rollout

    config = settings(tmp_path, "policy=beso", "policy.goal_steps=1", "task=recall", "eval.workers=0")
    worlds = make_worlds(config, 1)
    of = worlds.world_spec
    streams = tuple(replace(s, scale=Scale.identity(s.shape[0])) for s in of.obs.streams)
    scaled = Spec(replace(of.obs, streams=streams), replace(of.action, scale=Scale.identity(of.action.width)))
    policy = build(config.policy, scaled)
    with pytest.raises(UserError, match="this world names no goal to show the policy: give eval.goals=false"):
        rollout(policy, worlds, [1])


def test_a_memory_is_held_out_as_it_is_trained(settings, tmp_path):
    """The validation loss of a policy with memory carries its state from batch to batch. Mutation: start each batch afresh."""
    config = settings(tmp_path, "policy=seed", "policy.n_chunks=1", "train.batch_size=4", "train.device=cpu")
    job = _prepare(config)
    for p in job.policy.parameters():
        torch.nn.init.normal_(p, std=0.2)  # as built, bodies do not look at what they are conditioned on
    learner = Learner.create(job.policy, config, job.accelerator)
    held_out = job.held_out_batches(config)
    assert isinstance(held_out, ChainLoader)

    def by_hand(carry):
        noise, state, losses = torch.Generator().manual_seed(3), None, []
        with learner.averaged() as policy, torch.no_grad():
            for clip in list(held_out.one_epoch())[:6]:
                loss, after = clip_loss(policy, clip, noise, state)
                state = after if carry else None
                losses.append(loss)
        return float(torch.stack(losses).mean())

    found = validate(learner, held_out, 6, 3)["val_loss"]
    assert found == by_hand(True) != by_hand(False)


def test_ema_numbers_are_the_configuration_s():
    """decay(n) = min(ema_decay, 1 - n^-ema_power), n from 1 on as above."""
    ema = _learner(ema_power=0.5, ema_decay=0.9).ema
    for n, decay in {2: 1 - 2**-0.5, 11: 1 - 11**-0.5, 1001: 0.9}.items():
        assert ema.get_decay(n) == pytest.approx(decay, abs=1e-9)


class Steep(Plain, torch.nn.Module):
    """One weight, whose loss has the slope 1000."""

    name, n_obs_steps, n_action_steps = "steep", 1, 1
    obs_space, sampler = ObsSpace((), 10.0), Sampler(euler, linear_flow(1))
    action_space = ActionSpace(("x",), ("1",), "", 10.0, horizon=1, scale=Scale.identity(1))

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(1))

    def start(self, b):
        return ()

    def encode(self, obs, state, generator=None):
        return None, state

    def denoise(self, x, phi, cond):
        return x

    def loss(self, action, cond, generator):
        return {"steep": 1000 * self.w.sum(), "drawn": 0 * torch.randn((), generator=generator)}


CLIP = Clip({}, torch.zeros(2, 1, 1, 1), torch.ones(2, 1, dtype=torch.bool))


@pytest.mark.parametrize("most", [0.5, "null"])
def test_gradients_are_clipped_to_the_setting(most, monkeypatch):
    seen = []
    learner = _learner(policy=Steep(), grad_clip=most)
    step = learner.optimizer.step
    monkeypatch.setattr(learner.optimizer, "step", lambda: (seen.append(float(learner.policy.w.grad)), step()))
    learner.update(CLIP)
    assert seen == [pytest.approx(1000 if most == "null" else most, rel=1e-4)]


def test_rows_of_the_log_stand_at_their_steps(settings, tmp_path):
    """And once more at the end."""
    more = [
        "train.log_every=4",
        "train.val_every=6",
        "train.rollout_every=9",
        "train.rollout_episodes=1",
        "eval.workers=0",
    ]
    log = read_log(fit(settings(tmp_path / "run", *more)) / "log.jsonl")
    at = lambda key: [r["step"] for r in log if key in r]
    assert at("loss") == at("lr") == at("samples_per_s") == [4, 8, 12, 16, 20]
    assert at("val_loss") == [6, 12, 18, 20] and at("success_rate") == [9, 18, 20]


def test_several_losses_are_logged_by_name(settings, tmp_path, monkeypatch, capsys):
    from polyarm.policies.diffusion import DiffusionPolicy

    loss = DiffusionPolicy.loss

    def two(self, action, cond, generator):
        found = loss(self, action, cond, generator)
        return {"actions": found, "contact": 2 * found.detach() + 1}

    monkeypatch.setattr(DiffusionPolicy, "loss", two)
    log = read_log(fit(settings(tmp_path / "run")) / "log.jsonl")
    trained, held_out = ([r for r in log if key in r] for key in ("loss", "val_loss"))
    assert len(trained) == 4 and len(held_out) == 2
    for rows, key in ((trained, "loss"), (held_out, "val_loss")):
        for r in rows:
            assert r[f"{key}.contact"] == pytest.approx(2 * r[f"{key}.actions"] + 1)
            assert r[key] == pytest.approx(r[f"{key}.actions"] + r[f"{key}.contact"])
    last = capsys.readouterr().err.splitlines()[-1]
    assert "actions 0" in last and "contact 1" in last


def test_validation_hides_and_moves_nothing(settings, tmp_path):
    """Goals are shown and pictures cropped in the middle, however training hides and crops."""
    more = ["policy=beso", "policy.goal_steps=1", "policy.drop_rows=true", "task.streams=[joint_pos,cube]"]

    def validated(dropout):
        config = settings(tmp_path, *more, f"policy.goal_dropout={dropout}")
        job = _prepare(config)
        for p in job.policy.parameters():
            torch.nn.init.normal_(p, std=0.2, generator=torch.Generator().manual_seed(p.numel()))
        return validate(job.learner(config), job.held_out_batches(config), 2, 0)

    assert validated(0.0) == validated(1.0)


def test_rollouts_while_training_are_played_as_eval_plays_but_on_other_seeds(settings, tmp_path, monkeypatch):
    from polyarm.eval import rollout

    made, seated = [], []

    class Spy(rollout.Agent):
        def __init__(self, policy, n, n_action_steps=None, *args, device="cpu", **kwargs):
            made.append((n_action_steps, torch.device(device)))
            super().__init__(policy, n, n_action_steps, *args, device=device, **kwargs)

        def restart(self, rows, seeds, goals=None):
            seated.extend(s for s in seeds if s is not None)
            assert goals is None
            super().restart(rows, seeds, goals)

    monkeypatch.setattr(rollout, "Agent", Spy)
    more = ["policy=beso", "policy.goal_steps=1", "eval.goals=false", "eval.n_action_steps=3", "eval.workers=0"]
    config = settings(tmp_path / "run", *more, "train.rollout_episodes=2", "train.checkpoint_every=0", "train.steps=5")
    policy = checkpoint.load(fit(config))
    rollouts = _Rollouts(config)
    try:
        rollouts.run(policy)
    finally:
        rollouts.close()
    judged = range(config.eval.seed, config.eval.seed + 100_000)
    assert made == [(3, torch.device("cpu"))] and len(set(seated)) == 2 and not set(seated) & set(judged)


def test_worlds_of_rollouts_are_closed(settings, tmp_path, monkeypatch):
    from polyarm.sim.vector import ShardedVectorEnv

    open_, close = [], ShardedVectorEnv.close
    monkeypatch.setattr(ShardedVectorEnv, "close", lambda self, **k: (open_.append(self), close(self, **k)))
    fit(settings(tmp_path / "run", "train.rollout_every=20", "train.rollout_episodes=1", "eval.workers=0"))
    assert len(open_) == 1


@pytest.mark.parametrize(
    "name, value",
    [
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4"),
        ("ACCELERATE_MIXED_PRECISION", "bf16"),
        ("ACCELERATE_DYNAMO_BACKEND", "inductor"),
        ("ACCELERATE_USE_FSDP", "true"),
    ],
)
def test_accelerate_s_environment_does_not_change_the_mathematics(settings, tmp_path, monkeypatch, capsys, name, value):
    quiet = fit(settings(tmp_path / "quiet", "train.device=cpu"))
    monkeypatch.setenv(name, value)
    loud = fit(settings(tmp_path / "loud", "train.device=cpu"))
    assert f"not used: {name}={value}" in capsys.readouterr().err and os.environ[name] == value
    a, b = weights(quiet)[0], weights(loud)[0]
    assert all(torch.equal(a[k], b[k]) for k in a)


RANKS = """
import json, os, sys, torch
import polyarm.train as t
from polyarm.config import compose
from polyarm.learner import Learner
from polyarm.policies import policy as p
drawn = {}
losses = t.Learner.update
def told(self, clip):
    if self.step == 0:
        drawn.update(noise=torch.randn(3, generator=torch.Generator().set_state(self.generator.get_state())).tolist(),
                     dropout=torch.nn.functional.dropout(torch.ones(64)).tolist(), rows=clip.action[:, 0, 0, 0].tolist(),
                     built=float(sum(x.double().sum() for x in self.policy.parameters())))
    return losses(self, clip)
t.Learner.update = told
run = t.fit(compose(sys.argv[2:]))
out = sys.argv[1] + "." + os.environ["RANK"]
json.dump(drawn, open(out, "w"))
"""


def test_processes_share_weights_and_nothing_that_is_random(words, tmp_path):
    """Two of them in one new folder: built alike; other rows, noise (and so crops) and dropout on each; one run."""
    import socket

    def together(*more):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [
            sys.executable,
            "-c",
            RANKS,
            str(tmp_path / "drawn"),
            *words(tmp_path / "run", "train.device=cpu", *more),
        ]
        ranks = [
            subprocess.Popen(
                command, stderr=subprocess.PIPE, text=True,
                env={**os.environ, "RANK": str(i), "LOCAL_RANK": str(i), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
                     "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"},
            )
            for i in range(2)
        ]  # fmt: skip
        said = [rank.communicate(timeout=1500)[1] for rank in ranks]
        assert [rank.returncode for rank in ranks] == [0, 0], said
        return [json.loads((tmp_path / f"drawn.{i}").read_text()) for i in range(2)]

    a, b = together("train.steps=7")
    assert a["built"] == b["built"]
    for what in ("noise", "dropout", "rows"):
        assert a[what] != b[what], what
    assert len(weights(tmp_path / "run")[1]["processes"]) == 2
