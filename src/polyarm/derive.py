"""Streams that are computed of others, by the same lines for demonstrations, worlds and robots: `task.derive`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import numpy as np

from polyarm.spec import Spec, Stream, UserError

RESERVED = "derive"
"""Under which `sim.world.build_world` takes {stream: Derivation} beside a world's own settings."""


@runtime_checkable
class Derivation(Protocol):
    """How a stream is made of others, such as `polyarm.cloud.Cloud`; frozen, and a worker process can be given it."""

    @property
    def held(self) -> bool:
        """Whether what is made of demonstrations is kept in memory, for it is small and dear to make."""
        ...

    def needs(self) -> tuple[str, ...]:
        """The streams that it is made of."""
        ...

    def stream(self, name: str, obs: Any) -> Stream:
        """The stream that it is under this name where `obs`, an `ObsSpace`, is shown; `made_of` tells it from others."""
        ...

    def make(self, obs: Mapping[str, np.ndarray]) -> np.ndarray:
        """It, of one time step."""
        ...


def extended(spec: Spec, made: Mapping[str, Derivation], giver: str) -> Spec:
    """`spec` with the streams that are made."""
    for name in made:
        if name in spec.obs.names:
            raise UserError(f"{giver} has a stream {name!r} already: give the one of task.derive another name")
    streams = tuple(how.stream(name, spec.obs) for name, how in made.items())
    return replace(spec, obs=replace(spec.obs, streams=(*spec.obs.streams, *streams)))


def derive(name: str, how: Derivation, obs: Mapping[str, np.ndarray], where: str = "") -> np.ndarray:
    """The stream `name` of one time step. `where`: which one, for an error."""
    try:
        return how.make(obs)
    except UserError as e:
        raise UserError(f"stream {name!r}{where}: {e}") from None
