"""`polyarm eval` of a task without a world: the action error on episodes that no part of the policy was trained on."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from polyarm import resume
from polyarm.config import override
from polyarm.datasets.demos import ACTION, Demos
from polyarm.datasets.scale import BLOCK, moments
from polyarm.datasets.windows import split_episodes
from polyarm.eval import offline, place
from polyarm.eval.machine import machine, pick_device, policy_versions
from polyarm.eval.offline_charts import drawn
from polyarm.eval.run import acting, attempt, keep_arrays, load_policy, report, sources_said
from polyarm.eval.seen import Seen, image_streams, saw
from polyarm.policies import checkpoint
from polyarm.policies.policy import Policy
from polyarm.progress import Bar
from polyarm.spec import UserError, require_actions, require_obs
from polyarm.task import open_demos

FEW = 5
"""Held-out episodes below which a note says that they are few."""


def evaluate(
    folders: Sequence[Path], owns: Sequence[DictConfig], config: DictConfig, overrides: Sequence[str],
    weights: Sequence[float], seconds: dict[str, float] | None, prefer: Path | None,
    made: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """As `eval.run.evaluate`, from where it has read the configurations; `made`: date and command. Writes result.json, episodes.npz and report.html."""
    began, e = time.perf_counter(), config.eval
    for name in ("ahead", "latency_ms", "latencies_ms"):
        if e[name]:
            raise UserError(f"eval.{name}={e[name]}: {config.task.measure} plays no episodes; leave it out")
    torch.set_num_threads(int(e.threads))
    device = pick_device(e.device)
    demos, where = open_demos(config.task), str(config.task.demos.get("path"))
    train, unseen = held_out(folders, owns, config, demos)
    policy = load_policy(folders, config, overrides, weights, device)
    require_obs(policy.obs_space, demos.spec.obs, "the policy", where)
    require_actions(policy.action_space, demos.spec.action, "the policy", where)
    some = unseen[: e.episodes].tolist()
    notes = _notes(some, len(unseen), train)
    settings = place.acting(override(owns[0], []), config)
    if where != str(owns[0].task.demos.get("path")):
        settings["task.demos.path"] = where
    wanted = {**place.identity(folders, weights, settings), "held_out": some}
    words = [w for w in overrides if place.key_of(w) != "output_dir"]
    if len(words) < len(overrides):
        places = [Path(config.output_dir)]
    else:
        places = [*([prefer] if prefer else []), *place.places(folders, weights, words, wanted)]
    mean, std = action_moments(demos, train if len(train) else unseen)
    steps = e.n_action_steps or policy.n_action_steps
    with place.claim(places, wanted) as out, Bar(f"judge {policy.name} on {config.task.name}", len(some)) as bar:
        config.output_dir = str(out)
        judged = offline.judge(
            policy, demos, some, mean, samples=e.samples, seed=e.seed, n_action_steps=steps, goals=e.goals, device=device,
            progress=bar.at,
        )  # fmt: skip
        space = policy.action_space
        found = offline.summary(judged, space.names, space.units, mean, std, steps)
        said = offline.said(found)
        result = {
            "said": said, **made, "policy": policy.name, "task": config.task.name, **sources_said(folders, weights, out), **found,
            "demonstrations": where, "n_action_steps": steps, "acting": acting(policy, config, device), "overrides": words,
            "identity": wanted, "seconds": {**(seconds or {}), "evaluate": round(time.perf_counter() - began, 2)},
            "versions": policy_versions(),
            "trained_with": [dict(checkpoint.read_spec(folder).versions) for folder in folders],
            "machine": machine(device), "notes": notes,
        }  # fmt: skip
        arrays = {f"{what}_{j.episode}": getattr(j, what) for j in judged for what in ("drawn", "recorded", "there")}
        keep_arrays(out, result, arrays)
        pictures = attempt("charts", lambda: drawn(result, judged, space.rate_hz), notes)
        views = attempt("pictures of what the policy saw", lambda: _views(policy, demos, some[0]), notes) or []
        attempt("report", lambda: report(out, result, [], [config, *owns[1:]], folders, [], pictures, views), notes)
        attempt("notes in result.json", lambda: place.write_result(out, result), notes)
    page = out / "report.html"
    print(f"{said}\n" + (f"report: {page}" if page.exists() else f"result: {out / place.RESULT}"), file=sys.stderr)
    return result


def _views(policy: Policy, demos: Demos, episode: int) -> list[Seen]:
    """What a policy of images saw first in an episode."""
    begin = int(np.insert(demos.episode_ends, 0, 0)[episode])
    return saw(policy, {name: np.asarray(demos.stream(name)[begin : begin + 1])[0] for name in image_streams(policy)})


def held_out(
    folders: Sequence[Path], owns: Sequence[DictConfig], config: DictConfig, demos: Demos
) -> tuple[np.ndarray, np.ndarray]:
    """(training episodes of the first part, empty where it was trained on others; episodes that no part was trained on)."""
    ends, where = demos.episode_ends, str(config.task.demos.get("path"))
    every = np.arange(len(ends))
    unseen, trained = every, every[:0]
    for i, (folder, own) in enumerate(zip(folders, owns, strict=True)):
        train, val = _split(folder, own, where, demos)
        if not len(val) and len(train) == 1:
            raise UserError(f"{folder} was trained on the only episode of {where}: record more, and train on them")
        if not len(val) and not len(train):
            raise UserError(f"{folder} was trained on every episode of {where}: give others with task.demos.path=...")
        if not len(val):
            raise UserError(
                f"{folder} held out none of the episodes of {where} (data.val_ratio={own.data.val_ratio:g}), so nothing is unseen "
                "by it: train with data.val_ratio=0.1, or give other demonstrations with task.demos.path=..."
            )
        unseen, trained = np.intersect1d(unseen, val), trained if i else train
    if not len(unseen):
        raise UserError(
            f"no episode of {where} is unseen by all {len(folders)} policies: train them with the same data.seed and "
            "data.val_ratio, or give other demonstrations with task.demos.path=..."
        )
    return trained, unseen


def _split(folder: Path, own: DictConfig, where: str, demos: Demos) -> tuple[np.ndarray, np.ndarray]:
    """(training, held-out) episodes of a run; none and all for demonstrations that are not its own."""
    card, path, ends = _card(folder), str(own.task.demos.get("path")), demos.episode_ends
    if card is not None and (resume.same(card, demos) or os.path.realpath(path) == os.path.realpath(where)):
        return resume.same_split(card, demos, where)
    if card is None and os.path.realpath(path) == os.path.realpath(where):
        d = own.data
        print(
            f"{folder} does not keep which episodes it held out: split again by its settings, which is true only if {where} has "
            "not changed since",
            file=sys.stderr,
        )
        return split_episodes(len(ends), d.val_ratio, d.seed, d.max_train_episodes)
    seen = np.arange(0) if card is None else resume.trained_on(card, demos)
    if len(seen):
        print(
            f"{folder} was trained on {len(seen)} of the {len(ends)} episodes of {where}: the others are judged",
            file=sys.stderr,
        )
    return np.arange(0), np.setdiff1d(np.arange(len(ends)), seen)


def _card(folder: Path) -> dict[str, Any] | None:
    """Which demonstrations a checkpoint's run stands on: of the checkpoint, or of a later one that still says so."""
    for one in (folder, *reversed(checkpoint.steps(place.home(folder)))):
        if (card := checkpoint.read_split(one)) is not None:
            return card
    return None


def action_moments(demos: Demos, episodes: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the actions of these episodes, [d] each."""
    ends, rows = np.insert(demos.episode_ends, 0, 0), demos.stream(ACTION)
    cut = [(a, min(a + BLOCK, ends[i + 1])) for i in episodes for a in range(ends[i], ends[i + 1], BLOCK)]
    m = moments((np.asarray(rows[int(a) : int(b)]) for a, b in cut), demos.spec.action.names, "the action")
    return m.mean, m.std


def _notes(some: Sequence[int], n: int, train: np.ndarray) -> list[str]:
    notes = []
    if len(some) < FEW:
        few = f"{len(some)} held-out episode{'s are' if len(some) > 1 else ' is'} few"
        notes.append(f"{few}: give a larger data.val_ratio in training, such as 0.2, or record more")
    if len(some) < n:
        notes.append(f"the first {len(some)} of {n} held-out episodes (eval.episodes)")
    if not len(train):
        notes.append("none of these demonstrations were trained on: mean and deviations are their own")
    for line in notes:
        print(line, file=sys.stderr)
    return notes
