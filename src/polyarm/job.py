"""What training starts from: demonstrations and their split, scales, the policy as built, and batches. Nothing is written."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from polyarm import __version__, relative
from polyarm.config import OFFLINE, build
from polyarm.datasets.arrays import require_rate
from polyarm.datasets.chains import ChainLoader
from polyarm.datasets.demos import Demos
from polyarm.datasets.derived import Derived
from polyarm.datasets.goals import Goals
from polyarm.datasets.relative import RelativeRows
from polyarm.datasets.scale import fit_spec
from polyarm.datasets.windows import Items, Loader, Windows, split_episodes
from polyarm.eval.rollout import require_spec
from polyarm.learner import Learner
from polyarm.policies import checkpoint
from polyarm.policies.policy import Policy, require_limit, require_policy
from polyarm.resume import data_card, same_split
from polyarm.sim.trial import trial
from polyarm.sim.world import Missing
from polyarm.spec import Spec, UserError, require_actions, require_obs
from polyarm.task import open_demos, world_kwargs

Batches = Loader | ChainLoader


@dataclass
class Job:
    """`state`: what the checkpoint holds that training goes on from; None for a new run. `data`: which demonstrations the run
    stands on (see `resume.data_card`)."""

    accelerator: Any
    spec: Spec
    policy: Any
    windows: Windows
    held_out: Windows | None
    demos: Demos
    data: dict[str, Any]
    state: dict[str, Any] | None = None

    def said(self, config: DictConfig) -> str:
        """What is trained on, in a line."""
        held, seen = len(self.data["val"]), ", ".join(self.policy.obs_space.names)
        return (
            f"{config.task.demos.get('path')}, {len(self.data['train'])} episodes and {held} held out; seen are {seen}"
        )

    def learner(self, config: DictConfig) -> Learner:
        """New, or as the checkpoint left it."""
        learner = Learner.create(self.policy, config, self.accelerator)
        if self.state is not None:
            learner.load(self.state)
        return learner

    def batches(self, config: DictConfig, learner: Learner) -> Batches:
        """This process's share of the training windows, from the learner's step on."""
        a = learner.accelerator
        shared = {
            "rank": a.process_index, "world": a.num_processes, "start_step": learner.step,
            "num_workers": config.data.num_workers,
        }  # fmt: skip
        return self._loader(config, self.windows, shared)

    def held_out_batches(self, config: DictConfig) -> Batches | None:
        """The held-out windows, all of them in this process."""
        return None if self.held_out is None else self._loader(config, self.held_out, None)

    def _loader(self, config: DictConfig, windows: Windows, shared: dict[str, Any] | None) -> Batches:
        """Batches of windows in any order; of consecutive ones for a policy with memory, which says how many it learns through;
        with goals for a policy that takes some."""
        policy, t, more = self.policy, config.train, {"seed": config.train.seed, **(shared or {})}
        if policy.n_chunks:
            return ChainLoader(windows, t.batch_size, k=policy.n_chunks, interval=policy.reset_interval, **more)
        items: Items = windows
        if policy.goal_steps:
            items = Goals(
                windows, self.demos, Spec(policy.obs_space, self.spec.action), length=policy.goal_steps, seed=t.seed,
                after=policy.n_obs_steps, last=policy.action_space.horizon > policy.n_obs_steps,
            )  # fmt: skip
        return Loader(items, t.batch_size, partial=shared is None, neighbours=int(config.data.neighbours), **more)


def prepare(config: DictConfig, accelerator: Any = None, start: Path | None = None) -> Job:
    """The job of `config`. `start`: the checkpoint of the same run to go on from: what it stands on, its scale and its split, is
    read from it and not made anew from demonstrations that may have grown since."""
    t = config.train
    torch.set_num_threads(int(t.threads))
    accelerator = accelerator or make_accelerator(config)
    state = None if start is None else checkpoint.read_train_state(start)
    demos = open_demos(config.task)
    world = _ask_world(config)
    if isinstance(demos, Derived):
        demos.hold()
    card = (state or {}).get("data")
    if card is not None:
        train, val = same_split(card, demos, config.task.demos.get("path"))
    else:
        n = len(demos.episode_ends)
        train, val = split_episodes(n, config.data.val_ratio, config.data.seed, config.data.max_train_episodes)
        card = data_card(demos, train, val)
    spec = _fit_scales(demos, config, train) if start is None else _saved_spec(start, demos, config)
    torch.manual_seed(t.seed)
    policy = require_policy(build(config.policy, spec))
    require_limit(policy)
    if world is not None:
        require_spec(policy, world)
    policy.prepare()  # a student loads its teacher
    if accelerator.process_index:  # built alike, then each process has dropout of its own
        torch.manual_seed(t.seed * 1_000_003 + accelerator.process_index)
    windows = _windows(config, policy, demos, spec, train)
    held_out = windows.over(val) if len(val) else None
    return Job(accelerator, spec, policy, windows, held_out, demos, card, state)


def _ask_world(config: DictConfig) -> Spec | None:
    """What the numbers of the world mean that the run will be judged in; None where none is, or where a package that only
    judging needs is missing, or OpenGL, as on a machine that trains on recorded demonstrations."""
    task = config.task
    if task.env_id is None or task.measure == OFFLINE:
        return None
    try:
        return trial(task.env_id, world_kwargs(task))
    except Missing as e:
        if config.train.rollout_every:
            raise UserError(f"{e}, or give train.rollout_every=0") from e
        print(f"{e}; `polyarm eval` will need it, training goes on without", file=sys.stderr)
        return None


def make_accelerator(config: DictConfig) -> Any:
    """Device, precision and processes, as `train` says: what accelerate would read from its environment variables is not heard,
    for it changes the mathematics (a loss divided by accumulation steps, another precision)."""
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.state import AcceleratorState

    device, mixed_precision = config.train.device, config.train.mixed_precision
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"train.device={device}: give auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "train.device=cuda, but torch sees no CUDA device: give train.device=cpu, or run `polyarm doctor`"
        )
    cuda = torch.cuda.is_available() and device != "cpu"
    precision = mixed_precision
    if precision in ("auto", "native"):
        has = torch.cuda.is_bf16_supported() if cuda else precision == "native" and _cpu_has_bf16()
        precision = "bf16" if has else "no"
    if precision not in ("no", "bf16"):
        raise UserError(f"train.mixed_precision={mixed_precision}: give auto, native, no or bf16")
    # with one chunk a clip, a memory's own update gets no gradient, which several processes must be told
    parallel = DistributedDataParallelKwargs(find_unused_parameters=config.policy.get("n_chunks") == 1)
    with _deaf():
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:  # one accelerator after another, in sweeps
            AcceleratorState._reset_state(True)
        return Accelerator(cpu=not cuda, mixed_precision=precision, kwargs_handlers=[parallel])


def _cpu_has_bf16() -> bool:
    """Whether the processor multiplies in bf16 by itself; without, it would be slower than float32."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


@contextmanager
def _deaf() -> Iterator[None]:
    """Without accelerate's environment variables, naming those that would have changed something."""
    mine = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith(("ACCELERATE_", "FSDP_"))}
    told = {n: v for n, v in mine.items() if v.lower() not in ("", "0", "1", "no", "false", "auto", "default")}
    if told:
        words = ", ".join(f"{n}={v}" for n, v in sorted(told.items()))
        print(f"not used: {words}; what training does is said by train.*", file=sys.stderr)
    try:
        yield
    finally:
        os.environ.update(mine)


def versions() -> dict[str, str]:
    """What a number depends on."""
    return {"polyarm": __version__, "torch": torch.__version__}


def _windows(config: DictConfig, policy: Policy, demos: Demos, spec: Spec, episodes: np.ndarray) -> Windows:
    return Windows(
        demos, spec, episodes, horizon=policy.action_space.horizon, n_obs_steps=policy.n_obs_steps,
        n_action_steps=policy.n_action_steps, pad_after=_pad_after(config, policy), ram_gib=float(config.data.ram_gib),
        cached=_cached(config, policy, demos, spec),
    )  # fmt: skip


def _cached(config: DictConfig, policy: Any, demos: Demos, spec: Spec) -> dict[str, np.ndarray]:
    if not config.data.cache_features:
        return {}
    from polyarm.encoders.frozen import frozen_features

    return frozen_features(policy, {s.name: demos.stream(s.name) for s in spec.obs.streams})


def _fit_scales(demos: Demos, config: DictConfig, episodes: np.ndarray) -> Spec:
    spec = demos.spec
    require_rate(demos)
    if missing := [name for name in config.task.streams or () if name not in spec.obs.names]:
        raise UserError(
            f"task {config.task.name} sees {missing[0]!r}, and {config.task.demos.get('path')} holds {', '.join(spec.obs.names)}: give "
            "task.streams=[...] of these, other demonstrations, or task=own to train on all that is there"
        )
    shown = [stream.name for stream in spec.obs.streams if not stream.hidden]
    if hidden := [name for name in config.task.streams or () if name not in shown]:
        raise UserError(
            f"task.streams names {hidden[0]!r}, a label that nobody knows while acting: give some of {', '.join(shown)}"
        )
    obs, rows = spec.obs.pick(shown if config.task.streams is None else config.task.streams), None
    action = replace(spec.action, relative=relative.choose(config.task.get("action_relative"), spec.action, obs))
    spec = Spec(obs, action, {**spec.versions, **versions()})
    if action.relative is not None:
        p = config.policy
        rows = RelativeRows(demos, spec, episodes, horizon=p.horizon, n_obs_steps=p.n_obs_steps)
    return fit_spec(
        demos, spec, obs_kind=config.task.obs_scale, action_kind=config.task.action_scale, episodes=episodes,
        constant=config.data.constant, actions=rows, kinds=config.task.get("scales"),
    )  # fmt: skip


def _saved_spec(start: Path, demos: Demos, config: DictConfig) -> Spec:
    spec, where = checkpoint.read_spec(start), str(config.task.demos.get("path"))
    require_obs(spec.obs, demos.spec.obs, "this run", where)
    require_actions(spec.action, demos.spec.action, "this run", where)
    return replace(spec, versions={**spec.versions, **versions()})


def _pad_after(config: DictConfig, policy: Policy) -> int:
    wanted = config.data.pad_after
    if wanted == "all":
        return policy.action_space.horizon - policy.n_obs_steps
    if not isinstance(wanted, int) or not 0 <= wanted < policy.action_space.horizon:
        raise UserError(f"data.pad_after={wanted}: give all, or 0 to {policy.action_space.horizon - 1} rows")
    return wanted
