"""What every world promises, and the few lines all of them share."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec, load_env_creator

from polyarm.spec import ObsSpace, Spec, UserError, unknown


@runtime_checkable
class World(Protocol):
    """A `gymnasium.Env` that says what its numbers mean.

    - Observations are a dict keyed by stream name: float32 `(width,)` low-dim streams, uint8 `(height, width, 3)` images.
    - `info["is_success"]` is a bool at reset and at every step; the reward lies in [0, 1].
    - The world truncates itself at its `max_steps` constructor argument.
    - Actions are clipped to `action_space`; one that is not finite raises `UserError`.
    - A world whose reward is the share done of several subtasks names them in `stages`.
    """

    observation_space: spaces.Dict
    action_space: spaces.Box

    @property
    def world_spec(self) -> Spec:
        """Streams and action channels with names, units, frame and rate, and the package versions that matter."""
        ...

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]: ...

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]: ...


@runtime_checkable
class Simulated(World, Protocol):
    """What only a simulator promises, on top.

    All randomness comes from `reset(seed=...)`: the same seed and the same actions give the same observations to the bit, so
    that an episode can be played again, to be filmed. A world that cannot promise this, such as a real arm, is registered
    with gymnasium's `nondeterministic=True`.
    """

    @property
    def time_s(self) -> float:
        """Simulated seconds since the reset."""
        ...

    def render(self) -> np.ndarray:
        """A picture for people, uint8 `(height, width, 3)` rgb."""
        ...


@runtime_checkable
class Goaled(Protocol):
    """A world that can say what is to be seen at the end; goal-conditioned policies need it."""

    def goal(self) -> dict[str, np.ndarray]: ...


PARTS = ("gymnasium", "gymnasium_robotics", "gym_pusht")
"""Packages that worlds are built from; the names that they register themselves keep no `World` contract."""


def known_worlds() -> list[str]:
    """Names of the project's worlds and the user's."""
    home = lambda spec: (
        str(getattr(spec.entry_point, "__module__", spec.entry_point)).partition(":")[0].partition(".")[0]
    )
    return [name for name, spec in gym.registry.items() if home(spec) not in PARTS]


def find(env_id: Any) -> EnvSpec:
    """The registered world of this name. Raises `UserError` with the nearest name."""
    if not isinstance(env_id, str):
        raise UserError(f"task.env_id={env_id}: give the name of a world, one of {', '.join(known_worlds())}")
    try:
        return gym.spec(env_id)
    except gym.error.Error as error:
        raise unknown("world", env_id, known_worlds()) from error


def make_world(env_id: Any, kwargs: Mapping[str, Any]) -> Any:
    """One world, by its registered name and constructor arguments."""
    return build_world(find(env_id), kwargs)


def build_world(spec: EnvSpec, kwargs: Mapping[str, Any]) -> Any:
    """The world of a registration. What it cannot be built with is a `UserError`."""
    try:
        _require_kwargs(spec, kwargs)
        return gym.make(spec, **kwargs)
    except UserError:
        raise
    except ImportError as error:
        raise UserError(f"{spec.id} cannot be loaded ({error}): install what is missing") from error
    except (TypeError, ValueError, gym.error.Error) as error:
        given = ", ".join(f"{name}={value}" for name, value in kwargs.items())
        raise UserError(
            f"{spec.id} cannot be made with task.env_kwargs {given or 'empty'} ({error}): correct them"
        ) from error


def _require_kwargs(spec: EnvSpec, kwargs: Mapping[str, Any]) -> None:
    entry: Any = spec.entry_point
    takes = inspect.signature(load_env_creator(entry) if isinstance(entry, str) else entry).parameters
    if any(p.kind is p.VAR_KEYWORD for p in takes.values()):
        return
    for name in kwargs:
        if name not in takes and name not in inspect.signature(gym.make).parameters:
            raise unknown(f"setting of {spec.id} in task.env_kwargs", name, takes)


def spec_of(world: Any, name: str) -> Spec:
    """What the numbers of a world mean. Raises `UserError` for one that does not say."""
    spec = getattr(world.unwrapped, "world_spec", None)
    if not isinstance(spec, Spec):
        raise UserError(
            f"{name} has no world_spec, so nobody knows what its numbers mean: give it one (sim.world.World)"
        )
    return spec


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
