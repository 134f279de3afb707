"""From what was seen to the next chunk: at once, or in a thread beside the worlds. Both plan the same, to the bit."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from polyarm.policies.generate.sample import Sampler
from polyarm.policies.policy import Policy, plan, restart


@dataclass(frozen=True)
class Seen:
    """What a chunk is planned from. Nothing changes it while the worlds go on.

    `rows`: which of the n rows plan; `fresh`: whose episode begins with it; `step`: of the newest observation, counted from the
    start of each row's episode; `committed`: the rows from `step` on that are executed before any of this chunk, NaN where there
    are none. No policy is shown these yet: one that continues them (real-time chunking) would be.
    """

    obs: dict[str, np.ndarray]
    rows: Bool[np.ndarray, "n"]
    fresh: Bool[np.ndarray, "n"]
    step: Int[np.ndarray, "n"]
    committed: Float[np.ndarray, "n c d"]


@dataclass(frozen=True)
class Chunk:
    """All that was planned from `seen`: row k of `actions` belongs to step `seen.step` + k. `energy`: of a policy that has one."""

    seen: Seen
    actions: Float[np.ndarray, "n h d"]
    energy: Float[np.ndarray, "n"] | None
    seconds: float


class Planner(Protocol):
    """Chunks come in the order in which they were asked for."""

    @property
    def ready(self) -> bool:
        """Whether `take` answers at once."""
        ...

    def restart(self, rows: Bool[np.ndarray, "n"], seeds: Sequence[int | None]) -> None:
        """New episodes, with noise of these seeds. Only while nothing is asked for."""
        ...

    def submit(self, seen: Seen) -> None: ...

    def take(self) -> Chunk:
        """The oldest chunk that was asked for and not taken; waits for it, and raises what planning it raised."""
        ...

    def close(self) -> None: ...


class AtOnce:
    """Plans while it is asked.

    Every row has a random generator of its own, and the policy always sees all n rows: what a row does depends on its episode's
    seed, not on its neighbours.
    """

    def __init__(self, policy: Policy, n: int, sampler: Sampler | None, device: torch.device):
        self.policy, self.sampler, self.device = policy, sampler, device
        self._generators = [torch.Generator(device) for _ in range(n)]
        self._idle = torch.Generator(device).manual_seed(0)
        self._state = tuple(x.to(device) for x in policy.start(n))
        self._planned: deque[Chunk] = deque()

    @property
    def ready(self) -> bool:
        return bool(self._planned)

    def restart(self, rows: Bool[np.ndarray, "n"], seeds: Sequence[int | None]) -> None:
        for row in np.flatnonzero(rows):
            self._generators[row].manual_seed(int(seeds[row] or 0))

    def submit(self, seen: Seen) -> None:
        self._planned.append(self.plan(seen))

    def take(self) -> Chunk:
        return self._planned.popleft()

    def close(self) -> None: ...

    def plan(self, seen: Seen) -> Chunk:
        began = time.perf_counter()
        with torch.no_grad():
            obs = {name: torch.from_numpy(x).to(self.device) for name, x in seen.obs.items()}
            mask = torch.from_numpy(seen.rows).to(self.device)
            before = restart(self.policy, self._state, torch.from_numpy(seen.fresh).to(self.device))
            generators = [g if wanted else self._idle for g, wanted in zip(self._generators, seen.rows, strict=True)]
            actions, after, energy = plan(self.policy, obs, before, generators, self.sampler)
            self._state = tuple(
                torch.where(mask.view(-1, *[1] * (new.ndim - 1)), new, old)
                for new, old in zip(after, before, strict=True)
            )
            first = self.policy.n_obs_steps - 1  # the row that belongs to the newest observation
            planned = actions[:, first:].cpu().numpy()
            felt = None if energy is None else energy.cpu().double().numpy()
        return Chunk(seen, planned, felt, time.perf_counter() - began)


class Beside:
    """Plans in a thread, one chunk after another, while the worlds go on."""

    def __init__(self, planner: AtOnce):
        self.planner = planner
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="planner")
        self._asked: deque[Future[Chunk]] = deque()

    @property
    def ready(self) -> bool:
        return bool(self._asked) and self._asked[0].done()

    def restart(self, rows: Bool[np.ndarray, "n"], seeds: Sequence[int | None]) -> None:
        self.planner.restart(rows, seeds)

    def submit(self, seen: Seen) -> None:
        self._asked.append(self._thread.submit(self.planner.plan, seen))

    def take(self) -> Chunk:
        return self._asked.popleft().result()

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)
