"""A world asked first: made, begun twice and stepped once, before anything is spent on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np

from polyarm.rotation import convert
from polyarm.sim.world import build_world, find, require_shown, spec_of, without_success
from polyarm.spec import Spec, UserError

LONGEST = 1000
"""Steps after which no episode's end is waited for."""


def trial(env_id: Any, kwargs: Mapping[str, Any]) -> Spec:
    """What the world's numbers mean, if it can be made and keeps its promises: it shows what its spaces say, says whether it
    succeeded, and does the same again from the same seed. Raises `UserError`, for want of a package `world.Missing`.

    One that is registered with nondeterministic=True may be a real arm: it is made, and nothing moves.
    """
    registered = find(env_id)
    world = build_world(registered, kwargs)
    try:
        spec = spec_of(world, env_id)
        if not registered.nondeterministic:
            _require_same(_begun(world, env_id), _begun(world, env_id), env_id)
            _require_success(world, env_id)
        return spec
    finally:
        world.close()


def _begun(world: gym.Env, name: str) -> list[Mapping[str, np.ndarray]]:
    """The first two observations from seed 0, copied."""
    seen = [world.reset(seed=0)[0]]
    require_shown(seen[0], world.observation_space, name)  # type: ignore[arg-type]
    first = {stream: np.array(x) for stream, x in seen[0].items()}
    return [first, world.step(still(world))[0]]


def _require_same(one: list[Mapping[str, Any]], other: list[Mapping[str, Any]], name: str) -> None:
    for step, (a, b) in enumerate(zip(one, other, strict=True)):
        for stream in a:
            if not np.array_equal(a[stream], b[stream], equal_nan=np.asarray(a[stream]).dtype.kind == "f"):
                raise UserError(
                    f"{name} shows another {stream!r} at step {step} when it is reset to seed 0 again: draw all that is random from "
                    "self.np_random after super().reset(seed=seed), or register it with nondeterministic=True"
                )


def _require_success(world: gym.Env, name: str) -> None:
    """It may say so with its last step alone."""
    world.reset(seed=0)
    for _ in range(LONGEST):
        _, _, terminated, truncated, info = world.step(still(world))
        if "is_success" in info:
            return
        if terminated or truncated:
            raise without_success(name, info)


def still(world: gym.Env) -> np.ndarray:
    """The action nearest to zero, whose rotations turn nothing."""
    box: Any = world.action_space
    action, space = np.zeros_like(box.low), world.get_wrapper_attr("world_spec").action
    none = convert(np.eye(3), "matrix", space.rotation) if space.rotations else np.empty(0)
    for first in space.rotations:
        action[first : first + len(none)] = none
    return np.clip(action, box.low, box.high)
