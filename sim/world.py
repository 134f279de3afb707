"""What every world promises, and the few lines all of them share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from polyarm.spec import ObsSpace, Spec, UserError, unknown


@runtime_checkable
class World(Protocol):
    """A `gymnasium.Env` that says what its numbers mean.

    - Observations are a dict keyed by stream name: float32 `(width,)` low-dim streams, uint8 `(height, width, 3)` images.
    - `info["is_success"]` is a bool at reset and at every step; the reward lies in [0, 1].
    - The world truncates itself at its `max_steps` constructor argument.
    - All randomness comes from `reset(seed=...)`: the same seed and the same actions give the same observations to the bit.
    - Actions are clipped to `action_space`; one that is not finite raises `UserError`.
    - A world whose reward is the share done of several subtasks names them in `stages`.
    - A world that can say what is to be seen at the end has `goal()`, {stream: array}; goal-conditioned policies need it.
    """

    observation_space: spaces.Dict
    action_space: spaces.Box

    @property
    def world_spec(self) -> Spec:
        """Streams and action channels with names, units, frame and rate, and the package versions that matter."""
        ...

    @property
    def time_s(self) -> float:
        """Simulated seconds since the reset."""
        ...

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]: ...

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]: ...

    def render(self) -> np.ndarray:
        """A picture for people, uint8 `(height, width, 3)` rgb."""
        ...


def find(env_id: str) -> EnvSpec:
    """The registered world of this name. Raises `UserError` with the nearest name."""
    try:
        return gym.spec(env_id)
    except gym.error.UnregisteredEnv as error:
        raise unknown("world", env_id, gym.registry) from error


def make_world(env_id: str, kwargs: Mapping[str, Any]) -> Any:
    """One world, by its registered name and constructor arguments."""
    return gym.make(find(env_id), **kwargs)


def observation_space(obs: ObsSpace) -> spaces.Dict:
    """The gymnasium space of these streams. Low-dim bounds are open: physics overshoots whatever one would write."""
    return spaces.Dict({s.name: spaces.Box(*s.range, s.shape, np.dtype(s.dtype).type) for s in obs.streams})


def command(action: np.ndarray, space: spaces.Box, world: str) -> np.ndarray:
    """`action` as float64 within `space`. Raises `UserError` for a wrong shape and for values that are not finite."""
    action = np.asarray(action, np.float64)
    if action.shape != space.shape:
        raise UserError(f"{world} was given an action of shape {action.shape}: give one row of shape {space.shape}")
    if not np.isfinite(action).all():
        channel = int(np.argmin(np.isfinite(action)))
        raise UserError(
            f"{world} was given the action {action[channel]} in channel {channel}: give finite numbers, check the policy"
        )
    return np.clip(action, space.low.astype(np.float64), space.high.astype(np.float64))


def choose(names: tuple[str, ...], known: Mapping[str, Any], what: str) -> tuple[str, ...]:
    """`names` if each is one of `known`, otherwise a `UserError` that lists them."""
    for name in names:
        if name not in known:
            raise unknown(what, name, known)
    return tuple(names)
