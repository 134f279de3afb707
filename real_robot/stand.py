"""A station brought up: the link to its arm's loop, and what there is beside it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from polyarm.real_robot.arm import ArmSpec, Stop
from polyarm.real_robot.bringup import PLACES
from polyarm.real_robot.daemon import Daemon
from polyarm.real_robot.link import HandLink
from polyarm.real_robot.robot import Robot, standing
from polyarm.real_robot.station import build_arm
from polyarm.real_robot.world import PlantScene, Scene
from polyarm.sim.mujoco.pick_place import PickPlace
from polyarm.spec import Stream

SEEN = ("cube", "target")
"""What an eye that sees all adds to the joints, of the scene of pick_place."""


@dataclass
class Stand:
    """`truth`, `scene`: of a twin or a simulator; None at a table, where a person lays things out."""

    robot: Robot
    link: HandLink
    spec: ArmSpec
    scene: Scene | None = None
    truth: Callable[[], Mapping[str, Any]] | None = None
    eye: tuple[Stream, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    _began: tuple[int, float] | None = None

    @property
    def tick_ns(self) -> int:
        return round(1e9 / self.robot.rate_hz)

    @property
    def row_ns(self) -> int:
        return round(1e9 / self.robot.action_hz)

    @property
    def row_hz(self) -> float:
        return float(self.robot.action_hz)

    @property
    def lockstep(self) -> bool:
        return self.robot.clock == "lockstep"

    def pace(self) -> None:
        """Let an arm in lock-step go no faster than the clock, for a person's sake."""
        if not self.lockstep:
            return
        now = self.link.now()
        self._began = self._began or (now, time.monotonic())
        time.sleep(max(0.0, self._began[1] + (now - self._began[0]) / 1e9 - time.monotonic()))

    def end(self) -> None:
        """At rest as the station says: torque on, or limp."""
        if self.robot.at_end == Stop.LIMP.value:
            self.link.release()


@contextmanager
def brought_up(robot: Robot) -> Iterator[Stand]:
    """The arm is there and limp; at the end of the block it is left as the station says."""
    with ExitStack() as stack:
        robot = stack.enter_context(standing(robot))
        stand = _stand(robot, stack)
        stack.callback(stand.link.close)
        yield stand
        stand.end()


def _stand(robot: Robot, stack: ExitStack) -> Stand:
    if robot.estimator is None:
        spec = build_arm(robot.station()).spec  # whoever refuses these settings does it before a process begins
        return Stand(robot, Daemon(robot.station()), spec)
    world = PickPlace()
    link, scene = PLACES[robot.estimator](robot, world, stack)
    assert isinstance(link, HandLink)
    spec, eye = build_arm(robot.station()).spec, tuple(world.world_spec.obs[name] for name in SEEN)
    truth = scene.plant.truth if isinstance(scene, PlantScene) else lambda: scene.remote("truth")  # type: ignore[attr-defined]
    return Stand(robot, link, spec, scene, truth, eye, world.world_spec.versions)
