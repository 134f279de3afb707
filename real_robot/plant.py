"""The SO-101 that a twin and the driver `mujoco` move: the model of the simulator with motors that can be limp and get warm."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from polyarm.real_robot.arm import Row
from polyarm.sim.mujoco import mujoco
from polyarm.sim.mujoco.pick_place import PickPlace

ROOM_C, WARM_C = 30.0, 31.0
HEAT_C_S, COOLING_S = 0.8, 60.0
"""At full load a motor would end 48 degrees above the room, in minutes. Made up: no data sheet says how a motor warms."""
WARM_EVERY = 20
"""Physics steps."""
HULL = 2
"""The contact bit of the links while a joint is limp."""


class Plant:
    """`world` on a model of its own, stepped by time instead of by action: with all torque on and the same goals it equals
    `world.step` to the bit.

    A limp joint has no actuator and feels its weight, which the model otherwise takes off it; the links then lie on the table,
    which they pass through under torque, as in the simulator. Between `reset` and the first torque nothing moves: a hand holds
    the arm where the world begins.
    """

    def __init__(self, world: PickPlace | None = None) -> None:
        self.world = PickPlace() if world is None else world
        # the module's model is shared by all worlds of a process, and this one writes to it
        self.model = self.world.model = copy.deepcopy(self.world.model)
        self.data = self.world.data = mujoco.MjData(self.model)
        self.step_ns = round(1e9 * self.model.opt.timestep)
        self._gain, self._bias = self.model.actuator_gainprm.copy(), self.model.actuator_biasprm.copy()
        self._force = self.model.actuator_forcerange[:, 1].tolist()
        self._dofs = [*([i] for i in range(5)), [5, 6]]
        self._hull = np.flatnonzero(
            (self.model.geom_group == 3) & (self.model.geom_bodyid > self.model.body("base").id)
        )
        self.model.geom_conaffinity[self.model.geom("table").id] |= HULL
        # which of its geoms may touch a body says once: the broad phase asks it
        self.model.body_conaffinity[0] |= HULL
        self.model.body_contype[self.model.geom_bodyid[self._hull]] |= HULL
        self.temperature_c = [WARM_C] * 6
        self._limp: list[int] = []
        self.held = True
        self._steps = self._owed_ns = 0
        self.reset(0)

    def reset(self, seed: int) -> None:
        """The world as `reset(seed=seed)` lays it out, motors cool, torque off."""
        self.world.reset(seed=seed)
        self.temperature_c[:] = [WARM_C] * 6
        self._owed_ns = 0
        self.power((0.0,) * 6)
        self.held = True

    def power(self, share: Row) -> None:
        """How much of its torque each motor gives: 0 limp, 1 whole."""
        self._share = share
        self.model.actuator_gainprm[:] = self._gain * np.array(share)[:, None]
        self.model.actuator_biasprm[:] = self._bias * np.array(share)[:, None]
        self._limp = [dof for dofs, x in zip(self._dofs, share, strict=True) if not x for dof in dofs]
        self.data.qfrc_applied[:] = 0
        self.model.geom_contype[self._hull] = HULL if self._limp else 0
        self.held = self.held and not any(share)

    @property
    def share(self) -> Row:
        return self._share

    @property
    def time_ns(self) -> int:
        """Of the model, since it was built: no reset takes it back."""
        return self._steps * self.step_ns + self._owed_ns

    def pose(self, q: Row) -> None:
        """A hand moves the limp arm there, and holds it until there is torque."""
        self.data.qpos[:5], self.data.qpos[5:7] = q[:5], q[5]
        self.data.qvel[: max(map(max, self._dofs)) + 1] = 0
        self.held = True
        mujoco.mj_forward(self.model, self.data)

    def goal(self, q: Row) -> None:
        self.data.ctrl[:] = q

    def advance(self, dt_ns: int) -> None:
        """What is less than a physics step is owed to the next call."""
        n, self._owed_ns = divmod(self._owed_ns + dt_ns, self.step_ns)
        if not self.held:
            self._move(n)
        before, self._steps = self._steps, self._steps + n
        if times := self._steps // WARM_EVERY - before // WARM_EVERY:
            self._warm(times * WARM_EVERY * self.step_ns / 1e9)

    def _move(self, steps: int) -> None:
        if not self._limp:
            mujoco.mj_step(self.model, self.data, nstep=steps)
            return
        for _ in range(steps):
            self.data.qfrc_applied[self._limp] = -self.data.qfrc_gravcomp[self._limp]
            mujoco.mj_step(self.model, self.data)

    def _warm(self, dt_s: float) -> None:
        for i, x in enumerate(self.load):
            self.temperature_c[i] += dt_s * (HEAT_C_S * x * x - (self.temperature_c[i] - ROOM_C) / COOLING_S)

    @property
    def q(self) -> Row:
        """rad, and m of opening."""
        return (*self.data.qpos[:5].tolist(), self.world.opening)

    @property
    def dq(self) -> Row:
        return (*self.data.qvel[:5].tolist(), float(self.data.qvel[5:7].mean()))

    @property
    def load(self) -> Row:
        """Share of the largest force, signed."""
        return tuple(f / most for f, most in zip(self.data.actuator_force.tolist(), self._force, strict=True))

    def truth(self) -> dict[str, Any]:
        """What an all-seeing eye sees: streams of the world, `tip` (m), `is_success`; and `state`, which another such world can be
        set to."""
        seen = self.world.set_state(self.world.get_state())
        return {name: x.tolist() for name, x in seen.items()} | {
            "q": list(self.q),
            "tip": self.world.tip_pos.tolist(),
            "is_success": self.world.is_success,
            "time_s": self.world.time_s,
            "state": self.world.get_state().tolist(),
        }
