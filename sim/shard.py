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
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from polyarm.sim.world import (
    Goaled,
    Recorder,
    build_world,
    find,
    require_shown,
    simulated_time,
    spec_of,
    without_success,
)


class Batch(NamedTuple):
    """What all rows of a shard show: obs {stream: [b ...]}, the rest [b]; info {key: [b]} of `stack`. The next call overwrites
    the observations and flags."""

    obs: dict[str, np.ndarray]
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    info: dict[str, np.ndarray]


def stack(rows: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    """{key: [b]} of the rows' infos. Where a row does not name a key it is False for a truth and NaN for a number; the type is
    the one that holds all rows."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {
        name: fill([np.atleast_1d(row[name]) if name in row else None for row in rows], [1] * len(rows))
        for name in names
    }


def fill(parts: Sequence[np.ndarray | None], counts: Sequence[int]) -> np.ndarray:
    """`parts` [n] end to end; one that is missing is so many times False, or NaN among numbers."""
    truths = all(part is None or part.dtype == bool for part in parts)
    absent = False if truths else np.nan
    return np.concatenate([np.full(n, absent) if part is None else part for part, n in zip(parts, counts, strict=True)])


def _scalar(value: Any) -> bool:
    """A truth or a real number, whichever library made it."""
    return not isinstance(value, list | tuple) and np.ndim(value) == 0 and np.asarray(value).dtype.kind in "biuf"


class Shard:
    """`count` environments; `first` is the row of the first one, for messages.

    A finished row is frozen until its reset: it keeps its last observation, flags and info, its reward is 0.
    """

    def __init__(self, world: EnvSpec | str, kwargs: dict[str, Any], first: int, count: int) -> None:
        self.first = first
        self.spec = find(world) if isinstance(world, str) else world
        self.envs: list[gym.Env] = []
        for i in range(count):
            with self._row(i):
                self.envs.append(build_world(self.spec, kwargs))
        self.world_spec = spec_of(self.envs[0], self.spec.id)
        streams: Any = self.envs[0].observation_space
        self.streams: spaces.Dict = streams
        self.obs = {name: np.zeros((count, *s.shape), s.dtype) for name, s in self.streams.spaces.items()}
        self.reward = np.zeros(count)
        self.terminated, self.truncated = np.ones(count, bool), np.zeros(count, bool)
        self.told = np.zeros(count, bool)
        """Whether a step of the episode said `is_success`."""
        self.info: list[dict[str, Any]] = [{} for _ in range(count)]
        """Of each row, the numbers and truths of its last step, and nothing from before."""

    def about(self) -> dict[str, Any]:
        """What the vector environment says of itself."""
        env = self.envs[0]
        about = {"obs": env.observation_space, "action": env.action_space, "metadata": env.metadata}
        return about | {
            "world_spec": self.world_spec,
            "stages": getattr(env.unwrapped, "stages", ()),
            "goal": isinstance(env.unwrapped, Goaled),
            "simulated_time": simulated_time(env.unwrapped),
            "recording": isinstance(env.unwrapped, Recorder),
        }

    def reset(self, mask: np.ndarray, seeds: Sequence[int | None], options: dict[str, Any] | None) -> Batch:
        """Resets the rows where `mask` [b]."""
        self.reward[:] = 0.0
        for i in np.flatnonzero(mask).tolist():
            with self._row(i):
                obs, info = self.envs[i].reset(seed=seeds[i], options=options)
            self.terminated[i] = self.truncated[i] = self.told[i] = False
            self._keep(i, obs, info)
        return self._batch()

    def step(self, action: np.ndarray, look: bool = True) -> Batch:
        """`action` [b d]; rows that are finished ignore theirs. `look`: what is shown will be looked at (see `sim.world.World`)."""
        self.reward[:] = 0.0
        for env in self.envs:
            env.unwrapped.look = look  # type: ignore[attr-defined]
        for i in np.flatnonzero(~(self.terminated | self.truncated)).tolist():
            with self._row(i):
                obs, self.reward[i], self.terminated[i], self.truncated[i], info = self.envs[i].step(action[i])
            self._keep(i, obs, info)
            self.told[i] |= "is_success" in info
            if (self.terminated[i] or self.truncated[i]) and not self.told[i]:
                raise without_success(f"environment {self.first + i} ({self.spec.id})", info)
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
        require_shown(obs, self.streams, f"environment {self.first + i}")
        for name, kept in self.obs.items():
            kept[i] = obs[name]
        self.info[i] = {name: np.asarray(value)[()] for name, value in info.items() if _scalar(value)}
        self.info[i]["is_success"] = bool(self.info[i].get("is_success", False))

    def _batch(self) -> Batch:
        return Batch(self.obs, self.reward, self.terminated, self.truncated, stack(self.info))

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
