"""`polyarm eval`: play fresh seeds, keep what came of them, then film some and write the report."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from datetime import datetime
from inspect import unwrap
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from polyarm.config import OFFLINE, override
from polyarm.eval import place
from polyarm.eval.effect import require_effect
from polyarm.eval.film import choose, film, recorded
from polyarm.eval.judge import judge, terms
from polyarm.eval.latency import Ahead, ahead, swept
from polyarm.eval.machine import machine, pick_device, policy_versions
from polyarm.eval.report import write_report
from polyarm.eval.rollout import Played, make_worlds, require_world
from polyarm.eval.scene import Box, Scene, has_scene, observed, scene
from polyarm.eval.score import HEADLINE, seeds_said
from polyarm.eval.seeds import demonstrated
from polyarm.eval.seen import Seen, first, image_streams, saw
from polyarm.eval.timing import time_chunks
from polyarm.log import read_log
from polyarm.policies import checkpoint
from polyarm.policies.mixture import Mixture
from polyarm.policies.pick import Picked
from polyarm.policies.policy import Policy
from polyarm.sim.vector import ShardedVectorEnv
from polyarm.spec import Spec, UserError
from polyarm.task import open_demos


def evaluate(
    sources: Sequence[Path],
    overrides: Sequence[str],
    weights: Sequence[float] = (1.0,),
    seconds: dict[str, float] | None = None,
    prefer: Path | None = None,
    command: str | None = None,
) -> dict[str, Any]:
    """Judge a checkpoint, or a mixture of several; returns what result.json holds.

    `sources`: training runs or checkpoints, the first of which names the task; `overrides`: settings over the first one's
    own, `output_dir` for the results (default: see `place.places`; before them `prefer`); `weights`: one a source.
    `seconds`: of stages before this one, for the report; `command`: what a user typed (default: the `polyarm eval` that does the
    same).

    result.json and episodes.npz come first. What can fail after them for want of a display, a codec or a disk (latency, clips,
    report) is then a line, and one of the result's `notes`.
    """
    began = time.perf_counter()
    made = {"date": now(), "command": command or line(sources, overrides, weights)}
    folders = [checkpoint.find(source) for source in sources]
    owns = [checkpoint.read_config(folder) for folder in folders]
    config = override(owns[0], overrides)
    require_effect(owns, config, overrides)
    if config.task.measure == OFFLINE:
        from polyarm.eval import held_out

        return held_out.evaluate(folders, owns, config, overrides, weights, seconds, prefer, made)
    configs, e = [config, *owns[1:]], config.eval
    torch.set_num_threads(int(e.threads))
    device = pick_device(e.device)
    policy = load_policy(folders, config, overrides, weights, device)
    seeds = list(range(e.seed, e.seed + e.episodes))
    words = [w for w in overrides if place.key_of(w) != "output_dir"]
    wanted = place.identity(folders, weights, place.acting(override(owns[0], []), config))
    if len(words) < len(overrides):
        places = [Path(config.output_dir)]
    else:
        places = [*([prefer] if prefer else []), *place.places(folders, weights, words, wanted)]
    with closing(make_worlds(config, min(e.n_envs, len(seeds)))) as worlds:
        require_world(policy, worlds)
        judged = ahead(config, policy, worlds, device)
        sweep = swept(config, policy, judged, worlds)
        notes = require_versions(folders, worlds.world_spec, e.allow_other_versions)
        with place.claim(places, wanted) as out:
            config.output_dir = str(out)
            played, found = judge(
                policy, worlds, seeds, **terms(config), ahead=judged.rows, device=device, stages=len(worlds.stages),
                title=f"evaluate {policy.name} on {config.task.name}",
            )  # fmt: skip
            result = {
                **made,
                "policy": policy.name,
                "task": config.task.name,
                **sources_said(folders, weights, out),
                **found,
                "demonstrated": demonstrated([c.task for c in configs], seeds),
                "n_action_steps": e.n_action_steps or policy.n_action_steps,
                "ahead": judged.rows,
                "latency_ms": judged.latency_ms,
                "replays": worlds.replays,
                "acting": acting(policy, config, device),
                "overrides": words,
                "identity": wanted,
                "seconds": {**(seconds or {}), "evaluate": round(time.perf_counter() - began, 2)},
                "versions": {**policy_versions(), **worlds.world_spec.versions},
                "trained_with": [dict(checkpoint.read_spec(folder).versions) for folder in folders],
                "machine": machine(device),
                "notes": notes,
            }
            keep(out, result, played)
            if worlds.replays:
                timed = attempt("latency", lambda: time_chunks(policy, worlds, seeds[0], device), notes)
                result |= dict(zip(("chunk_ms", "network_evaluations"), timed or (), strict=False))
            if sweep:
                play = lambda: over_latency(policy, worlds, config, device, sweep, judged, found)
                result |= {"latencies": attempt("success over latency", play, notes) or []}
            views, scenes = look(policy, worlds, seeds[0], workspace(config.task), notes)
            clips = shoot(config, played, out / "clips", worlds, notes)
            attempt(
                "report",
                lambda: report(out, result, played, configs, folders, clips, views=views, scenes=scenes),
                notes,
            )
            attempt("latency and notes in result.json", lambda: place.write_result(out, result), notes)
    tell(result, out)
    return result


def keep(out: Path, result: dict[str, Any], played: Sequence[Played]) -> None:
    """result.json, and episodes.npz: the actions that replay every episode; energies."""
    arrays: dict[str, Any] = {f"seed_{p.outcome.seed}": p.actions for p in played}
    arrays |= {f"energy_{p.outcome.seed}": p.energy for p in played if p.energy is not None}
    keep_arrays(out, result, arrays)


def keep_arrays(out: Path, result: dict[str, Any], arrays: dict[str, Any]) -> None:
    """result.json and episodes.npz. What an older evaluation of the same showed beside them goes."""
    place.write_result(out, result)
    for old in (out / "report.html", *(out / "clips").glob("seed_*.mp4")):
        old.unlink(missing_ok=True)

    def save() -> None:
        with place.written(out / "episodes.npz") as work, work.open("wb") as file:
            np.savez_compressed(file, **arrays)

    attempt("episodes.npz", save, result["notes"])


def look(
    policy: Policy, worlds: ShardedVectorEnv, seed: int, box: Box | None, notes: list[str]
) -> tuple[list[Seen], list[Scene]]:
    """What a policy of images saw first in the episode of `seed`, and what depth cameras measured then."""
    space = worlds.world_spec.obs
    if not image_streams(policy) and not has_scene(space):
        return [], []
    if not worlds.replays:
        _note("no pictures of what the policy saw: this world is not reset for them", notes)
        return [], []
    if (obs := attempt("pictures of what the policy saw", lambda: first(worlds, seed), notes)) is None:
        return [], []
    views = attempt("pictures of what the policy saw", lambda: saw(policy, obs), notes) or []
    if not has_scene(space):
        return views, []
    live = attempt(
        "view in three dimensions", lambda: [observed(f"seed {seed}, as the world gives it", obs, space, box)], notes
    )
    return views, live or []


def workspace(task: DictConfig) -> Box | None:
    """Low and high of the first cloud that the task sees."""
    nodes = [node for name, node in (task.get("derive") or {}).items() if name in (task.streams or ())]
    return next(((list(n.low), list(n.high)) for n in nodes if "low" in n and "high" in n), None)


def over_latency(
    policy: Policy, worlds: ShardedVectorEnv, config: DictConfig, device: torch.device, sweep: Sequence[Ahead], judged: Ahead,
    found: Mapping[str, Any],
) -> list[dict[str, Any]]:  # fmt: skip
    """The headline at each latency, of the same seeds: `found` at that of `judged`. Latencies of as many rows are one judgement."""
    known = {judged.rows: found}
    for rows in dict.fromkeys(a.rows for a in sweep if a.rows not in known):
        known[rows] = judge(
            policy, worlds, found["seeds"], **terms(config), ahead=rows, device=device,
            title=f"planned {rows} rows ahead",
        )[1]  # fmt: skip
    return [{"latency_ms": a.latency_ms, "ahead": a.rows, **headline(known[a.rows])} for a in sweep]


def headline(found: Mapping[str, Any]) -> dict[str, Any]:
    """Of a summary, without its episodes."""
    some = {name: found[name] for name in ("success_rate", "score", "interval", "interval_kind", "n")}
    return some | {"mean_steps": float(np.mean([row["steps"] for row in found["per_seed"]]))}


def shoot(
    config: DictConfig, played: Sequence[Played], folder: Path, worlds: ShardedVectorEnv, notes: list[str]
) -> list[tuple[Path, str]]:
    """Clips of `eval.videos` episodes, as many as could be made: played again, or from what the world recorded."""
    if not config.eval.videos:
        return []
    clips: list[tuple[Path, str]] = []
    some, success = choose(played, config.eval.videos), terms(config)["success"]
    made = lambda: film(config, some, folder, success) if worlds.replays else recorded(worlds, some, folder)
    attempt("clips", lambda: clips.extend(made()), notes)  # those before one that fails stay
    if not worlds.replays and not clips:
        _note(f"no clips: {config.task.env_id} does not promise that an episode can be played again", notes)
    return clips


def report(
    out: Path,
    result: dict[str, Any],
    played: Sequence[Played],
    configs: Sequence[DictConfig],
    folders: Sequence[Path],
    clips: Sequence[tuple[Path, str]],
    offline: dict[str, Any] | None = None,
    views: Sequence[Seen] = (),
    scenes: Sequence[Scene] = (),
) -> None:
    """report.html, with the configuration that acted: of the first under this evaluation's settings, of other parts their
    policy's."""
    task = configs[0].task
    acted = [OmegaConf.to_yaml(configs[0])]
    for folder, part in zip(folders[1:], configs[1:], strict=True):
        acted.append(
            f"# {os.path.relpath(folder, out)}\n{OmegaConf.to_yaml(OmegaConf.create({'policy': part.policy}))}"
        )
    log, (card, stored, gone) = read_log(place.home(folders[0]) / "log.jsonl"), demonstrations(task, result["notes"])
    absent = {"training": "" if log else "log.jsonl of the run is not beside the checkpoint", "data": gone}
    write_report(
        out / "report.html", title=f"{result['policy']} on {task.name}", result=result, log=log, data_card=card,
        absent={part: why for part, why in absent.items() if why}, views=views, scenes=[*stored, *scenes], clips=clips, energies=[(p.outcome.success, p.energy) for p in played if p.energy is not None],
        config_yaml="\n".join(acted), offline=offline,
    )  # fmt: skip


def demonstrations(task: DictConfig, notes: list[str]) -> tuple[Mapping[str, Any] | None, list[Scene], str]:
    """(what is in them, an episode in three dimensions where it has depth, "") or (None, [], why that cannot be said here)."""
    from polyarm.datasets.info import info

    try:
        demos = open_demos(task, derived=False)
        card = info(demos)
    except Exception as error:  # noqa: BLE001  the report does without
        return None, [], _why(error)
    if not has_scene(demos.spec.obs):
        return card, [], ""
    stored = attempt("view of the demonstrations", lambda: [scene(open_demos(task), box=workspace(task))], notes)
    return card, stored or [], ""


def attempt[T](what: str, make: Callable[[], T], notes: list[str]) -> T | None:
    """What `make` gives. Where it fails the result stays as it is, and one line says so."""
    try:
        return make()
    except Exception as error:  # noqa: BLE001  whatever a display, a codec, a disk or a world raises
        _note(f"no {what}: {_why(error)}", notes)
        return None


def _why(error: Exception) -> str:
    """In one line."""
    said = " ".join(str(error).split())
    return said if isinstance(error, UserError) else f"{type(error).__name__}: {said}"


def _note(line: str, notes: list[str]) -> None:
    print(line, file=sys.stderr)
    notes.append(line)


def load_policy(
    folders: Sequence[Path],
    config: DictConfig,
    overrides: Sequence[str],
    weights: Sequence[float],
    device: torch.device,
) -> Policy:
    """The checkpoint's policy, the first with the settings of `config`; or the mixture of several, which takes the first's
    sampler if `overrides` choose or change that. With eval.pick above 1 the best of so many chunks by the first part that has
    an energy."""
    first = checkpoint.load(folders[0], config, device)
    parts = [first, *(checkpoint.load(f, device=device) for f in folders[1:])]
    policy = first
    if len(parts) > 1:
        chosen = any(place.within(place.path_of(word), ("policy.sampler",)) for word in overrides)
        policy = Mixture(parts, [float(w) for w in weights], first.sampler if chosen else None)
    if config.eval.pick == 1:
        return policy
    judge = next((p for p in parts if p.energy is not None), first)
    return Picked(policy, judge, config.eval.pick)


def acting(policy: Policy, config: DictConfig, device: torch.device) -> dict[str, Any]:
    """What acted, as it was built: of a mixture its one sampler, of a policy that is picked from its own."""
    solver = unwrap(policy.sampler.solver)
    return {
        "sampler": getattr(getattr(solver, "func", solver), "__name__", str(solver)),
        "denoising_steps": len(policy.sampler.angles) - 1,
        "limit": policy.sampler.bound,
        "n_action_steps": config.eval.n_action_steps or policy.n_action_steps,
        "goals": bool(config.eval.goals and policy.goal_steps),
        "pick": config.eval.pick,
        "success": terms(config)["success"],
        "device": str(device),
        "threads": int(config.eval.threads),
    }


def require_versions(folders: Sequence[Path], world: Spec, allow: bool) -> list[str]:
    """Refuse a world of another version than a checkpoint's demonstrations come from; a line for each that is judged all the
    same, and for each package the world stands on that has changed."""
    lines = []
    for folder in folders:
        trained = checkpoint.read_spec(folder).versions
        for name, now in world.versions.items():
            then = trained.get(name, now)
            if then == now:
                continue
            if name == "env" and not allow:
                raise UserError(
                    f"the demonstrations of {folder} come from {then}, this world is {now}: collect and train again, "
                    "or give eval.allow_other_versions=true to judge it all the same"
                )
            lines.append(f"{folder} learned from {then if name == 'env' else f'{name} {then}'}, this is {now}")
    for line in lines:
        print(line, file=sys.stderr)
    return lines


def now() -> str:
    """Local time with its offset, ISO 8601."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def line(sources: Sequence[Path], overrides: Sequence[str], weights: Sequence[float]) -> str:
    """The command that judges the same, for a shell."""
    mixed = ["--weights", *map(repr, map(float, weights))] if len(sources) > 1 else []
    return shlex.join(["polyarm", "eval", *map(str, sources), *mixed, *overrides])


def sources_said(folders: Sequence[Path], weights: Sequence[float], out: Path) -> dict[str, Any]:
    paths = [os.path.relpath(folder, out) for folder in folders]
    return {"checkpoint": paths[0], **({"parts": paths, "weights": list(weights)} if len(paths) > 1 else {})}


def tell(result: dict[str, Any], out: Path) -> None:
    low, high = result["interval"]
    shares = ", ".join(f"{name} {share:.2f}" for name, share in result.get("stages", {}).items())
    measure, report = HEADLINE[result["measure"]], out / "report.html"
    each = [f"{x[measure]:.3f} of {x['n']}: {told!r}" for told, x in result.get("instructions", {}).items()]
    print(
        f"{result['measure']} {result[measure]:.3f} on {seeds_said(result)}, "
        f"{result['interval_kind']} interval {low:.3f} to {high:.3f}"
        + (f"\nepisodes with at least n subtasks done: {shares}" if shares else "")
        + "".join(f"\n  {line}" for line in each)
        + (f"\nreport: {report}" if report.exists() else f"\nresult: {out / place.RESULT}"),
        file=sys.stderr,
    )
