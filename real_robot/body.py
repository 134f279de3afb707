"""Where an arm's links are, for the safety filter: kinematics and hulls of a MuJoCo model, nothing that moves."""

from __future__ import annotations

from collections.abc import Sequence

import mujoco
import numpy as np

from polyarm.real_robot.arm import Row
from polyarm.real_robot.limits import Limits
from polyarm.sim.mujoco import so101

INSIDE_M = 2e-4
"""How far inside the box a projected tip is put, so that what the linear step leaves over does not matter."""


class HullBody:
    """A `safety.Body`. `qpos`: for each position of the model the joint whose value it takes. Hulls are the geoms of group 3; links that share
    a joint or a parent are neighbours and may touch."""

    def __init__(self, xml: str, limits: Limits, tip: str, above: Sequence[str], qpos: Sequence[int]) -> None:
        spec = mujoco.MjSpec.from_string(xml)
        plain = mujoco.MjModel.from_xml_string(xml)
        for geom in spec.geoms:
            geom.contype = geom.conaffinity = 0
        for a, b in _apart(plain):
            spec.add_pair(geomname1=a, geomname2=b).margin = limits.apart_m
        self.model = spec.compile()
        self.data = mujoco.MjData(self.model)
        self.limits, self._qpos = limits, list(qpos)
        self._tip, self._above = self.model.site(tip).id, [self.model.body(name).id for name in above]
        self._jac = np.zeros((3, self.model.nv))

    def tip(self, q: Row) -> list[float]:
        """x y z of the tip, m in the base frame."""
        self.data.qpos[:] = [q[i] for i in self._qpos]
        mujoco.mj_kinematics(self.model, self.data)
        return self.data.site_xpos[self._tip].tolist()

    def depths(self, q: Row) -> tuple[float, ...]:
        limits, tip = self.limits, self.tip(q)
        sides = zip(limits.box_low_m, tip, limits.box_high_m, strict=True)
        below = limits.box_low_m[2] - tip[2]
        out = max(max(low - x if k < 2 else 0.0, x - high) for k, (low, x, high) in enumerate(sides))
        low = limits.floor_m - min(self.data.xpos[self._above, 2].tolist())
        mujoco.mj_collision(self.model, self.data)
        near = self.data.contact.dist.min() if self.data.ncon else limits.apart_m
        return max(0.0, out), max(0.0, below, low), max(0.0, limits.apart_m - float(near))

    def project(self, q: Row, rounds: int = 6) -> Row:
        limits, tip = self.limits, self.tip(q)
        low = [x + INSIDE_M for x in limits.box_low_m]
        high = [x - INSIDE_M for x in limits.box_high_m]
        if all(a - INSIDE_M <= x <= b + INSIDE_M for a, x, b in zip(low, tip, high, strict=True)):
            return q
        pose = np.array(q)
        for _ in range(rounds):
            way = np.clip(tip, low, high) - tip
            if np.abs(way).max() < INSIDE_M / 2:
                break
            jac = self._jacobian(len(q))
            pose = pose + jac.T @ np.linalg.solve(jac @ jac.T + 1e-5 * np.eye(3), way)
            pose = np.clip(pose, limits.low, limits.high)
            tip = self.tip(tuple(pose.tolist()))
        return tuple(pose.tolist())

    def jacobian(self, q: Row) -> np.ndarray:
        """[3 n] of the tip's x y z in the base frame, m a unit of each joint."""
        self.tip(q)
        return self._jacobian(len(q))

    def _jacobian(self, n: int) -> np.ndarray:
        """At the pose that `tip` was last asked of."""
        mujoco.mj_comPos(self.model, self.data)
        mujoco.mj_jacSite(self.model, self.data, self._jac, None, self._tip)
        jac = np.zeros((3, n))
        np.add.at(jac.T, self._qpos, self._jac.T)
        return jac


def so101_body(limits: Limits) -> HullBody:
    """The SO-101 of the simulator: the last joint is the opening of both fingers."""
    return HullBody(so101.scene("", 0.005), limits, "tip", ("fore", "wrist", "hand"), (0, 1, 2, 3, 4, 5, 5))


def _apart(model: mujoco.MjModel) -> list[tuple[str, str]]:
    """Pairs of hulls whose links are no neighbours."""
    hulls = [g for g in range(model.ngeom) if model.geom_group[g] == 3]
    up = model.body_parentid
    near = lambda a, b: a == b or b in (up[a], up[up[a]]) or a in (up[b], up[up[b]]) or up[a] == up[b]
    pairs = [(a, b) for i, a in enumerate(hulls) for b in hulls[i + 1 :]]
    return [
        (model.geom(a).name, model.geom(b).name)
        for a, b in pairs
        if not near(model.geom_bodyid[a], model.geom_bodyid[b])
    ]
