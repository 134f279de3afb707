"""Training: resume to the bit, a folder that refuses what it should, losses and learning rates of the published recipe.

Mutations that turn it red: leave the generator, the EMA count or the sampler's position out of `Learner.state`; write
`checkpoints/last` before the folder is whole; let `_begin` ignore a changed learning rate.
"""

import json
import os
import signal
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
from polyarm.datasets.store import Store
from polyarm.learner import Learner, parameter_groups
from polyarm.log import read_log
from polyarm.policies import checkpoint
from polyarm.policies.policy import clip_loss
from polyarm.spec import Scale, Spec, UserError
from polyarm.train import _accelerator, _loader, _prepare, fit, validate

SMALL = ["body.width=32", "body.blocks=1"]


@pytest.fixture(scope="session")
def demos(tmp_path_factory):
    """Eight expert episodes of the demo task."""
    import gymnasium

    import polyarm.sim  # noqa: F401  registers the worlds
    from polyarm.sim.experts.episode import play
    from polyarm.sim.experts.pick_place import PickPlaceExpert

    path = tmp_path_factory.mktemp("demos") / "pick_place.zarr"
    env = gymnasium.make("polyarm/PickPlace-v0")
    with Store.create(path, env.unwrapped.world_spec) as store:
        for seed in range(8):
            e = play(env, PickPlaceExpert(env.unwrapped), seed)
            store.append({**e.obs, "action": e.action, "time_s": e.time_s}, seed)
    return path


def settings(demos, out, *more):
    return compose([
        "policy.body.width=32", "policy.body.blocks=1", f"task.demos.path={demos}", f"output_dir={out}",
        "train.batch_size=16", "train.log_every=5", "train.val_every=10", "data.val_ratio=0.25", "train.steps=20",
        "train.checkpoint_every=7", *more,
    ])  # fmt: skip


def weights(run):
    folder = checkpoint.find(run)
    return load_file(folder / "model.safetensors"), torch.load(folder / "train_state.pt", weights_only=True)


@pytest.mark.parametrize("policy", ["flow", "diffusion"])
def test_resume_gives_the_same_weights_to_the_bit(demos, tmp_path, policy):
    """An interrupted run, gone on with by the same command, equals the unbroken one: weights, EMA, optimizer, loss rows."""
    whole = fit(settings(demos, tmp_path / "whole", f"policy={policy}"))
    broken = tmp_path / "broken"
    program = (
        "import sys, os, signal, polyarm.train as t, polyarm.policies.checkpoint as c; from polyarm.config import compose\n"
        "save = c.save\n"
        "def then_die(folder, *a):\n    save(folder, *a)\n    if folder.name.endswith('7'): os.kill(os.getpid(), signal.SIGKILL)\n"
        "t.checkpoint.save = then_die\nt.fit(compose(sys.argv[1:]))"
    )
    words = _words(demos, broken, f"policy={policy}")
    died = subprocess.run(
        [sys.executable, "-c", program, *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        check=False,
    )
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    assert not (broken / "checkpoints" / "last").exists() or checkpoint.find(broken).name == "step_00000007"
    if not (broken / "checkpoints" / "last").exists():  # killed between the folder and its link: the folder counts
        assert (broken / "checkpoints" / "step_00000007").is_dir()
    fit(settings(demos, broken, f"policy={policy}"))
    (a, state_a), (b, state_b) = weights(whole), weights(broken)
    assert all(torch.equal(a[k], b[k]) for k in a) and a.keys() == b.keys()
    _same(state_a, state_b)
    losses = lambda run: {r["step"]: r["loss"] for r in read_log(run / "log.jsonl") if "loss" in r}
    assert losses(whole).keys() == losses(broken).keys()


def _words(demos, out, *more):
    return [
        "policy.body.width=32", "policy.body.blocks=1", f"task.demos.path={demos}", f"output_dir={out}",
        "train.batch_size=16", "train.log_every=5", "train.val_every=10", "data.val_ratio=0.25", "train.steps=20",
        "train.checkpoint_every=7", *more,
    ]  # fmt: skip


def _same(a, b):
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            _same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            _same(x, y)
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


def test_a_finished_run_is_left_as_it_is_and_a_longer_one_goes_on(demos, tmp_path):
    run = fit(settings(demos, tmp_path / "run"))
    before = (checkpoint.find(run) / "model.safetensors").stat().st_mtime_ns
    fit(settings(demos, tmp_path / "run"))
    assert (checkpoint.find(run) / "model.safetensors").stat().st_mtime_ns == before
    fit(settings(demos, tmp_path / "run", "train.steps=25"))
    assert checkpoint.find(run).name == "step_00000025"
    assert (run / "checkpoints" / "step_00000020").is_dir()


@pytest.mark.parametrize(
    "more, words",
    [
        (["train.lr=0.5"], ["train.lr=0.001", "0.5", "output_dir"]),
        (["policy=diffusion"], ["another output_dir"]),
        (["train.resume=false"], ["holds a run already"]),
    ],
)
def test_a_folder_refuses_another_run(demos, tmp_path, more, words):
    fit(settings(demos, tmp_path / "run", "train.steps=7"))
    with pytest.raises(UserError) as e:
        fit(settings(demos, tmp_path / "run", "train.steps=7", *more))
    assert all(w in str(e.value) for w in words), str(e.value)


@pytest.mark.parametrize(
    "more, words",
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
def test_bad_settings_are_said_in_one_sentence_before_training(demos, tmp_path, more, words):
    plain = [w for w in _words(demos, tmp_path / "run") if "body" not in w]
    with pytest.raises(UserError) as e:
        fit(compose([*plain, *more]))
    assert "\n" not in str(e.value) and all(w in str(e.value) for w in words), str(e.value)


def _learner(steps=10_000, warmup=500, **changes):
    policy = torch.nn.Linear(2, 2)
    config = compose(
        [
            f"train.steps={steps}",
            f"train.warmup_steps={warmup}",
            "train.lr=1e-4",
            *[f"train.{k}={v}" for k, v in changes.items()],
        ]
    )
    return Learner.create(policy, config, _accelerator("cpu", "no"))


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


def test_ema_weights_are_what_is_saved(demos, tmp_path):
    """The weights that act are the averaged ones, not the last ones."""
    run = fit(settings(demos, tmp_path / "run"))
    acting, state = weights(run)
    names = [name for name, _ in checkpoint.load(run).named_parameters()]
    for name, average in zip(names, state["ema"]["shadow_params"], strict=True):
        assert torch.equal(acting[name], average)
    assert any(not torch.equal(acting[name], state["model"][name]) for name in names)


def test_a_killed_save_leaves_the_checkpoint_before(demos, tmp_path):
    """`kill -9` at random moments of a run that saves all the time: whatever `last` names is whole and loads."""
    out = tmp_path / "run"
    rng = np.random.default_rng(0)
    program = (
        "import sys; from polyarm.config import compose; from polyarm.train import fit; fit(compose(sys.argv[1:]))"
    )
    words = [*_words(demos, out), "train.steps=100000", "train.checkpoint_every=1"]
    loaded = 0
    for _ in range(3):
        child = subprocess.Popen(
            [sys.executable, "-c", program, *words],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 120
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


def test_weight_decay_spares_what_the_transformer_names(demos, tmp_path):
    """Diffusion Policy, section 5: no decay on biases, layer norms and position embeddings."""
    from polyarm.policies.nets import ChunkTransformer

    net = ChunkTransformer(2, 8, 2, 5, width=16, layers=1, heads=2)
    groups = parameter_groups(net, 0.1)
    decayed = {id(p) for p in groups[0]["params"]}
    assert groups[1]["weight_decay"] == 0
    assert len(decayed) + len(groups[1]["params"]) == len(list(net.parameters()))
    assert all(p.ndim < 2 or p.ndim == 3 for p in net.parameters() if id(p) not in decayed)


def test_goals_are_learned_and_shown(demos, tmp_path):
    """From training with goals to rollouts: the world's goal matters, guidance 0 ignores it, which is to act without."""
    from polyarm.eval.rollout import make_worlds, rollout

    words = ["policy=beso", "task.streams=[joint_pos,cube]", "policy.goal_steps=2", "policy.drop_rows=true"]
    run = fit(settings(demos, tmp_path / "run", *words))
    folder = checkpoint.find(run)
    assert read_log(run / "log.jsonl")[-1]["val_loss"] > 0

    def played(goals, *more):
        config = override(read_yaml(folder / "config.yaml"), ["eval.workers=0", *more])
        worlds = make_worlds(config, 2)
        return np.stack([p.actions for p in rollout(checkpoint.load(folder, config), worlds, [1, 2], goals=goals)])

    free = played(False)
    assert np.array_equal(free, played(True, "policy.guidance=0.0"))
    assert not np.allclose(free, played(True)) and not np.allclose(played(True), played(True, "policy.guidance=2.0"))


def test_a_world_without_a_goal_says_so(demos, tmp_path):
    from polyarm.eval.rollout import make_worlds, rollout

    config = settings(demos, tmp_path, "policy=beso", "policy.goal_steps=1", "task=recall", "eval.workers=0")
    worlds = make_worlds(config, 1)
    of = worlds.world_spec
    streams = tuple(replace(s, scale=Scale.identity(s.shape[0])) for s in of.obs.streams)
    scaled = Spec(replace(of.obs, streams=streams), replace(of.action, scale=Scale.identity(of.action.width)))
    policy = build(config.policy, scaled)
    with pytest.raises(UserError, match="this world names no goal to show the policy: give eval.goals=false"):
        rollout(policy, worlds, [1])


def test_a_memory_is_held_out_as_it_is_trained(demos, tmp_path):
    """The validation loss of a policy with memory carries its state from batch to batch. Mutation: start each batch afresh."""
    config = settings(demos, tmp_path, "policy=seed", "policy.n_chunks=1", "train.batch_size=4", "train.device=cpu")
    job = _prepare(config)
    for p in job.policy.parameters():
        torch.nn.init.normal_(p, std=0.2)  # as built, bodies do not look at what they are conditioned on
    learner = Learner.create(job.policy, config, job.accelerator)
    held_out = _loader(config, job.policy, job.demos, job.spec, job.val_episodes)
    assert isinstance(held_out, ChainLoader)

    def by_hand(carry):
        noise, state, losses = torch.Generator().manual_seed(3), None, []
        with learner.averaged() as policy, torch.no_grad():
            for clip in list(held_out.one_epoch())[:6]:
                loss, after = clip_loss(policy, clip, noise, state)
                state = after if carry else None
                losses.append(loss)
        return float(torch.stack(losses).mean())

    found = validate(learner, held_out, 6, 3)
    assert found == by_hand(True) != by_hand(False)
