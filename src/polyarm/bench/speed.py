"""What a core makes of training: samples a second, and where its time goes."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.utils._pytree import tree_leaves

from polyarm.bench.plan import compose_task
from polyarm.collect import collect_task
from polyarm.eval.place import written
from polyarm.progress import Bar

WARM = 5


def speeds(config: DictConfig, entries: dict[str, Any], tasks: dict[str, Any], out: Path) -> dict[str, Any]:
    """Every entry on every task, one after another: {"rows": [...]}, also in results.json and table.md of `out`.

    A row has samples (windows) and noises a second of processor time, milliseconds a step, and the shares of the loader, of
    the encoder (forward and back) and of the rest: body, optimiser, averages.
    """
    from polyarm.eval.machine import machine, pick_device

    device = pick_device(config.device)
    rows = []
    with Bar("bench", len(tasks) * len(entries)) as bar:
        for task, about in tasks.items():
            first = compose_task(task, about, [], out)
            if first.task.expert:
                collect_task(first)
            for name, what in entries.items():
                settings = [*what["settings"], f"train.device={config.device}"]
                found = speed(compose_task(task, about, settings, out), config.steps)
                rows.append(
                    {"task": task, "name": name, "settings": what["settings"], **found, "machine": machine(device)}
                )
                with written(out / "results.json") as work:
                    work.write_text(json.dumps({"rows": rows}, indent=1))
                bar.at(len(rows), name)
    (out / "table.md").write_text(table(rows))
    print(f"{table(rows)}\n{out / 'table.md'}", file=sys.stderr)
    return {"rows": rows}


def speed(config: DictConfig, steps: int) -> dict[str, float]:
    """What `steps` steps of a training take, from its first; nothing is kept."""
    from polyarm.job import prepare

    job = prepare(config)
    learner = job.learner(config)
    batches, device = iter(job.batches(config, learner)), job.accelerator.device
    clip = next(batches).to(device)
    seconds = seconds_of(device)

    def look() -> None:
        """What an encoder has to do in a step: all windows of a clip, and back."""
        state = job.policy.start(len(clip.action))
        conds: list[Tensor] = []
        with job.accelerator.autocast():
            for k in range(clip.action.shape[1]):
                cond, state = job.policy.encode({n: x[:, k] for n, x in clip.obs.items()}, state, learner.generator)
                conds += [x for x in tree_leaves(cond) if isinstance(x, Tensor) and x.requires_grad]
        if conds:
            torch.stack([x.float().sum() for x in conds]).sum().backward()

    loading = seconds(lambda: next(batches), steps)
    looking = seconds(look, steps)
    learner.optimizer.zero_grad(set_to_none=True)
    step = seconds(lambda: learner.update(clip), steps)
    whole = loading + step
    windows = clip.action.shape[0] * clip.action.shape[1]
    return {
        "samples_per_s": windows / whole,
        "noises_per_s": windows * int(config.train.noise_samples) / whole,
        "ms_per_step": whole * 1e3,
        "loader": loading / whole,
        "encoder": min(looking, step) / whole,
        "body": max(step - looking, 0.0) / whole,
    }


def seconds_of(device: torch.device) -> Callable[[Callable[[], object], int], float]:
    """Seconds a call: of the processor, and of the wall on a GPU."""
    cuda = device.type == "cuda"
    now = time.perf_counter if cuda else time.process_time

    def seconds(call: Callable[[], object], times: int) -> float:
        for i in range(WARM + times):
            if i == WARM:
                if cuda:
                    torch.cuda.synchronize()
                began = now()
            call()
        if cuda:
            torch.cuda.synchronize()
        return (now() - began) / times

    return seconds


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, one line an entry, each beside the first."""
    lines = [
        "| task | training | samples a core-second | against the first | noises a core-second | ms a step | loader | encoder | body and rest |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        first = next(x for x in rows if x["task"] == r["task"])["samples_per_s"]
        shares = " | ".join(f"{r[part]:.0%}" for part in ("loader", "encoder", "body"))
        lines.append(
            f"| {r['task']} | {r['name']} | {r['samples_per_s']:.0f} | {r['samples_per_s'] / first:.1f} | {r['noises_per_s']:.0f} | "
            f"{r['ms_per_step']:.0f} | {shares} |"
        )
    return "\n".join(lines) + "\n"
