"""Arms for tests: a driver and the truth beside it, whether there is a wire between them or not."""

from __future__ import annotations

import os
import tempfile
import threading
from contextlib import contextmanager
from functools import lru_cache

from polyarm.real_robot.calibration import so101
from polyarm.real_robot.feetech import So101
from polyarm.real_robot.mujoco_arm import MujocoArm
from polyarm.real_robot.plant import Plant
from polyarm.real_robot.twin.server import Remote, Server
from polyarm.real_robot.twin.twin import Twin

MOUNTED = so101((1, -1, 1, -1, 1, -1), (2048, 2000, 2100, 2060, 2148, 3000), (5, -100, 0, 0, 17, 0))
"""Motors that stand in many ways: a driver that forgets a sign, a zero or a homing is wrong somewhere."""
TICK_NS = 10_000_000
DRIVERS = ("mujoco", "unix", "pty")


@lru_cache(maxsize=1)
def plant():
    """One model for all tests, which take turns."""
    return Plant()


class Rig:
    """`arm` with its `truth()`; `advance(ticks)` lets time pass; `remote` tells its twin, `written()` is the twin's evidence."""

    def __init__(self, arm, plant, remote=None, server=None):
        self.arm, self.plant, self.remote, self.server = arm, plant, remote, server

    def truth(self):
        return self.plant.truth() if self.remote is None else self.remote("truth")

    def advance(self, ticks=1):
        if self.remote is None:
            self.arm.advance(ticks * TICK_NS)
        else:
            bus = self.arm._bus
            self.remote("advance", dt_ns=ticks * TICK_NS, sent=None if bus is None else bus.wire.sent)

    def written(self):
        """[(motor, what, value)] in the order of the wire, once the twin has heard all that was sent."""
        self.advance(0)
        return [(motor, what, value) for _, motor, what, value in self.remote("log")["written"]]


@contextmanager
def rig(kind, mounted=MOUNTED, slack_ms=2000.0, **server):
    """A closed arm at the scene of seed 0. Lock-step: a reply is waited for, however slow the machine."""
    p = plant()
    p.reset(0)
    if kind == "mujoco":
        yield Rig(MujocoArm(p), p)
        return
    with serving(Twin(mounted, p, lockstep=True), kind, **server) as (path, remote, served):
        arm = So101(path, mounted, slack_ms=slack_ms, clock=lambda: p.time_ns)
        try:
            yield Rig(arm, p, remote, served)
        finally:
            arm.close()


@contextmanager
def serving(twin, kind, **server):
    """(path, remote, server) of a twin that a thread serves."""
    with tempfile.TemporaryDirectory() as folder:  # a socket's path must be short, which pytest's folders are not
        served = Server(twin, kind, os.path.join(folder, "arm"), **server)
        thread = threading.Thread(target=served.run, daemon=True)
        thread.start()
        remote = Remote(served.path)
        try:
            yield served.path, remote, served
        finally:
            remote.close()
            served.stop()
            thread.join(20)
            assert not thread.is_alive()
