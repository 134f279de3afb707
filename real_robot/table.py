"""A real arm at a table: a person lays the task out and says when it is done, cameras see it, and every episode begins at home."""

from __future__ import annotations

import select
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from math import ceil

import numpy as np
from gymnasium import spaces

from polyarm.real_robot.arm import PortLost, ReadFailed, Row
from polyarm.real_robot.camera import Frame, fit
from polyarm.real_robot.link import ArmStopped, Link, Seen
from polyarm.real_robot.plan import Chunk
from polyarm.real_robot.robot import Robot
from polyarm.real_robot.states import MOVES
from polyarm.real_robot.station import build_arm
from polyarm.spec import ActionSpace, ObsSpace, Spec, Stream, UserError

STALE_MS, FIRST_S = 250.0, 5.0
"""The oldest frame that is shown to a policy, and how long the first is waited for."""
ROW_NS = 50_000_000


def person(seed: int | None) -> None:
    """Waits until the scene is laid out."""
    print("lay the scene out, then press Enter; Enter again once the task is done", file=sys.stderr, flush=True)
    sys.stdin.readline()


def says_done() -> bool:
    """Whether Enter was pressed since."""
    if not select.select([sys.stdin], [], [], 0)[0]:
        return False
    sys.stdin.readline()
    return True


class Table:
    """What an arm and its cameras show, and a `Scene` by a person's word. `sees`: pictures are cut and averaged to the sizes there.

    `lay_out`, `done`: the person.
    """

    def __init__(
        self, robot: Robot, sees: ObsSpace, lay_out: Callable[[int | None], None] = person, done: Callable[[], bool] = says_done
    ) -> None:  # fmt: skip
        arm = build_arm(robot.station()).spec
        self.lay_out, self.done = lay_out, done
        self.eyes = robot.eyes()
        self.sizes: dict[str, tuple[int, int]] = {}
        for name, eye in self.eyes.items():
            height, width = sees[name].shape[:2] if name in sees.names else eye.size
            self.sizes[name] = height, width
        joints = Stream("joint_pos", "state", (len(arm.joints),), arm.joints, arm.units, "joint")
        pictures = tuple(Stream(name, "image", (*size, 3), frame=name) for name, size in self.sizes.items())
        action = ActionSpace(arm.joints, arm.units, "joint", robot.action_hz)
        self.world_spec = Spec(ObsSpace((joints, *pictures), robot.action_hz), action, {"arm": arm.model})
        self.action_space: spaces.Box = spaces.Box(
            np.array(arm.low, np.float32), np.array(arm.high, np.float32), dtype=np.float32
        )
        self.max_steps = max(1, round(robot.episode_s * robot.action_hz))
        self._last: dict[str, Frame] = {}

    def open(self, stack: ExitStack) -> None:
        if self.lay_out is person and not sys.stdin.isatty():
            raise UserError("a person lays the scene out and says when it is done: run it in a terminal")
        for name, eye in self.eyes.items():
            stack.callback(eye.close)
            eye.open()
            self._last[name] = eye.read(time.monotonic_ns() + round(FIRST_S * 1e9))

    def reset(self, seed: int | None) -> None:
        self.lay_out(seed)

    def see(self) -> tuple[dict[str, np.ndarray], bool]:
        now = time.monotonic_ns()
        for name, eye in self.eyes.items():
            try:
                self._last[name] = eye.read(now)
            except ReadFailed:
                pass
            except PortLost as error:
                raise ArmStopped(str(error)) from error
            if (age := (now - self._last[name].t_ns) / 1e6) > STALE_MS:
                raise ArmStopped(f"camera {name} has shown nothing new for {age:.0f} ms")
        return {name: fit(frame.image, self.sizes[name]) for name, frame in self._last.items()}, self.done()


class AtHome:
    """A `Link` whose arm keeps its torque between episodes and goes home at `rad_s`: one that is limp falls."""

    def __init__(self, link: Link, home: Row, speed: Row) -> None:
        """`speed`: of each joint, rad/s or m/s."""
        self.link, self.home, self.speed = link, home, speed
        self.lead_ns = link.lead_ns
        self._number = 0

    def now(self) -> int:
        return self.link.now()

    def enable(self) -> None:
        if self.look().state not in MOVES:
            self.link.enable()
            self._go()

    def release(self) -> None:
        """Home, and there it holds."""
        if self.look().state in MOVES:
            self._go()

    def submit(self, chunk: Chunk) -> None:
        self._number += 1
        self.link.submit(replace(chunk, number=self._number))

    def wait(self, t_ns: int) -> None:
        self.link.wait(t_ns)

    def look(self) -> Seen:
        return self.link.look()

    def close(self) -> None:
        self.link.close()

    def _go(self) -> None:
        here = self.look().q
        seconds = max(abs(b - a) / v for a, b, v in zip(here, self.home, self.speed, strict=True))
        n = max(1, ceil(seconds * 1e9 / ROW_NS))
        rows = tuple(tuple(a + (b - a) * (k + 1) / n for a, b in zip(here, self.home, strict=True)) for k in range(n))
        now = self.now()
        self.submit(Chunk(0, now, now + self.lead_ns + ROW_NS, ROW_NS, rows))
        self.wait(now + self.lead_ns + (n + 2) * ROW_NS)
        if (seen := self.look()).state not in MOVES:
            raise ArmStopped(f"the arm is in {seen.state} on its way home: {seen.why}")
