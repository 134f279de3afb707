"""`polyarm eval`: play fresh seeds, film some of them, write result.json and the report."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from polyarm.config import override
from polyarm.eval.agent import Agent
from polyarm.eval.report import write_report
from polyarm.eval.rollout import Played, Worlds, make_worlds, require_world, rollout
from polyarm.eval.score import Outcome, summary
from polyarm.eval.video import write_mp4
from polyarm.log import read_log
from polyarm.policies import checkpoint
from polyarm.policies.mixture import Mixture
from polyarm.policies.pick import Picked
from polyarm.policies.policy import Policy
from polyarm.progress import Bar
from polyarm.spec import Spec, UserError
from polyarm.task import has_demos, open_demos, world_kwargs

HEADLINE = {"success": "success_rate", "score": "score"}


def evaluate(
    sources: Sequence[Path],
    overrides: Sequence[str],
    weights: Sequence[float] = (1.0,),
    seconds: dict[str, float] | None = None,
) -> dict[str, Any]:
    """Judge a checkpoint, or a mixture of several; returns what result.json holds.

    `sources`: training runs or checkpoints, the first of which names the task; `overrides`: settings over the first one's
    own, `output_dir` for the results (default: eval/ in the first run, eval_mixture/ for a mixture); `weights`: one a source.
    `seconds`: of stages before this one, for the report.
    """
    began = time.perf_counter()
    folders = [checkpoint.find(source) for source in sources]
    folder = folders[0]
    own = checkpoint.read_config(folder)
    own.output_dir = str(default_output(folder, len(folders)))
    config = override(own, overrides)
    e = config.eval
    if e.episodes < 1:
        raise UserError(f"eval.episodes={e.episodes}: give at least 1")
    torch.set_num_threads(int(e.threads))
    device = pick_device(e.device)
    policy = load_policy(folders, config, overrides, weights, device)
    seeds = list(range(e.seed, e.seed + e.episodes))
    worlds = make_worlds(config, min(e.n_envs, len(seeds)))
    try:
        require_world(policy, worlds)
        _require_versions(checkpoint.read_spec(folder), worlds.world_spec, e.allow_other_versions)
        with Bar(f"evaluate {policy.name} on {config.task.name}", len(seeds)) as bar:
            show = lambda done: bar.at(len(done), _running(done, config.task.measure))
            played = rollout(policy, worlds, seeds, e.n_action_steps, device, show, e.goals)
        latency, evaluations = time_chunks(policy, worlds, seeds[0], device)
    finally:
        worlds.close()
    result = {
        "policy": policy.name,
        "task": config.task.name,
        "checkpoint": os.path.relpath(folder, config.output_dir),
        **(
            {"parts": [os.path.relpath(f, config.output_dir) for f in folders], "weights": list(weights)}
            if len(folders) > 1
            else {}
        ),
        **summary([p.outcome for p in played], config.task.measure, stages=len(worlds.stages)),
        "n_action_steps": e.n_action_steps or policy.n_action_steps,
        "network_evaluations": evaluations,
        "latency_ms": latency,
        "seconds": {**(seconds or {}), "evaluate": round(time.perf_counter() - began, 2)},
        "versions": {**policy_versions(), **worlds.world_spec.versions},
        "machine": machine(device),
    }
    out = Path(config.output_dir)
    write(out, result, played, config, folder)
    low, high = result["interval"]
    print(
        f"{result['measure']} {result[HEADLINE[result['measure']]]:.3f} on {result['n']} fresh seeds, "
        f"{result['interval_kind']} interval {low:.3f} to {high:.3f}{_stages(result)}\nreport: {out / 'report.html'}",
        file=sys.stderr,
    )
    return result


def write(out: Path, result: dict[str, Any], played: list[Played], config: DictConfig, folder: Path) -> None:
    """result.json, episodes.npz (the actions that replay every episode; energies), clips and report.html."""
    from polyarm.datasets.info import info

    out.mkdir(parents=True, exist_ok=True)
    actions: dict[str, Any] = {f"seed_{p.outcome.seed}": p.actions for p in played}
    actions |= {f"energy_{p.outcome.seed}": p.energy for p in played if p.energy is not None}
    np.savez_compressed(out / "episodes.npz", **actions)
    clips = film(config, choose(played, config.eval.videos), out / "clips")
    run = folder.parent.parent
    work = out / "result.json.partial"
    work.write_text(json.dumps(result, indent=1))
    work.replace(out / "result.json")
    write_report(
        out / "report.html", title=f"{result['policy']} on {config.task.name}", result=result,
        log=read_log(run / "log.jsonl") or None,
        data_card=info(open_demos(config.task)) if has_demos(config.task) else None,
        clips=clips, energies=[(p.outcome.success, p.energy) for p in played if p.energy is not None],
        config_yaml=(folder / "config.yaml").read_text(),
    )  # fmt: skip


def choose(played: Sequence[Played], videos: int) -> list[Played]:
    """Episodes worth seeing: up to half of them failures (or the lowest scores), the rest successes, in seed order."""
    ranked = sorted(played, key=lambda p: (p.outcome.success, p.outcome.score))
    failures = [p for p in ranked if not p.outcome.success][: max(1, videos // 2)]
    rest = [p for p in played if p not in failures]
    return [*failures, *rest[: max(0, videos - len(failures))]][:videos]


def film(config: DictConfig, played: Sequence[Played], folder: Path) -> list[tuple[Path, str]]:
    """Replay chosen episodes with rendering. The worlds are deterministic, so the recorded actions give the same episode."""
    from polyarm.sim.world import make_world

    clips = []
    for p in played:
        world = make_world(config.task.env_id, world_kwargs(config.task))
        world.reset(seed=p.outcome.seed)
        frames = [world.render()]
        success = False
        for action in p.actions:
            success |= bool(world.step(action)[4]["is_success"])
            frames.append(world.render())
        rate = world.unwrapped.world_spec.action.rate_hz
        world.close()
        if success != p.outcome.success:
            raise RuntimeError(
                f"replaying seed {p.outcome.seed} of {config.task.env_id} gave another outcome: the world is not deterministic"
            )
        path = folder / f"seed_{p.outcome.seed}.mp4"
        write_mp4(path, frames, rate)
        verdict = "success" if success else "failure"
        clips.append(
            (path, f"seed {p.outcome.seed}: {verdict} after {p.outcome.steps} steps, best score {p.outcome.score:.2f}")
        )
    return clips


def load_policy(
    folders: Sequence[Path],
    config: DictConfig,
    overrides: Sequence[str],
    weights: Sequence[float],
    device: torch.device,
) -> Policy:
    """The checkpoint's policy, the first with the settings of `config`; or the mixture of several. With eval.pick above 1
    the best of so many chunks by the first part that has an energy."""
    first = checkpoint.load(folders[0], config, device)
    parts = [first, *(checkpoint.load(f, device=device) for f in folders[1:])]
    policy = first
    if len(parts) > 1:
        policy = Mixture(
            parts, [float(w) for w in weights], first.sampler if "sampler" in " ".join(overrides) else None
        )
    if config.eval.pick == 1:
        return policy
    judge = next((p for p in parts if p.energy is not None), first)
    return Picked(policy, judge, config.eval.pick)


def time_chunks(
    policy: Policy, worlds: Worlds, seed: int, device: torch.device, n: int = 30
) -> tuple[list[float], int]:
    """Milliseconds to plan one chunk for one world, n times, and the network evaluations each takes: calls of the policy's
    bodies, where one whose gradient is taken counts three (the way back costs about two ways there)."""
    mask = np.zeros(worlds.num_envs, bool)
    mask[0] = True
    obs, _ = worlds.reset(seed=[seed, *[None] * (worlds.num_envs - 1)], options={"reset_mask": mask})
    agent = Agent(policy, 1, 1, device=device)
    count = 0

    def counted(module: Any, inputs: Any, output: Any) -> None:
        nonlocal count
        count += 3 if any(isinstance(x, torch.Tensor) and x.requires_grad for x in inputs) else 1

    bodies = [part.body for part in _parts(policy) if hasattr(part, "body")]
    hooks = [body.register_forward_hook(counted) for body in bodies]
    try:
        for _ in range(n + 1):
            agent.act({name: x[:1] for name, x in obs.items()})
    finally:
        for hook in hooks:
            hook.remove()
    return [round(1000 * s, 3) for s in agent.seconds[1:]], count // (n + 1)


def bookkeeping(policy: Mixture, worlds: Worlds, seed: int, device: torch.device, n: int = 100) -> float:
    """What a mixture does beyond its parts, over the time of its network calls: time a chunk outside the bodies, less the
    same of each part alone on the same grid. Taken in turns, medians; on a processor in its own time, which other work on
    the machine disturbs least. (Inside the bodies a mixture may be slower too: two networks share the cache.)"""
    obs, _ = worlds.reset(seed=[seed] * worlds.num_envs, options={})
    one = {name: x[:1] for name, x in obs.items()}
    clock = time.thread_time if device.type == "cpu" else time.perf_counter
    inside, entered = 0.0, 0.0

    def enter(*_: Any) -> None:
        nonlocal entered
        entered = clock()

    def leave(*_: Any) -> None:
        nonlocal inside
        inside += clock() - entered

    bodies = [part.body for part in _parts(policy) if hasattr(part, "body")]
    hooks = [hook for m in bodies for hook in (m.register_forward_pre_hook(enter), m.register_forward_hook(leave))]
    agents = [Agent(policy, 1, 1, device=device)]
    agents += [Agent(part, 1, 1, policy.sampler, device) for part in policy.parts]
    outside: list[list[float]] = [[] for _ in agents]
    within = []
    for _ in range(n + 1):
        for agent, taken in zip(agents, outside, strict=True):
            inside, began = 0.0, clock()
            agent.act(one)
            taken.append(clock() - began - inside)
            within += [inside] if agent is agents[0] else []
    for hook in hooks:
        hook.remove()
    whole, *parts = (float(np.median(taken[1:])) for taken in outside)
    return (whole - sum(parts)) / float(np.median(within[1:]))


def _parts(policy: Any) -> list[Any]:
    """The trained policies within a policy."""
    if not policy.parts:
        return [policy]
    return list({id(p): p for part in policy.parts for p in ([part] if part is policy else _parts(part))}.values())


def default_output(folder: Path, parts: int) -> Path:
    run = folder.parent.parent if folder.parent.name == "checkpoints" else folder
    return run / ("eval" if parts == 1 else "eval_mixture")


def pick_device(name: str) -> torch.device:
    """auto: CUDA where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device={name}: give auto, cpu or cuda") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device={name}, but torch sees no CUDA device: give device=cpu, or run `polyarm doctor`")
    return device


def policy_versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("polyarm", "torch", "numpy", "diffusers", "gymnasium"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine(device: torch.device) -> dict[str, Any]:
    from polyarm.config import cpus

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    return {"cpu": cpu, "cores": cpus(), "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None}


def _stages(result: dict[str, Any]) -> str:
    shares = ", ".join(f"{name} {share:.2f}" for name, share in result.get("stages", {}).items())
    return f"\nepisodes with at least n subtasks done: {shares}" if shares else ""


def _running(done: list[Outcome], measure: str) -> str:
    values = [o.success if measure == "success" else o.score for o in done]
    return f"{measure} {np.mean(values):.2f}"


def _require_versions(trained: Spec, world: Spec, allow: bool) -> None:
    old, new = trained.versions.get("env"), world.versions.get("env")
    if old and new and old != new and not allow:
        raise UserError(
            f"the demonstrations come from {old}, this world is {new}: collect and train again, "
            "or give eval.allow_other_versions=true to judge it all the same"
        )
