"""Some rows of a vector environment, stepped one after another in one process; and the loop that serves them over a pipe."""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec


class Batch(NamedTuple):
    """What all rows of a shard show: obs {stream: [b ...]}, the rest [b]; info {key: [b]}. The next call overwrites it."""

    obs: dict[str, np.ndarray]
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    info: dict[str, np.ndarray]


class Shard:
    """`count` environments; `first` is the row of the first one, for messages.

    A finished row is frozen until its reset: it keeps its last observation and flags, its reward is 0.
    """

    def __init__(self, spec: EnvSpec, kwargs: dict[str, Any], first: int, count: int) -> None:
        self.first = first
        self.envs: list[gym.Env] = []
        for i in range(count):
            with self._row(i):
                self.envs.append(gym.make(spec, **kwargs))
        streams = self.envs[0].observation_space
        self.obs = {name: np.zeros((count, *s.shape), s.dtype) for name, s in streams.spaces.items()}  # type: ignore[attr-defined]
        self.reward = np.zeros(count)
        self.terminated, self.truncated = np.ones(count, bool), np.zeros(count, bool)
        self.info: dict[str, np.ndarray] = {"is_success": np.zeros(count, bool)}

    def about(self) -> dict[str, Any]:
        """What the vector environment says of itself."""
        env = self.envs[0]
        about = {"obs": env.observation_space, "action": env.action_space, "metadata": env.metadata}
        world = env.unwrapped
        return about | {"world_spec": getattr(world, "world_spec", None), "stages": getattr(world, "stages", ())}

    def reset(self, mask: np.ndarray, seeds: Sequence[int | None], options: dict[str, Any] | None) -> Batch:
        """Resets the rows where `mask` [b]."""
        self.reward[:] = 0.0
        for i in np.flatnonzero(mask).tolist():
            with self._row(i):
                obs, info = self.envs[i].reset(seed=seeds[i], options=options)
            self.terminated[i] = self.truncated[i] = False
            self._keep(i, obs, info)
        return self._batch()

    def step(self, action: np.ndarray) -> Batch:
        """`action` [b d]; rows that are finished ignore theirs."""
        self.reward[:] = 0.0
        for i in np.flatnonzero(~(self.terminated | self.truncated)).tolist():
            with self._row(i):
                obs, self.reward[i], self.terminated[i], self.truncated[i], info = self.envs[i].step(action[i])
            self._keep(i, obs, info)
        return self._batch()

    def call(self, name: str, rows: Sequence[int], args: tuple[Any, ...]) -> list[Any]:
        """`env.name(*args)`, or the attribute `env.name`, of these rows (counted in the shard)."""
        values = []
        for i in rows:
            with self._row(i):
                found = self.envs[i].get_wrapper_attr(name)
                values.append(found(*args) if callable(found) else found)
        return values

    def close(self) -> None:
        for env in self.envs:
            env.close()

    def _keep(self, i: int, obs: dict[str, np.ndarray], info: dict[str, Any]) -> None:
        for name, value in obs.items():
            self.obs[name][i] = value
        for name, value in info.items():
            if isinstance(value, bool | int | float | np.number | np.bool_):
                self.info.setdefault(name, np.zeros(len(self.envs), type(value)))[i] = value

    def _batch(self) -> Batch:
        return Batch(self.obs, self.reward, self.terminated, self.truncated, self.info)

    @contextmanager
    def _row(self, i: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            error.args = (f"environment {self.first + i}: {error}",)
            raise


def serve(fd: int) -> None:
    """A worker's life: answer calls `(method, args)` with `(value, None)` or `(None, error)`.

    The first call's arguments build the shard and its answer is `about`. Ends when the other side of the pipe closes, which the kernel does however the parent dies.
    """
    pipe = Connection(fd)
    shard: Shard | None = None
    try:
        while True:
            method, args = pipe.recv()
            try:
                if shard is None:
                    shard, args = Shard(*args), ()
                pipe.send((getattr(shard, method)(*args), None))
            except Exception as error:  # noqa: BLE001  whatever an environment raises goes to the parent
                pipe.send((None, _portable(error)))
    except (EOFError, OSError):
        return


def _portable(error: Exception) -> Exception:
    """`error` with the worker's traceback as a note; a RuntimeError in its place when it does not survive pickling."""
    error.add_note("".join(traceback.format_exception(error)))
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001  pickling runs the exception's own code
        return RuntimeError(f"{type(error).__name__}: {error}")
