"""What the pieces of a policy that sees depth take, each alone: the world's picture, the points of it, a cloud, the encoder, a step."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from polyarm.bench.plan import compose_task
from polyarm.bench.speed import seconds_of
from polyarm.collect import collect_task, frames_per_s
from polyarm.eval.place import written
from polyarm.progress import Bar


def pieces(config: DictConfig, entries: dict[str, Any], tasks: dict[str, Any], out: Path) -> dict[str, Any]:
    """{"rows": [{task, piece, ms, machine}]}, of each piece the milliseconds of processor time (of the wall on a GPU); also in
    results.json and table.md of `out`. Of each task its world's pieces, then those of a policy for each entry, not trained; and a
    frame of collecting by one worker and by two, always of the wall, with `frames_s` and how many `times_one` they are."""
    from polyarm.eval.machine import machine, pick_device

    device, rows = pick_device(config.device), []
    clock = seconds_of(device)
    with Bar("bench", len(tasks) * (len(entries) + 1)) as bar:
        for i, (task, about) in enumerate(tasks.items()):
            first = compose_task(task, about, [], out)
            collect_task(first)
            rows += [{"task": task, **row, "machine": machine(device)} for row in _of_collecting(first)]
            made = [_of_the_world(first)]
            made += [
                _of_a_policy(compose_task(task, about, [*e["settings"], "train.batch_size=1"], out), n)
                for n, e in entries.items()
            ]
            for k, part in enumerate(made):
                for piece, call in part:
                    ms = 1e3 * clock(call, config.steps)
                    rows.append({"task": task, "piece": piece, "ms": ms, "machine": machine(device)})
                bar.at(i * len(made) + k + 1)
    with written(out / "results.json") as work:
        work.write_text(json.dumps({"rows": rows}, indent=1))
    lines = [
        "| task | piece | ms |",
        "|---|---|---|",
        *(f"| {r['task']} | {r['piece']}{_times(r)} | {r['ms']:.2f} |" for r in rows),
    ]
    (out / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines), file=sys.stderr)
    return {"rows": rows}


def _times(row: dict[str, Any]) -> str:
    return f", {row['times_one']:.2f} times as fast as one" if "times_one" in row else ""


def _of_collecting(config: DictConfig) -> list[dict[str, Any]]:
    one, two = (frames_per_s(config, workers) for workers in (1, 2))
    return [
        {"piece": "a frame collected by one worker", "ms": 1e3 / one, "frames_s": one},
        {"piece": "a frame collected by two workers", "ms": 1e3 / two, "frames_s": two, "times_one": two / one},
    ]


Piece = tuple[str, Callable[[], Any]]


def _of_the_world(config: DictConfig) -> Iterator[Piece]:
    from polyarm.camera import from_row, lift
    from polyarm.cloud import farthest, thin
    from polyarm.encoders.points import farthest as farthest_of_tensors
    from polyarm.sim.trial import still
    from polyarm.sim.world import make_world
    from polyarm.task import world_kwargs

    task = config.task
    with closing(make_world(task.env_id, world_kwargs(task))) as world:
        seeds = iter(range(10**6))
        obs, _ = world.reset(seed=next(seeds))
        rest = still(world)

        def step(look: bool) -> Callable[[], Any]:
            def call() -> None:
                world.unwrapped.look = look
                world.step(rest)

            return call

        yield "reset", lambda: world.reset(seed=next(seeds))
        yield "step without a picture", step(False)
        yield "step with RGB-D", step(True)
        made = world_kwargs(task).get("derive") or {}
        camera = next(name.removesuffix("_depth") for name in obs if name.endswith("_depth"))
        depth, row = obs[f"{camera}_depth"], obs[f"{camera}_camera"]
        yield "depth to points", lambda: lift(depth, "mm", *from_row(row))
        for name, how in made.items():
            yield f"stream {name!r} of depth", partial(how.make, obs)
    many = np.random.default_rng(0).uniform(size=(10_000, 3)).astype(np.float32)
    tensor = torch.from_numpy(many)[None]
    yield "farthest 1,000 of 10,000 points", lambda: thin(many, 1000)
    yield "the same, numpy", lambda: farthest(many, 1000)
    yield "the same, torch", lambda: farthest_of_tensors(tensor, 1000)


def _of_a_policy(config: DictConfig, name: str) -> Iterator[Piece]:
    from polyarm.job import prepare

    job = prepare(config)
    policy = job.policy.eval()
    clip = next(iter(job.batches(config, job.learner(config)))).to(job.accelerator.device)
    obs = {n: x[:1, 0] for n, x in clip.obs.items()}
    with torch.no_grad():
        cond, _ = policy.encode(obs, policy.start(1))
    x = torch.randn(1, *clip.action.shape[2:3], policy.action_space.width, device=clip.action.device)
    phi = policy.sampler.angles[:1].to(x)

    def encode() -> None:
        with torch.no_grad():
            policy.encode(obs, policy.start(1))

    def denoise() -> None:
        with torch.no_grad():
            policy.denoise(x, phi, cond)

    yield f"{name}: encoder, one observation", encode
    yield f"{name}: one denoising step", denoise
