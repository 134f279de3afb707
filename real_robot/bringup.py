"""A station brought up for a policy: its arm as the worlds of a rollout. What fails on the way takes back what stood already."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
from gymnasium import spaces

from polyarm.real_robot.daemon import Daemon
from polyarm.real_robot.link import Inline, Link
from polyarm.real_robot.robot import Robot, standing
from polyarm.real_robot.station import Station, build_arm, build_loop
from polyarm.real_robot.table import AtHome, Table
from polyarm.real_robot.twin.server import Remote
from polyarm.real_robot.world import PlantScene, RobotWorld, Scene
from polyarm.sim.mujoco.pick_place import PickPlace
from polyarm.spec import ObsSpace, Spec, UserError

PATIENCE_MS = 20_000.0
"""For a reply of a twin whose time stands still meanwhile."""


class Mirror:
    """What an eye that sees all of a twin's scene sees: `world` is set to the twin's state, and shows it."""

    def __init__(self, remote: Callable[..., dict[str, Any]], world: PickPlace) -> None:
        self.remote, self.world = remote, world

    def reset(self, seed: int | None) -> None:
        self.remote("reset", seed=0 if seed is None else seed)

    def see(self) -> tuple[dict[str, np.ndarray], bool]:
        truth = self.remote("truth")
        return self.world.set_state(np.array(truth["state"])), bool(truth["is_success"])


@runtime_checkable
class Before(Protocol):
    """What a policy must fit, known before anything is opened."""

    action_space: spaces.Box
    max_steps: int

    @property
    def world_spec(self) -> Spec: ...


@contextmanager
def bring_up(robot: Robot, world: Before) -> Iterator[RobotWorld]:
    """`world`: of `before`. At the end the arm brakes, then stays or falls as
    `robot.at_end` says."""
    with ExitStack() as stack:
        robot = stack.enter_context(standing(robot))
        link, scene = PLACES[robot.estimator](robot, world, stack)
        stack.callback(_leave, link, robot.at_end)
        if isinstance(link, Inline):
            link.loop.open(link.now())
        yield RobotWorld(link, scene, world.world_spec, world.action_space, world.max_steps)


def said(world: RobotWorld) -> dict[str, Any]:
    """All that is known of an arm that was brought up, as `armd.Desk.show` says it; a supervisor that holds it knows less."""
    link = world.link.link if isinstance(world.link, AtHome) else world.link
    assert isinstance(link, Inline | Daemon)
    return {"late_ms": {}, "priority": "", "counts": {}} | link.status()


def _leave(link: Link, at_end: str) -> None:
    if isinstance(link, AtHome):
        link = link.link
    if at_end == "limp":
        link.release()
    link.close()


def _in_model(robot: Robot, world: PickPlace, stack: ExitStack) -> tuple[Link, Scene]:
    station = robot.station()
    from polyarm.real_robot.mujoco_arm import MujocoArm
    from polyarm.real_robot.plant import Plant

    arm = build_arm(replace(station, arm={**station.arm, "plant": Plant(world)}))
    if not isinstance(arm, MujocoArm):
        raise UserError(
            f"robot.driver={robot.driver} has no model to see all of: give robot.estimator=null, or robot=so101_sim"
        )
    return Inline(build_loop(station, arm), arm.advance), PlantScene(arm.plant)


def _at_twin(robot: Robot, world: PickPlace, stack: ExitStack) -> tuple[Link, Scene]:
    assert robot.port is not None
    station, remote = robot.station(), Remote(robot.port)
    stack.callback(remote.close)
    _require_clock(robot, remote)
    link = _lockstep(station, remote) if robot.clock == "lockstep" else Daemon(station)
    return link, Mirror(remote, world)


def _require_clock(robot: Robot, remote: Remote) -> None:
    stands = False
    with suppress(UserError):
        remote("advance", dt_ns=0)
        stands = True
    if stands != (robot.clock == "lockstep"):
        how, other = ("stands still", "lockstep") if stands else ("follows the clock", "wall")
        raise UserError(
            f"the time of the twin at {robot.port} {how}, robot.clock is {robot.clock}: give robot.clock={other}"
        )


def _lockstep(station: Station, remote: Remote) -> Inline:
    """Time is the twin's own, which goes on once it has heard all that was sent."""
    time_ns = [remote("advance", dt_ns=0)["time_ns"]]
    arm: Any = build_arm(replace(station, arm={**station.arm, "slack_ms": PATIENCE_MS, "clock": lambda: time_ns[0]}))

    def advance(dt_ns: int) -> None:
        time_ns[0] = remote("advance", dt_ns=dt_ns, sent=arm.bus.wire.sent)["time_ns"]

    return Inline(build_loop(station, arm), advance)


def _at_table(robot: Robot, table: Any, stack: ExitStack) -> tuple[Link, Scene]:
    table.open(stack)
    link: Link = Daemon(robot.station())
    if robot.home is not None:
        spec = build_arm(robot.station()).spec
        share = robot.home_rad_s / max(spec.velocity)
        link = AtHome(link, tuple(map(float, robot.home)), tuple(share * v for v in spec.velocity))
    return link, table


PLACES: Mapping[str | None, Callable[[Robot, Any, ExitStack], tuple[Link, Scene]]] = {
    "sim": _in_model,
    "twin": _at_twin,
    None: _at_table,
}


def before(robot: Robot, task: Mapping[str, Any], sees: ObsSpace) -> Before:
    """What is before the arm: a table; or of an arm that is not there the scene of its model, as `task` looks at it where it is
    the same. Opens nothing."""
    if robot.estimator is None:
        return Table(robot, sees)
    return PickPlace(**(task["env_kwargs"] if task["env_id"] == "polyarm/PickPlace-v0" else {}))
