"""One training loop for every policy: windows in, EMA weights out, resumable to the bit."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import isnan
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from polyarm import __version__, relative
from polyarm.config import build, read_yaml, write_yaml
from polyarm.datasets.chains import ChainLoader
from polyarm.datasets.demos import Demos
from polyarm.datasets.goals import Goals
from polyarm.datasets.relative import RelativeRows
from polyarm.datasets.scale import fit_spec
from polyarm.datasets.windows import Items, Loader, Windows, split_episodes
from polyarm.learner import Learner
from polyarm.log import Log
from polyarm.policies import checkpoint
from polyarm.policies.policy import Policy, clip_loss, require_limit, require_policy
from polyarm.progress import Bar
from polyarm.spec import Clip, Spec, UserError
from polyarm.task import open_demos

MAY_CHANGE = (
    *("output_dir", "eval", "collect", "hydra", "data.num_workers", "data.ram_gib", "train.resume", "train.steps"),
    *("train.log_every", "train.val_every", "train.val_batches", "train.checkpoint_every"),
    *("train.rollout_every", "train.rollout_episodes", "train.threads", "train.device"),
)
"""Settings that a resumed run may give anew; any other makes it another run."""


def fit(config: DictConfig) -> Path:
    """Train what `config` describes; returns the run's folder.

    The folder holds config.yaml, log.jsonl, tensorboard/ and checkpoints/step_*, with checkpoints/last for the newest.
    If it holds a run of the same settings, that run goes on from its last checkpoint.
    """
    run = Path(config.output_dir)
    job = _prepare(config)
    start = _begin(run, config, job.accelerator.is_main_process)
    learner = Learner.create(job.policy, config, job.accelerator)
    if start is not None:
        learner.load(torch.load(start / "train_state.pt", map_location="cpu", weights_only=True))
    loader = _loader(config, job.policy, job.demos, job.spec, job.train_episodes, learner)
    held_out = None
    if len(job.val_episodes):
        held_out = _loader(config, job.policy, job.demos, job.spec, job.val_episodes)
    _loop(learner, iter(loader), held_out, config, job.spec, run)
    return run


def seconds_per_step(config: DictConfig, steps: int = 40) -> float:
    """Processor seconds of a training step (wall seconds on a GPU), from a few steps that leave nothing behind."""
    job = _prepare(config)
    learner = Learner.create(job.policy, config, job.accelerator)
    cuda = job.accelerator.device.type == "cuda"
    clock = time.perf_counter if cuda else time.process_time
    batches = iter(_loader(config, job.policy, job.demos, job.spec, job.train_episodes, learner))
    for i in range(steps + steps // 4):
        if i == steps // 4:
            began = clock()
        learner.update(next(batches).to(job.accelerator.device))
    if cuda:
        torch.cuda.synchronize()
    return (clock() - began) / steps


@dataclass
class _Job:
    """What training starts from; nothing is written yet."""

    accelerator: Any
    demos: Demos
    spec: Spec
    policy: Any
    train_episodes: Any
    val_episodes: Any


def _prepare(config: DictConfig) -> _Job:
    t = config.train
    torch.set_num_threads(int(t.threads))
    accelerator = _accelerator(t.device, t.mixed_precision, unused=config.policy.get("n_chunks") == 1)
    demos = open_demos(config.task)
    train_episodes, val_episodes = split_episodes(
        len(demos.episode_ends), config.data.val_ratio, config.data.seed, config.data.max_train_episodes
    )
    spec = _fit_scales(demos, config, train_episodes)
    torch.manual_seed(t.seed)
    policy = require_policy(build(config.policy, spec))
    require_limit(policy)
    policy.prepare()  # a student loads its teacher
    return _Job(accelerator, demos, spec, policy, train_episodes, val_episodes)


def _loop(
    learner: Learner, batches: Iterator[Clip], held_out: Batches | None, config: DictConfig, spec: Spec, run: Path
) -> None:
    t, main = config.train, learner.accelerator.is_main_process
    log = Log(run, learner.step) if main else None
    rollouts = _Rollouts(config) if t.rollout_every and main else None
    device = learner.accelerator.device
    total, count, samples, since = torch.zeros((), device=device), 0, 0, time.perf_counter()
    due = lambda every: bool(every) and (learner.step % every == 0 or learner.step == t.steps)
    with Bar(f"train {config.policy.name} on {config.task.name}", t.steps, learner.step, show=main) as bar:
        while learner.step < t.steps:
            clip = next(batches).to(device)
            total += learner.update(clip)
            count, samples = count + 1, samples + clip.action.shape[0] * clip.action.shape[1]
            state = learner.state() if due(t.checkpoint_every) else None
            if not main or log is None:
                continue
            if due(t.log_every):
                seconds = time.perf_counter() - since
                loss = float(total) / count
                if isnan(loss):
                    raise UserError(
                        f"the loss is NaN at step {learner.step}: lower train.lr={t.lr}, or look at the data with `polyarm data info`"
                    )
                speed = samples * learner.accelerator.num_processes / seconds
                log.add(learner.step, loss=loss, lr=learner.schedule.get_last_lr()[0], samples_per_s=speed)
                bar.at(learner.step, f"loss {loss:.4f}  {speed:,.0f} samples/s")
            if held_out is not None and due(t.val_every):
                log.add(learner.step, val_loss=validate(learner, held_out, t.val_batches, t.seed))
            if rollouts is not None and due(t.rollout_every):
                with learner.averaged() as policy:
                    log.add(learner.step, **rollouts.run(policy))
            if state is not None:
                _save(learner, state, config, spec, run)
            if due(t.log_every):
                total, count, samples, since = torch.zeros((), device=device), 0, 0, time.perf_counter()
    if log is not None:
        log.close()


def _windows(config: DictConfig, policy: Any, demos: Demos, spec: Spec, episodes: Any) -> Windows:
    return Windows(
        demos, spec, episodes, horizon=policy.action_space.horizon, n_obs_steps=policy.n_obs_steps,
        n_action_steps=policy.n_action_steps, pad_after=_pad_after(config, policy), ram_gib=float(config.data.ram_gib),
    )  # fmt: skip


Batches = Loader | ChainLoader


def _loader(
    config: DictConfig, policy: Any, demos: Demos, spec: Spec, episodes: Any, learner: Learner | None = None
) -> Batches:
    """Batches of windows in any order; of consecutive ones for a policy with memory, which says how many it learns through;
    with goals for a policy that takes some. Without a learner: for validation, in this process alone."""
    windows, t = _windows(config, policy, demos, spec, episodes), config.train
    shared: dict[str, Any] = {"seed": t.seed}
    if learner is not None:
        shared |= {
            "rank": learner.accelerator.process_index, "world": learner.accelerator.num_processes,
            "start_step": learner.step, "num_workers": config.data.num_workers,
        }  # fmt: skip
    if policy.n_chunks:
        return ChainLoader(windows, t.batch_size, k=policy.n_chunks, interval=policy.reset_interval, **shared)
    items: Items = windows
    if policy.goal_steps:
        items = Goals(
            windows, demos, Spec(policy.obs_space, spec.action), length=policy.goal_steps, seed=t.seed,
            after=policy.n_obs_steps, last=policy.action_space.horizon > policy.n_obs_steps,
        )  # fmt: skip
    return Loader(items, t.batch_size, partial=learner is None, **shared)


@torch.no_grad()
def validate(learner: Learner, held_out: Batches, batches: int, seed: int) -> float:
    """Mean loss of the EMA weights on held-out episodes, with the same noise each time. A memory goes on from batch to batch."""
    generator = torch.Generator(learner.accelerator.device).manual_seed(seed)
    losses, state = [], None
    with learner.averaged() as policy:
        for clip, _ in zip(held_out.one_epoch(), range(batches), strict=False):
            state = state if isinstance(held_out, ChainLoader) else None
            loss, state = clip_loss(policy, clip.to(learner.accelerator.device), generator, state)
            losses.append(loss)
    return float(torch.stack(losses).mean())


def _save(learner: Learner, state: dict[str, Any], config: DictConfig, spec: Spec, run: Path) -> None:
    folder = run / "checkpoints" / f"step_{learner.step:08d}"
    with learner.averaged() as policy:
        weights = {name: x.detach().clone() for name, x in policy.state_dict().items()}  # type: ignore[attr-defined]
        saved = Spec(spec.obs, policy.action_space, spec.versions)
    checkpoint.save(folder, config, saved, weights, state)
    link = run / "checkpoints" / ".last"
    link.unlink(missing_ok=True)
    link.symlink_to(folder.name)
    link.replace(run / "checkpoints" / "last")


class _Rollouts:
    """Environments kept open for the rollouts between training steps."""

    def __init__(self, config: DictConfig):
        from polyarm.eval.rollout import make_worlds

        self.config = config
        self.episodes = config.train.rollout_episodes
        self.worlds = make_worlds(config, min(self.episodes, config.eval.n_envs))

    def run(self, policy: Policy) -> dict[str, Any]:
        from polyarm.eval.rollout import rollout
        from polyarm.eval.score import summary

        # other seeds than `polyarm eval`'s: what training looked at is not what judges it
        seeds = range(self.config.eval.seed + 1_000_000, self.config.eval.seed + 1_000_000 + self.episodes)
        found = summary([e.outcome for e in rollout(policy, self.worlds, list(seeds))], self.config.task.measure)
        return {name: found[name] for name in ("success_rate", "score", "interval", "n") if name in found}


def _accelerator(device: str, mixed_precision: str, unused: bool = False) -> Any:
    """`unused`: some parameters get no gradient, which several processes must be told."""
    from accelerate import Accelerator, DistributedDataParallelKwargs

    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"train.device={device}: give auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "train.device=cuda, but torch sees no CUDA device: give train.device=cpu, or run `polyarm doctor`"
        )
    cuda = torch.cuda.is_available() and device != "cpu"
    precision = (
        ("bf16" if cuda and torch.cuda.is_bf16_supported() else "no") if mixed_precision == "auto" else mixed_precision
    )
    if precision not in ("no", "bf16"):
        raise UserError(f"train.mixed_precision={mixed_precision}: give auto, no or bf16")
    parallel = DistributedDataParallelKwargs(find_unused_parameters=unused)
    return Accelerator(cpu=not cuda, mixed_precision=precision, kwargs_handlers=[parallel])


def _fit_scales(demos: Demos, config: DictConfig, episodes: Any) -> Spec:
    spec = demos.spec
    obs, rows = spec.obs.pick(config.task.streams), None
    action = replace(spec.action, relative=relative.choose(config.task.get("action_relative"), spec.action, obs))
    spec = Spec(obs, action, {**spec.versions, **versions()})
    if action.relative is not None:
        p = config.policy
        rows = RelativeRows(demos, spec, episodes, horizon=p.horizon, n_obs_steps=p.n_obs_steps)
    return fit_spec(
        demos, spec, obs_kind=config.task.obs_scale, action_kind=config.task.action_scale, episodes=episodes,
        constant=config.data.constant, actions=rows, kinds=config.task.get("scales"),
    )  # fmt: skip


def _pad_after(config: DictConfig, policy: Policy) -> int:
    wanted = config.data.pad_after
    if wanted == "all":
        return policy.action_space.horizon - policy.n_obs_steps
    if not isinstance(wanted, int) or not 0 <= wanted < policy.action_space.horizon:
        raise UserError(f"data.pad_after={wanted}: give all, or 0 to {policy.action_space.horizon - 1} rows")
    return wanted


def versions() -> dict[str, str]:
    """What a number depends on."""
    return {"polyarm": __version__, "torch": torch.__version__}


def _begin(run: Path, config: DictConfig, main: bool) -> Path | None:
    """Claim the folder; the checkpoint to go on from, or None for a new run."""
    if not (run / "config.yaml").exists():
        if main:
            run.mkdir(parents=True, exist_ok=True)
            write_yaml(run / "config.yaml", config)
        return None
    if not config.train.resume:
        raise UserError(f"{run} holds a run already: give another output_dir, or train.resume=true to go on with it")
    old, new = _flat(read_yaml(run / "config.yaml")), _flat(config)
    for key in sorted(old.keys() | new.keys()):
        kept = any(key == may or key.startswith(may + ".") for may in MAY_CHANGE)
        if not kept and old.get(key) != new.get(key):
            raise UserError(
                f"{run} holds a run with {key}={old.get(key)}, now it is {new.get(key)}: give another output_dir, or {key}={old.get(key)}"
            )
    if (run / "checkpoints" / "last").exists():
        folder = checkpoint.find(run)
        if old["train.steps"] != new["train.steps"] and main:
            write_yaml(run / "config.yaml", config)
        return folder
    return None


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in (OmegaConf.to_container(config) if isinstance(config, DictConfig) else config).items():
        if isinstance(value, dict):
            out |= _flat(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value
    return out
