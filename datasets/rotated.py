"""Demonstrations whose actions are read with their rotations in another layout."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from polyarm.datasets.demos import ACTION, Demos, Rows
from polyarm.rotation import rows_as, space_as
from polyarm.spec import Spec


class Rotated:
    """`demos` with the rotations of its action in `layout` (see `polyarm.rotation`); a `Demos`. The way back, before an
    action reaches a world, is `rows_as` with the world's layout. Raises UserError for actions without rotations."""

    def __init__(self, demos: Demos, layout: str) -> None:
        self._demos, self._layout = demos, layout
        self.spec: Spec = replace(demos.spec, action=space_as(demos.spec.action, layout))
        self.path = getattr(demos, "path", None)

    @property
    def episode_ends(self) -> np.ndarray:
        return self._demos.episode_ends

    def stream(self, name: str) -> Rows:
        return self._action if name == ACTION else self._demos.stream(name)

    @cached_property
    def _action(self) -> Any:
        rows = self._demos.stream(ACTION)[:].astype(np.float64)
        return rows_as(rows, self._demos.spec.action, self._layout).astype(np.float32)
