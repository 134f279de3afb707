"""One training loop for every policy: windows in, EMA weights out, resumable to the bit.

The module itself can be called: `polyarm.train(...)` is `polyarm.api.train(...)`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from polyarm import Verb, resume
from polyarm.config import write_yaml
from polyarm.datasets.chains import ChainLoader
from polyarm.job import Batches, Job, make_accelerator
from polyarm.job import prepare as _prepare
from polyarm.learner import Learner
from polyarm.lock import lock
from polyarm.log import Log
from polyarm.policies import checkpoint
from polyarm.policies.policy import LOSS, Policy, clip_losses, device_of
from polyarm.progress import Bar
from polyarm.spec import Clip, Spec, UserError
from polyarm.stop import Stop


def fit(config: DictConfig) -> Path:
    """Train what `config` describes; returns the run's folder.

    The folder holds config.yaml, log.jsonl, tensorboard/ and checkpoints/step_*, with checkpoints/last for the newest where
    the disk has links. If it holds a run of the same settings, that run goes on from its newest whole checkpoint. Ctrl-C saves
    one first.
    """
    run, accelerator = Path(config.output_dir), make_accelerator(config)
    start = resume.agree(accelerator, lambda: resume.look(run, config))
    job = _prepare(config, accelerator, start)
    with ExitStack() as stack:
        learner = job.learner(config)
        batches, held_out = (
            iter(job.batches(config, learner)),
            job.held_out_batches(config),
        )  # what is wrong is said first
        if accelerator.is_main_process:
            _claim(run, config, start, stack)
        if learner.step >= config.train.steps:
            print(f"{run} is trained: {learner.step} of {config.train.steps} steps", file=sys.stderr)
            return run
        if accelerator.is_main_process:
            write_yaml(run / "config.yaml", config)
            print(f"demonstrations: {job.said(config)}", file=sys.stderr)
        if job.windows.left_out() and accelerator.is_main_process:
            print(job.windows.left_out(), file=sys.stderr)
        _loop(learner, batches, held_out, job, config, run, stack)
    return run


def seconds_per_step(config: DictConfig, steps: int = 40) -> float:
    """Processor seconds of a training step (wall seconds on a GPU), from a few steps that leave nothing behind."""
    job = _prepare(config)
    learner = job.learner(config)
    cuda = job.accelerator.device.type == "cuda"
    clock = time.perf_counter if cuda else time.process_time
    batches = iter(job.batches(config, learner))
    for i in range(steps + steps // 4):
        if i == steps // 4:
            began = clock()
        learner.update(next(batches).to(job.accelerator.device))
    if cuda:
        torch.cuda.synchronize()
    return (clock() - began) / steps


def _claim(run: Path, config: DictConfig, start: Path | None, stack: ExitStack) -> None:
    """The folder, made if it is not there, is this training's alone."""
    stack.enter_context(lock(run, "training"))
    if resume.look(run, config) != start:
        raise UserError(
            f"another training has written to {run} meanwhile: give the same command again to go on from it"
        )


def _loop(
    learner: Learner, batches: Iterator[Clip], held_out: Batches | None, job: Job, config: DictConfig, run: Path,
    stack: ExitStack,
) -> None:  # fmt: skip
    t, a = config.train, learner.accelerator
    main, alone = a.is_main_process, a.num_processes == 1
    log = Log(run, learner.step) if main else None
    if log is not None:
        stack.callback(log.close)
    rollouts = _Rollouts(config) if t.rollout_every and main else None
    if rollouts is not None:
        stack.callback(rollouts.close)
    tally, saved, whole = Tally(a.device), learner.step, True
    due = lambda every: bool(every) and (learner.step % every == 0 or learner.step == t.steps)

    def save(state: dict[str, Any]) -> None:
        nonlocal saved
        _save(learner, {**state, "data": job.data}, config, job.spec, run)
        saved = learner.step

    bar = stack.enter_context(
        Bar(f"train {config.policy.name} on {config.task.name}", t.steps, learner.step, show=main)
    )
    stop = stack.enter_context(Stop(waits=not alone))
    try:
        while learner.step < t.steps:
            with stop.held():
                clip = next(batches).to(a.device)
                whole = False
                tally.add(learner.update(clip), clip)
                whole = True
                ended = not alone and due(t.log_every) and _any(stop.asked, a)  # processes end at the same step
                state = learner.state() if ended or due(t.checkpoint_every) or learner.step == t.steps else None
                if log is not None and (state is not None or due(t.log_every)):
                    tally.require_finite(learner.step, t.lr)
                if log is not None and due(t.log_every):  # before the checkpoint: after a kill it would not come again
                    row = tally.row(learner, a.num_processes)
                    log.add(learner.step, **row)
                    bar.at(learner.step, tally.words(row))
                    tally = Tally(a.device)
                if log is not None and state is not None:  # before what may fail for less, such as a rollout
                    save(state)
            if log is not None and held_out is not None and due(t.val_every):
                log.add(learner.step, **validate(learner, held_out, t.val_batches, t.seed))
            if log is not None and rollouts is not None and due(t.rollout_every):
                log.add(learner.step, **_played(learner, rollouts))
            if ended:
                raise KeyboardInterrupt
    except (
        BaseException
    ):  # what was trained since the last checkpoint is not lost with what failed, unless it is no number
        if alone and whole and learner.step > saved:
            with suppress(Exception):
                tally.require_finite(learner.step, t.lr)
                save(learner.state())
        if saved:
            print(f"saved {run / 'checkpoints' / _name(saved)}", file=sys.stderr)
        raise


class Tally:
    """Losses by name and windows seen since a row of the log."""

    def __init__(self, device: torch.device):
        self.device, self.steps, self.samples = device, 0, 0
        self.totals: dict[str, Tensor] = {}
        self.since = time.perf_counter()

    def add(self, losses: dict[str, Tensor], clip: Clip) -> None:
        for name, loss in losses.items():
            self.totals[name] = self.totals.get(name, torch.zeros((), device=self.device)) + loss
        self.steps, self.samples = self.steps + 1, self.samples + clip.action.shape[0] * clip.action.shape[1]

    def require_finite(self, step: int, lr: float) -> None:
        for name, total in self.totals.items():
            if not bool(total.isfinite()):
                what = "the loss" if name == LOSS else f"the loss {name!r}"
                raise UserError(
                    f"{what} is {float(total) / self.steps} at step {step}: lower train.lr={lr}, or look at the data with "
                    "`polyarm data info`"
                )

    def row(self, learner: Learner, processes: int) -> dict[str, float]:
        means = {_key(name): float(total) / self.steps for name, total in self.totals.items()}
        speed = self.samples * processes / (time.perf_counter() - self.since)
        return {**means, "lr": learner.schedule.get_last_lr()[0], "samples_per_s": speed}

    def words(self, row: dict[str, float]) -> str:
        losses = "  ".join(f"{name.removeprefix('loss.')} {row[name]:.4f}" for name in map(_key, self.totals))
        return f"{losses}  {row['samples_per_s']:,.0f} samples/s"


def _key(name: str) -> str:
    """loss, and loss.NAME for each of several."""
    return LOSS if name == LOSS else f"{LOSS}.{name}"


@torch.no_grad()
def validate(learner: Learner, held_out: Batches, batches: int, seed: int) -> dict[str, float]:
    """{"val_loss": ...}, and val_loss.NAME for each of several: means of the EMA weights on held-out episodes as they are, with
    the same noise each time. Nothing is augmented or hidden. A memory goes on from batch to batch."""
    generator = torch.Generator(learner.accelerator.device).manual_seed(seed)
    found, state = [], None
    with learner.averaged() as policy:
        for clip, _ in zip(held_out.one_epoch(), range(batches), strict=False):
            state = state if isinstance(held_out, ChainLoader) else None
            losses, state = clip_losses(policy, clip.to(learner.accelerator.device), generator, state, augment=False)
            found.append(losses)
    return {f"val_{_key(name)}": float(torch.stack([x[name] for x in found]).mean()) for name in found[0]}


def _save(learner: Learner, state: dict[str, Any], config: DictConfig, spec: Spec, run: Path) -> None:
    folder = run / "checkpoints" / _name(learner.step)
    with learner.averaged() as policy:
        weights = {name: x.detach().clone() for name, x in policy.state_dict().items()}  # type: ignore[attr-defined]
        saved = Spec(spec.obs, policy.action_space, spec.versions)
    for name, x in [*weights.items(), *state["model"].items()]:
        if not bool(x.isfinite().all()):
            raise UserError(
                f"the weights {name!r} are not finite at step {learner.step}, so they are not saved: lower train.lr={config.train.lr}"
            )
    checkpoint.save(folder, config, saved, weights, state)
    checkpoint.point_last(run, folder)
    checkpoint.prune(run, config.train.keep_states)


def _played(learner: Learner, rollouts: _Rollouts) -> dict[str, Any]:
    """What the rollouts found; where they failed, why: training goes on."""
    with learner.averaged() as policy:
        try:
            return rollouts.run(policy)
        except Exception as e:  # noqa: BLE001  whatever a simulator raises
            print(f"no rollouts at step {learner.step}: {type(e).__name__}: {e}", file=sys.stderr)
            return {"rollouts_failed": f"{type(e).__name__}: {e}"}


def _name(step: int) -> str:
    return f"step_{step:08d}"


def _any(asked: bool, accelerator: Any) -> bool:
    """Whether one of the processes was asked to stop."""
    return bool(accelerator.reduce(torch.tensor(float(asked), device=accelerator.device)) > 0)


class _Rollouts:
    """Environments kept open for the rollouts between training steps, which are played as `polyarm eval` would."""

    SEEDS = 1_000_000
    """Seeds past `eval.seed`: what training looked at is not what judges it."""

    def __init__(self, config: DictConfig):
        from polyarm.eval.rollout import make_worlds

        self.config = config
        self.episodes = config.train.rollout_episodes
        self.worlds = make_worlds(config, min(self.episodes, config.eval.n_envs))

    def run(self, policy: Policy) -> dict[str, Any]:
        from polyarm.eval.judge import judge, terms
        from polyarm.eval.latency import ahead
        from polyarm.policies.pick import Picked

        if self.config.eval.pick > 1:
            policy = Picked(policy, policy, self.config.eval.pick)
        first = self.config.eval.seed + self.SEEDS
        seeds = range(first, first + self.episodes)
        rows = ahead(self.config, policy, self.worlds, device_of(policy)).rows
        _, found = judge(policy, self.worlds, seeds, **terms(self.config), ahead=rows)
        return {name: found[name] for name in ("success_rate", "score", "interval", "n")}

    def close(self) -> None:
        self.worlds.close()


sys.modules[__name__].__class__ = Verb
