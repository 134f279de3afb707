"""Worlds that also show streams made of those that they show, such as clouds of depth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from polyarm.derive import Derivation, derive, extended
from polyarm.sim.world import observation_space, spec_of
from polyarm.spec import Spec


class Derived(gym.Wrapper):
    """`world` and the streams of `made`."""

    def __init__(self, world: gym.Env, made: Mapping[str, Derivation], name: str) -> None:
        super().__init__(world)
        self._made, self._seen = dict(made), dict[str, np.ndarray]()
        self._spec = extended(spec_of(world, name), made, name)
        shown: Any = world.observation_space
        new = observation_space(self._spec.obs.pick(made))
        self.observation_space = spaces.Dict({**shown.spaces, **new.spaces})

    @property
    def world_spec(self) -> Spec:
        return self._spec

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        obs, info = self.env.reset(seed=seed, options=options)
        self._seen = self._of(obs)
        return {**obs, **self._seen}, info

    def step(self, action: Any):
        obs, *rest = self.env.step(action)
        if getattr(self.unwrapped, "look", True):
            self._seen = self._of(obs)
        return {**obs, **self._seen}, *rest

    def goal(self) -> dict[str, np.ndarray]:
        """Of a world that names one (`sim.world.Goaled`), with what is made of it."""
        obs = self.env.get_wrapper_attr("goal")()
        return {**obs, **self._of(obs)}

    def _of(self, obs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        made = {name: how for name, how in self._made.items() if obs.keys() >= {*how.needs()}}
        return {name: derive(name, how, obs) for name, how in made.items()}
