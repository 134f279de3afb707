"""The actions that a policy of relative actions learns, to fit their scale on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from polyarm.datasets.demos import ACTION, Demos
from polyarm.datasets.windows import window_starts
from polyarm.relative import base
from polyarm.spec import Spec


class RelativeRows:
    """Every action row of every window of some episodes, less its window's base (see `polyarm.relative`): [n * horizon, d],
    made when sliced. Each observation is the newest one of a window; rows past an episode's ends repeat the nearest."""

    def __init__(
        self, demos: Demos, spec: Spec, episodes: Sequence[int] | np.ndarray, *, horizon: int, n_obs_steps: int
    ) -> None:
        ends = demos.episode_ends
        episode, start = window_starts(ends, horizon, n_obs_steps - 1, horizon - n_obs_steps, episodes)
        self._begin, self._last = np.insert(ends, 0, 0)[episode], ends[episode] - 1
        self._first = self._begin + start
        self._horizon, self._newest = horizon, n_obs_steps - 1
        self._spec, self._action = spec, demos.stream(ACTION)[:]
        streams = {where.partition(".")[0] for where in spec.action.relative or () if where}
        self._obs = {name: demos.stream(name)[:] for name in streams}
        self.shape = (len(start) * horizon, self._action.shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        window, step = np.divmod(np.arange(*rows.indices(len(self))), self._horizon)
        at = np.clip(self._first[window] + step, self._begin[window], self._last[window])
        newest = self._first[window] + self._newest
        under = base(self._spec.action, self._spec.obs, {name: x[newest] for name, x in self._obs.items()})
        return self._action[at] - under
