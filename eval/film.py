"""Clips of episodes that were played: the recorded actions, played again with rendering."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from polyarm.eval.rollout import Played, solved
from polyarm.eval.video import write_mp4
from polyarm.progress import Bar
from polyarm.sim.vector import ShardedVectorEnv
from polyarm.spec import UserError
from polyarm.task import world_kwargs


def choose(played: Sequence[Played], videos: int) -> list[Played]:
    """Episodes worth seeing: up to half of them failures (or the lowest scores), the rest successes, in seed order."""
    ranked = sorted(played, key=lambda p: (p.outcome.success, p.outcome.score))
    failures = [p for p in ranked if not p.outcome.success][: max(1, videos // 2)]
    rest = [p for p in played if p not in failures]
    return [*failures, *rest[: max(0, videos - len(failures))]][:videos]


def film(
    config: DictConfig, played: Sequence[Played], folder: Path, success: str = "ever"
) -> Iterator[tuple[Path, str]]:
    """(mp4, caption) of each episode, as they are made."""
    for p, frames, rate in replayed(config, played, success):
        yield _clip(p, frames, rate, folder)


def recorded(worlds: ShardedVectorEnv, played: Sequence[Played], folder: Path) -> Iterator[tuple[Path, str]]:
    """As `film`, from what the worlds kept while they played; nothing of episodes of which they kept nothing."""
    for p in played:
        if (kept := worlds.recording(p.outcome.seed)) is not None:
            yield _clip(p, *kept, folder)


def _clip(p: Played, frames: Sequence[np.ndarray], rate: float, folder: Path) -> tuple[Path, str]:
    path = folder / f"seed_{p.outcome.seed}.mp4"
    write_mp4(path, frames, rate)
    verdict = "success" if p.outcome.success else "failure"
    return path, f"seed {p.outcome.seed}: {verdict} after {p.outcome.steps} steps, best score {p.outcome.score:.2f}"


def replayed(
    config: DictConfig, played: Sequence[Played], success: str = "ever"
) -> Iterator[tuple[Played, list[np.ndarray], float]]:
    """(episode, its frames, frames a second) of each episode. Only for worlds that promise the same episode from the same seed
    and actions (`sim.world.Simulated`); raises `UserError` for one that breaks it."""
    from polyarm.sim.world import make_world

    with Bar("film", sum(p.outcome.steps for p in played)) as bar:
        done = 0
        for p in played:
            world = make_world(config.task.env_id, world_kwargs(config.task, derived=False))
            try:
                world.reset(seed=p.outcome.seed)
                world.unwrapped.look = False
                frames, won = [world.render()], False
                shoot = partial(_shoot, world, frames)
                watched = world.has_wrapper_attr("watch")  # of whose steps each is many of the world's
                if watched:
                    world.set_wrapper_attr("watch", shoot)
                for action in p.actions:
                    info = world.step(action)[4]
                    won = solved(won, bool(info.get("is_success", False)), success)
                    if not watched:
                        shoot()
                    done += 1
                    bar.at(done, f"seed {p.outcome.seed}")
                rate = world.unwrapped.world_spec.action.rate_hz
            finally:
                world.close()
            if won != p.outcome.success:
                raise UserError(
                    f"seed {p.outcome.seed} of {config.task.env_id}, played again with the same actions, ended otherwise: register a "
                    "world that is not deterministic with nondeterministic=True"
                )
            yield p, frames, rate


def _shoot(world: Any, frames: list[np.ndarray]) -> None:
    frames.append(world.render())
