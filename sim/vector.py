"""Many environments on few processes: one process an environment is wasteful where cores are few."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing import Pipe
from pickle import PicklingError
from typing import Any, Protocol, runtime_checkable

import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from polyarm.sim.shard import Batch, Shard, fill
from polyarm.sim.world import find
from polyarm.spec import Spec, UserError

# A worker is a fresh interpreter and not a fork (forks of a process with threads or an OpenGL context hang) and not
# multiprocessing's spawn (which imports the caller's main module again, and with it often torch). It leaves without
# the interpreter's tidying, which would take longer than all else and frees nothing the kernel does not.
BOOT = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
sys.path[:] = sys.argv[2:]
from polyarm.sim.shard import serve
serve(int(sys.argv[1]))
sys.stdout.flush(), sys.stderr.flush()
os._exit(0)
"""


@runtime_checkable
class _Rows(Protocol):
    """A shard, here or in a worker. Calls are begun, then finished, so that workers overlap; `about` is begun at birth."""

    first: int
    count: int

    def begin(self, method: str, *args: Any) -> None: ...

    def finish(self) -> Any: ...

    def close(self) -> None: ...


class _Here:
    def __init__(self, world: Any, kwargs: dict[str, Any], first: int, count: int) -> None:
        self.first, self.count = first, count
        self._shard = Shard(world, kwargs, first, count)
        self.begin("about")

    def begin(self, method: str, *args: Any) -> None:
        self._call = method, args

    def finish(self) -> Any:
        return getattr(self._shard, self._call[0])(*self._call[1])

    def close(self) -> None:
        self._shard.close()


class _Worker:
    def __init__(self, world: Any, kwargs: dict[str, Any], first: int, count: int) -> None:
        self.first, self.count = first, count
        self._pipe, theirs = Pipe()
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        command = [sys.executable, "-c", BOOT, str(theirs.fileno()), *sys.path]
        self.process = subprocess.Popen(
            command, pass_fds=[theirs.fileno()], env=threads | os.environ, stdin=subprocess.DEVNULL
        )
        theirs.close()
        self.begin("about", world, kwargs, first, count)

    def begin(self, method: str, *args: Any) -> None:
        try:
            self._pipe.send((method, args))
        except OSError as error:
            raise self._died() from error
        except (PicklingError, AttributeError, TypeError) as error:
            self.close()
            raise UserError(
                f"this world cannot be sent to a worker process ({error}): give eval.workers=0, or name the module that registers it, "
                "task.env_id=module:Id"
            ) from error

    def finish(self) -> Any:
        try:
            value, error = self._pipe.recv()
        except (EOFError, OSError) as lost:
            raise self._died() from lost
        if error is not None:
            raise error
        return value

    def close(self) -> None:
        self._pipe.close()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _died(self) -> RuntimeError:
        rows = f"environments {self.first} to {self.first + self.count - 1}"
        return RuntimeError(
            f"the worker of {rows} ended with exit code {self.process.wait()}: "
            "see its output above; if it was killed for memory, use fewer environments"
        )


class ShardedVectorEnv(VectorEnv):
    """`n_envs` copies of a world, shared between `n_workers` processes (0: all in this one).

    Nothing resets by itself: a finished row is frozen (last observation, reward 0, flags and info kept) until
    `reset(options={"reset_mask": mask})`. Observations are dicts of arrays [n ...], info a dict of arrays [n]: of a row that
    does not name a key at its last step False or NaN; a key that no row names is not there; `is_success` always is.
    An exception of an environment is raised here with its row in the message.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012  as gymnasium declares it

    def __init__(self, env_id: Any, kwargs: dict[str, Any], n_envs: int, n_workers: int) -> None:
        self.look = True
        """Whether what the next steps show will be looked at (see `sim.world.World`)."""
        self.closed = True  # until there is something to close
        if n_envs < 1 or n_workers < 0:
            raise UserError(
                f"{n_envs} environments on {n_workers} workers: ask for at least 1 environment and 0 workers"
            )
        self.num_envs = n_envs
        self.spec: EnvSpec = find(env_id)
        kind = _Worker if n_workers else _Here
        world = env_id if ":" in env_id else self.spec  # a worker imports the module itself
        parts = np.array_split(np.arange(n_envs), min(max(n_workers, 1), n_envs))
        self._rows: list[_Rows] = []
        self.closed = False
        try:
            for part in parts:
                self._rows.append(kind(world, kwargs, int(part[0]), len(part)))
            about = self._finish()[0]
        except BaseException:
            self.close()
            raise
        self._world_spec, self._stages, self._goal = about["world_spec"], tuple(about["stages"]), about["goal"]
        self._simulated_time, self._recording = about["simulated_time"], about["recording"]
        self.metadata = about["metadata"] | self.metadata
        self.single_observation_space, self.single_action_space = about["obs"], about["action"]
        self.observation_space = batch_space(about["obs"], n_envs)
        self.action_space = batch_space(about["action"], n_envs)
        self._fresh = True

    @property
    def world_spec(self) -> Spec:
        return self._world_spec

    @property
    def stages(self) -> tuple[str, ...]:
        """The subtasks whose share done is the reward; empty for a world that names none."""
        return self._stages

    @property
    def replays(self) -> bool:
        """Whether the same seed and actions give the same episode again, as `sim.world.Simulated` promises."""
        return not self.spec.nondeterministic

    @property
    def simulated_time(self) -> bool:
        """Whether time stands still between steps, as `sim.world.Simulated` promises."""
        return self._simulated_time

    def recording(self, seed: int) -> tuple[list[np.ndarray], float] | None:
        """What a world kept of the last episode of this seed (`sim.world.Recorder`); None where none keeps any."""
        kept = self.call_rows("recording", range(self.num_envs), seed) if self._recording else []
        return next((k for k in kept if k is not None), None)

    def goals(self, rows: Sequence[int]) -> list[dict[str, np.ndarray]] | None:
        """What is to be seen at the end of each of these rows; None for a world that names no goal."""
        return self.call_rows("goal", rows) if self._goal else None

    def reset(self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None):
        """Resets the rows of `options["reset_mask"]` [n] (default: all); other options go to each environment.

        `seed`: one a row (None where the row is not reset or goes on with its generator), or s for s, s + 1, ...
        """
        options = dict(options or {})
        mask = np.asarray(options.pop("reset_mask", np.ones(self.num_envs, bool)), bool)
        seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int | np.integer) else seed
        seeds = [None] * self.num_envs if seeds is None else [s if s is None else int(s) for s in seeds]
        if mask.shape != (self.num_envs,) or len(seeds) != self.num_envs:
            raise UserError(
                f"reset got {len(seeds)} seeds and a mask of {mask.size} for {self.num_envs} environments: one each a row"
            )
        if self._fresh and not mask.all():
            raise UserError(
                f"the first reset leaves out row {int(np.argmin(mask))}: reset all rows once before using a mask"
            )
        for rows in self._rows:
            part = slice(rows.first, rows.first + rows.count)
            rows.begin("reset", mask[part], seeds[part], options or None)
        batch = _join(self._finish())
        self._fresh = False
        return batch.obs, batch.info

    def step(self, actions: np.ndarray):
        """`actions` [n d]. Rows that are finished ignore theirs."""
        if self._fresh:
            raise UserError("step was called before reset: reset all rows first")
        actions = np.asarray(actions)
        if actions.shape != self.action_space.shape:
            raise UserError(
                f"step got actions of shape {actions.shape}: give {self.action_space.shape}, one row an environment"
            )
        for rows in self._rows:
            rows.begin("step", actions[rows.first : rows.first + rows.count], self.look)
        return tuple(_join(self._finish()))

    def call_rows(self, name: str, rows: Sequence[int], *args: Any) -> list[Any]:
        """`env.name(*args)`, or the attribute `env.name`, of each of these rows."""
        order = sorted(set(rows))
        if order and not 0 <= order[0] <= order[-1] < self.num_envs:
            raise UserError(
                f"rows {order[0]} to {order[-1]} of {self.num_envs} environments: ask for 0 to {self.num_envs - 1}"
            )
        for part in self._rows:
            part.begin("call", name, [r - part.first for r in order if 0 <= r - part.first < part.count], args)
        values = dict(zip(order, (v for part in self._finish() for v in part), strict=True))
        return [values[r] for r in rows]

    def render_rows(self, rows: Sequence[int]) -> list[np.ndarray]:
        """A picture of each of these rows."""
        return self.call_rows("render", rows)

    def close_extras(self, **kwargs: Any) -> None:
        for rows in self._rows:
            rows.close()

    def _finish(self) -> list[Any]:
        """Every shard's answer. The first error is raised after all have answered, so that the pipes stay in step."""
        values, errors = [], []
        for rows in self._rows:
            try:
                values.append(rows.finish())
            except Exception as error:  # noqa: BLE001  whatever an environment raises
                errors.append(error)
        if errors:
            raise errors[0]
        return values


def _join(batches: list[Batch]) -> Batch:
    obs = {name: np.concatenate([b.obs[name] for b in batches]) for name in batches[0].obs}
    counts, names = [len(b.reward) for b in batches], dict.fromkeys(name for b in batches for name in b.info)
    info = {name: fill([b.info.get(name) for b in batches], counts) for name in names}
    reward, terminated, truncated = (np.concatenate([b[i] for b in batches]) for i in (1, 2, 3))
    return Batch(obs, reward, terminated, truncated, info)
