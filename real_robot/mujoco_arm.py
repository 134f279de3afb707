"""The SO-101 without a wire: the reference that every other driver is held against."""

from __future__ import annotations

import time
from typing import Any

from polyarm.real_robot.arm import ArmState, PortLost, Row, Stop
from polyarm.real_robot.plant import Plant
from polyarm.real_robot.so101 import SPEC
from polyarm.sim.mujoco import mujoco

BEHIND_NS = 200_000_000
"""A model further behind the clock than this lets the rest of the time go."""


class MujocoArm:
    """Goals reach the model and its joints are read as they are, in float64: a rollout through it can equal the simulator.

    `wall`: the model follows `time.monotonic_ns`. Otherwise time passes by `advance` only, and `t_ns` is the model's own.
    """

    spec = SPEC

    def __init__(self, plant: Plant | None = None, wall: bool = False) -> None:
        self.plant = Plant() if plant is None else plant
        self.wall, self._open = wall, False
        self._at_ns = time.monotonic_ns()

    def now_ns(self) -> int:
        return time.monotonic_ns() if self.wall else self.plant.time_ns

    def advance(self, dt_ns: int) -> None:
        self.plant.advance(dt_ns)

    def open(self) -> None:
        self._open, self._at_ns = True, time.monotonic_ns()

    def close(self) -> None:
        self._open = False

    def read(self) -> ArmState:
        self._follow()
        plant = self.plant
        return ArmState(
            self.now_ns(), plant.q, plant.dq, plant.load, temperature_c=tuple(plant.temperature_c), status=(0,) * 6
        )

    def enable(self) -> None:
        self._follow()
        self.plant.goal(self.plant.q)
        self.plant.power((1.0,) * 6)

    def command(self, q: Row) -> None:
        self._follow()
        self.plant.goal(q)

    def stop(self, kind: Stop) -> None:
        self._follow()
        if kind is Stop.LIMP:
            self.plant.power((0.0,) * 6)
        else:
            self.plant.goal(self.plant.q)

    def identify(self) -> dict[str, Any]:
        return {"model": SPEC.model, "driver": "mujoco", "mujoco": mujoco.__version__}

    def explain(self, status: tuple[int, ...]) -> str:
        return ""

    def _follow(self) -> None:
        if not self._open:
            raise PortLost("the arm is not open")
        if self.wall:
            late = (now := time.monotonic_ns()) - self._at_ns
            self._at_ns = now
            self.plant.advance(min(late, BEHIND_NS))
