"""`polyarm bench`: many trainings on the same demonstrations, with one budget, judged on the same seeds; a table and a figure."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from polyarm.collect import collect_task
from polyarm.config import CONFIGS, compose, explain, options, override, read_yaml
from polyarm.progress import Bar
from polyarm.spec import UserError, unknown
from polyarm.task import count_workers


@dataclass(frozen=True)
class Judged:
    """One point to play: a trained entry, or a mixture of several, with one set of evaluation settings."""

    task: str
    name: str
    runs: tuple[str, ...]
    settings: tuple[str, ...]
    weights: tuple[float, ...] = (1.0,)
    x: int | float | None = None
    """What the figure draws it over, if not its network evaluations."""

    @property
    def key(self) -> str:
        """What nothing else in this bench has: entries may share a name in the figure."""
        of = f" {'/'.join(f'{w:g}' for w in self.weights)}" if len(self.runs) > 1 else ""
        return " ".join([self.task, " + ".join(Path(r).name for r in self.runs) + of, *self.settings])


def bench(name: str, words: Sequence[str]) -> dict[str, Any]:
    """Run configs/bench/NAME.yaml under `words` (key=value); returns what results.json holds.

    Nothing done is done again: a second run goes on from the first, with more entries, tasks or points if asked. Trainings
    and evaluations run side by side, one core each; the time of a chunk is taken at the end, one policy after another.
    """
    config = _config(name, words)
    out = Path(config.output_dir)
    out.mkdir(parents=True, exist_ok=True)
    tasks = {t: s for t, s in config.tasks.items() if _has_data(t, s, out)}
    for task, about in tasks.items():
        c = _compose(task, about, [], out)
        if c.task.expert:
            collect_task(c)
    entries = _chosen(config)
    made: dict[str, Any] = {}
    jobs: list[tuple[Any, ...]] = []
    for task, about in tasks.items():
        for entry, what in entries.items():
            points = list(_points(task, entry, what, out))
            jobs.append((_train_and_judge, dict(config), task, dict(about), entry, dict(what), points, str(out)))
    first = [j for j in jobs if not _needs(j[5], entries)]
    rest = [j for j in jobs if _needs(j[5], entries)]
    mixed = [j for task, about in tasks.items() for j in _mixtures(config, task, about, entries, out)]
    total, done = len(jobs) + len(mixed), 0
    pool = ProcessPoolExecutor(count_workers(config.workers, max(1, total)), get_context("spawn"))
    try:
        with Bar(f"bench {name}", total) as bar:
            for wave in (first, rest, mixed):
                running = {pool.submit(job[0], *job[1:]): job for job in wave}
                for future in as_completed(running):
                    rows = future.result()
                    made |= {row["key"]: row for row in rows}
                    _write(out, made)
                    done += 1
                    bar.at(done, rows[-1]["key"] if rows else "")
    finally:  # after an error or Ctrl-C the pool would first work off what is waiting
        pool.shutdown(wait=False, cancel_futures=True)
        for child in active_children():
            child.terminate()
    rows = _ordered(_read(out), tasks, config)
    _time(rows, config, out)
    (out / "table.md").write_text(table(rows))
    figure(rows, out / "figure.png", config.get("x_label"))
    print(f"{table(rows)}\n{out / 'table.md'}\n{out / 'figure.png'}", file=sys.stderr)
    return {"rows": rows}


def _config(name: str, words: Sequence[str]) -> DictConfig:
    if name not in options("bench"):
        raise unknown("bench", name, options("bench"))
    config = read_yaml(CONFIGS / "bench" / f"{name}.yaml")
    OmegaConf.set_struct(config, True)
    for word in words:
        key, found, value = word.partition("=")
        try:
            if not found or OmegaConf.select(config, key, default="missing") == "missing":
                raise unknown("setting", key, map(str, config))
            new = OmegaConf.from_dotlist([f"x={value}"]).x
            if key == "tasks" and OmegaConf.is_list(new):  # names of those to keep
                for task in new:
                    if task not in config.tasks:
                        raise unknown("task of this bench", task, map(str, config.tasks))
                new = {t: config.tasks[t] for t in new}
                config.tasks = {}
                OmegaConf.set_struct(config, False)
            OmegaConf.update(config, key, new, merge=False)
        except OmegaConfBaseException as e:
            raise explain(e, words) from e
    for key in ("core_seconds", "episodes"):
        if not isinstance(config[key], int | float) or config[key] <= 0:
            raise UserError(f"{key}={config[key]}: give a positive number")
    return config


def _chosen(config: DictConfig) -> dict[str, Any]:
    names = list(config.entries) if config.only is None else list(config.only)
    for name in names:
        if name not in config.entries:
            raise unknown("entry of this bench", name, map(str, config.entries))
    return {name: OmegaConf.to_container(config.entries[name]) for name in names}


def _has_data(task: str, about: Any, out: Path) -> bool:
    config = _compose(task, about, [], out)
    if config.task.expert or Path(config.task.demos.path).exists():
        return True
    print(f"bench leaves out {task}: no demonstrations at {config.task.demos.path}", file=sys.stderr)
    return False


def _compose(task: str, about: Any, more: Sequence[str], out: Path) -> DictConfig:
    config = compose([*about["settings"], *more])
    if config.task.expert:
        config.task.demos.path = config.collect.path = str(out / "demos" / f"{task}.zarr")
    return config


def _needs(what: Any, entries: Any) -> list[str]:
    """Entries whose run this one's settings name in braces."""
    return [e for e in entries if any("{" + e + "}" in word for word in what["settings"])]


def _run(out: Path, task: str, entry: str) -> Path:
    return out / "runs" / task / entry


def _points(task: str, entry: str, what: Any, out: Path) -> list[Judged]:
    run = (str(_run(out, task, entry)),)
    group, x = what.get("group", entry), what.get("x")
    sets = [(f"{key}={value}",) for key, values in (what.get("sweep") or {}).items() for value in values]
    sets += [tuple(settings) for settings in what.get("points") or ([] if sets else [()])]
    return [Judged(task, group, run, settings, x=x) for settings in sets]


def _mixtures(config: DictConfig, task: str, about: Any, entries: Any, out: Path) -> list[tuple[Any, ...]]:
    jobs = []
    for mixture in config.get("mixtures") or []:
        if not all(part in entries for part in mixture.parts):
            continue
        runs = tuple(str(_run(out, task, part)) for part in mixture.parts)
        points = [Judged(task, " + ".join(mixture.parts), runs, (), tuple(w)) for w in mixture.weights]
        jobs.append((_judge_all, dict(config), dict(about), points, str(out)))
    return jobs


def _train_and_judge(
    config: dict[str, Any],
    task: str,
    about: dict[str, Any],
    entry: str,
    what: dict[str, Any],
    points: list[Judged],
    out: str,
) -> list[dict[str, Any]]:
    """A worker's job: train an entry on a task unless its run is there, then play all its points."""
    run = _run(Path(out), task, entry)
    run.mkdir(parents=True, exist_ok=True)
    with (run / "bench.log").open("a") as log, contextlib.redirect_stderr(log):
        _require_same_terms(run, _terms(config, about, entry, what))
        if not (run / "checkpoints" / "last").exists() or _unfinished(run):
            _train(config, task, about, entry, what, Path(out))
        return _judge_all(config, about, points, out)


def _terms(config: dict[str, Any], about: Any, entry: str, what: Any) -> dict[str, Any]:
    """What a run was trained for; another run of the same name is not it."""
    return {
        "core_seconds": config["core_seconds"] * about.get("budget", 1),
        "settings": [*about["settings"], *what["settings"], *(about.get("policies") or {}).get(entry, [])],
    }


def _require_same_terms(run: Path, terms: dict[str, Any]) -> None:
    path = run / "bench.json"
    then = json.loads(path.read_text()) if path.exists() else terms
    for key, now in terms.items():
        if then[key] != now:
            raise UserError(
                f"{run} was trained with {key}={then[key]}, now it is {now}: give another output_dir, or remove this run"
            )


def _unfinished(run: Path) -> bool:
    steps = read_yaml(run / "config.yaml").train.steps
    return not (run / "checkpoints" / f"step_{steps:08d}").exists()


def _train(config: dict[str, Any], task: str, about: Any, entry: str, what: Any, out: Path) -> None:
    from polyarm.train import fit, seconds_per_step

    run = _run(out, task, entry)
    known = {e: str(_run(out, task, e)) for e in config["entries"]}
    settings = [word.format(**known) for word in [*what["settings"], *(about.get("policies") or {}).get(entry, [])]]
    c = _compose(task, about, [*settings, f"train.device={config['device']}", f"output_dir={run}"], out)
    if (run / "config.yaml").exists():  # begun before: the same number of steps
        c.train.steps = read_yaml(run / "config.yaml").train.steps
    else:
        c.train.steps = 10_000
        budget = config["core_seconds"] * about.get("budget", 1)
        (run / "bench.json").write_text(json.dumps(_terms(config, about, entry, what)))
        c.train.steps = max(100, int(budget / seconds_per_step(c)) // 100 * 100)
    c.train.val_every, c.train.checkpoint_every = c.train.steps, max(1, c.train.steps // 4)
    fit(c)


def _judge_all(config: dict[str, Any], about: dict[str, Any], points: list[Judged], out: str) -> list[dict[str, Any]]:
    known = _read(Path(out))
    rows = []
    for point in points:
        n = int(about.get("episodes") or config["episodes"])
        row = known.get(point.key)
        if row is None or row["n"] != n or row["seeds"][0] != config["seed"] or row["trained"] != _stamp(point):
            row = _judge(point, n, int(config["seed"]), str(config["device"]))
        rows.append(row)
    return rows


def _stamp(point: Judged) -> list[int]:
    """When the checkpoints of a point were written: a row from before is no longer true."""
    from polyarm.policies import checkpoint

    return [(checkpoint.find(Path(r)) / "model.safetensors").stat().st_mtime_ns for r in point.runs]


def _open(point: Judged, n: int, device: str) -> tuple[Any, Any, DictConfig]:
    import torch

    from polyarm.eval.rollout import make_worlds
    from polyarm.eval.run import load_policy
    from polyarm.policies import checkpoint

    torch.set_num_threads(1)
    folders = [checkpoint.find(Path(r)) for r in point.runs]
    config = override(read_yaml(folders[0] / "config.yaml"), [*point.settings, "eval.workers=0"])
    policy = load_policy(folders, config, point.settings, point.weights, torch.device(device))
    return policy, make_worlds(config, min(config.eval.n_envs, n)), config


def _judge(point: Judged, n: int, seed: int, device: str) -> dict[str, Any]:
    from polyarm.eval.rollout import rollout
    from polyarm.eval.score import summary

    policy, worlds, config = _open(point, n, device)
    try:
        played = rollout(
            policy, worlds, list(range(seed, seed + n)), config.eval.n_action_steps, device, goals=config.eval.goals
        )
    finally:
        worlds.close()
    found = summary([p.outcome for p in played], config.task.measure)
    return {
        "key": point.key, "task": point.task, "name": point.name, "settings": list(point.settings), "x": point.x,
        "weights": list(point.weights), "runs": [str(r) for r in point.runs], "trained": _stamp(point),
        "steps": config.train.steps, "batch_size": config.train.batch_size,
        "value": found["success_rate"] if found["measure"] == "success" else found["score"], **found,
    }  # fmt: skip


def _time(rows: list[dict[str, Any]], config: DictConfig, out: Path) -> None:
    """Milliseconds and network evaluations of a chunk, one policy after another with nothing beside them."""
    from polyarm.eval.machine import machine, pick_device
    from polyarm.eval.timing import bookkeeping, time_chunks
    from polyarm.policies.mixture import Mixture

    wanted = [r for r in rows if "evaluations" not in r]
    device = pick_device(config.device)
    with Bar("time chunks", len(wanted)) as bar:
        for i, row in enumerate(wanted):
            point = Judged(row["task"], row["name"], tuple(row["runs"]), tuple(row["settings"]), tuple(row["weights"]))
            policy, worlds, _ = _open(point, 1, str(device))
            ms, row["evaluations"] = time_chunks(policy, worlds, int(config.seed), device)
            if isinstance(policy, Mixture):
                row["bookkeeping"] = bookkeeping(policy, worlds, int(config.seed), device)
            worlds.close()
            row["ms"] = sorted(ms)[len(ms) // 2]
            parts = policy.parts or [policy]
            row["parameters"] = sum(p.numel() for part in parts for p in part.parameters())
            row["machine"] = machine(device)
            bar.at(i + 1, row["key"])
    _write(out, {row["key"]: row for row in wanted})


def _read(out: Path) -> dict[str, Any]:
    path = out / "results.json"
    return {row["key"]: row for row in json.loads(path.read_text())["rows"]} if path.exists() else {}


def _write(out: Path, made: dict[str, Any]) -> None:
    """Rows made here, beside those that are there: another bench of other tasks may have written meanwhile."""
    work = out / f".results.{os.getpid()}.partial"
    work.write_text(json.dumps({"rows": list((_read(out) | made).values())}, indent=1))
    work.replace(out / "results.json")


def _ordered(played: dict[str, Any], tasks: Any, config: DictConfig) -> list[dict[str, Any]]:
    names = [OmegaConf.to_container(e).get("group", n) for n, e in config.entries.items()]  # type: ignore[union-attr]
    rank = lambda row: (
        list(tasks).index(row["task"]),
        len(row["runs"]) > 1,
        names.index(row["name"]) if row["name"] in names else len(names),
        row["x"] or 0,
    )
    return sorted((r for r in played.values() if r["task"] in tasks), key=rank)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown, one line a point."""
    lines = [
        "| task | policy | setting | network evaluations | ms a chunk | measure | value (95 %) | n | training steps |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        setting = ", ".join(_short(s) for s in r["settings"])
        if len(r["runs"]) > 1:
            setting = " / ".join(f"{w:g}" for w in r["weights"])
        if r.get("x") is not None:
            setting = f"{r['x']:g}" + (f", {setting}" if setting else "")
        low, high = r["interval"]
        ms = f"{r['ms']:.1f}" if "ms" in r else ""
        ms += f" ({r['bookkeeping']:+.1%} over its parts)" if "bookkeeping" in r else ""
        lines.append(
            f"| {r['task']} | {r['name']} | {setting} | {r.get('evaluations', '')} | {ms} | {r['measure']} | "
            f"{r['value']:.2f} ({low:.2f} to {high:.2f}) | {r['n']} | {r['steps']:,} |"
        )
    return "\n".join(lines) + "\n"


def _short(setting: str) -> str:
    """policy.sampler.angles.steps=4 -> steps 4"""
    key, _, value = setting.partition("=")
    return f"{key.rpartition('.')[2].replace('act_steps', 'steps')} {value}"


def figure(rows: Sequence[dict[str, Any]], path: Path, x_label: str | None = None) -> None:
    """Value with its interval, a row of panels a task: over network evaluations and milliseconds a chunk; over the entries'
    x where it has a label."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    single = [r for r in rows if len(r["runs"]) == 1]
    if not single:
        return
    tasks, names = list(dict.fromkeys(r["task"] for r in single)), list(dict.fromkeys(r["name"] for r in single))
    axes_of = [("evaluations", "network evaluations a chunk"), ("ms", "milliseconds a chunk")]
    axes_of = axes_of if x_label is None else [("x", x_label)]
    fig, axes = plt.subplots(
        len(tasks),
        len(axes_of),
        figsize=(4.6 * len(axes_of), 3.0 * len(tasks)),
        squeeze=False,
        sharey="row",
        layout="constrained",
    )
    colours = plt.get_cmap("tab10")
    for task, row in zip(tasks, axes, strict=True):
        for (key, label), ax in zip(axes_of, row, strict=True):
            for i, name in enumerate(names):
                mine = sorted(
                    (r for r in single if (r["task"], r["name"]) == (task, name) and r.get(key) is not None),
                    key=lambda r: r[key],
                )
                if not mine:
                    continue
                x, y = [r[key] for r in mine], [r["value"] for r in mine]
                low, high = zip(*(r["interval"] for r in mine), strict=True)
                ax.plot(x, y, color=colours(i % 10), marker="o", ms=4, lw=1.5, label=name)
                ax.vlines(x, low, high, color=colours(i % 10), lw=0.7)
            ax.set_xscale("log")
            if x_label is not None:
                ax.set_xticks(sorted({r[key] for r in single if r.get(key) is not None}))
            ax.xaxis.set_major_formatter("{x:g}")
            ax.xaxis.set_minor_formatter("")
            ax.set_ylim(-0.03, 1.03)
            ax.set_xlabel(label)
            ax.grid(alpha=0.3)
            ax.spines[["top", "right"]].set_visible(False)
        measure = next(r["measure"] for r in single if r["task"] == task)
        row[0].set_ylabel(f"{task}\n{measure}")
    handles = {h.get_label(): h for ax in axes.flat for h in ax.get_legend_handles_labels()[0]}
    fig.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(5, len(handles)), frameon=False)
    fig.savefig(path, dpi=150)
    plt.close(fig)
