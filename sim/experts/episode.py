"""One episode of an expert in a world, as arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import gymnasium as gym
import numpy as np

from polyarm.sim.world import without_success


@runtime_checkable
class Expert(Protocol):
    """Acts from the simulator's own state, not from observations."""

    def reset(self) -> None: ...

    def act(self) -> np.ndarray: ...


@runtime_checkable
class Marking(Protocol):
    """An expert that marks keyposes."""

    keypose: bool
    """Whether the hand was at one when the last action was chosen: a phase ended there."""


@dataclass(frozen=True)
class Episode:
    """obs {stream: [t ...]}; action [t d] float32; time_s [t] of the simulated clock; keypose [t 1], 1 where an expert that marks
    them was at one. Row i was seen when action i was chosen."""

    obs: dict[str, np.ndarray]
    action: np.ndarray
    time_s: np.ndarray
    success: bool
    seed: int
    keypose: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.action)


def play(env: gym.Env, expert: Expert, seed: int) -> Episode:
    """Resets `env` to `seed` and lets `expert` act until the episode ends."""
    obs, info = env.reset(seed=seed)
    expert.reset()
    seen: list[dict[str, np.ndarray]] = []
    actions: list[np.ndarray] = []
    times: list[float] = []
    marks: list[bool] = []
    done = False
    while not done:
        action = np.asarray(expert.act(), np.float32)
        seen.append(obs)
        actions.append(action)
        if isinstance(expert, Marking):
            marks.append(expert.keypose)
        times.append(env.get_wrapper_attr("time_s"))
        obs, _, terminated, truncated, info = env.step(action)
        done = terminated or truncated
    streams = {name: np.stack([o[name] for o in seen]) for name in seen[0]}
    if "is_success" not in info:
        raise without_success(type(env.unwrapped).__name__, info)
    keypose = np.array(marks, np.float32)[:, None] if marks else None
    return Episode(streams, np.stack(actions), np.array(times), bool(info["is_success"]), seed, keypose)
