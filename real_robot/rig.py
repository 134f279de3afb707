"""A twin with an arm's processes on it, and what is measured there: for `real_robot.faults`."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import pairwise
from pathlib import Path

from polyarm.real_robot import calibration, pages
from polyarm.real_robot.daemon import Daemon
from polyarm.real_robot.so101 import SPEC
from polyarm.real_robot.station import Station
from polyarm.real_robot.twin.server import Remote
from polyarm.spec import UserError

LIMITS = {
    "box_low_m": [-0.05, -0.35, 0.004],
    "box_high_m": [0.42, 0.35, 0.5],
    "floor_m": 0.02,
    "lag": [0.5] * 5 + [1.0],
}
JOINTS = tuple(calibration.so101().joints.values())
MOVING_RAD_S = 0.05


class Rig:
    """A twin, and what is measured at it."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.name = f"faults-{os.getpid()}"
        self.port, file = str(folder / "so101"), folder / "calibration.yaml"
        calibration.so101().save(file)
        self.twin = subprocess.Popen(
            [sys.executable, "-m", "polyarm.cli", "twin", "so101", "--unix", self.port], stdout=subprocess.DEVNULL
        )
        stack.callback(self.twin.wait)
        stack.callback(self.twin.terminate)
        until(lambda: os.path.exists(self.port), 60)
        with suppress(PermissionError):
            os.sched_setscheduler(self.twin.pid, os.SCHED_FIFO, os.sched_param(65))
        self.remote = Remote(self.port)
        stack.callback(self.remote.close)
        stack.callback(self._tidy, folder.name)
        arm = {"_target_": "polyarm.real_robot.feetech.So101", "port": self.port, "calibration": str(file)}
        self.station = Station(self.name, arm, LIMITS, "polyarm.real_robot.body.so101_body", "lead", linger_s=5.0)

    def _tidy(self, folder: str) -> None:
        for path in pages.FOLDER.glob(f"polyarm-*{folder}*"):
            path.unlink()

    @contextmanager
    def enabled(self) -> Iterator[Daemon]:
        daemon = Daemon(self.station)
        try:
            daemon.yield_policy()
            self.remote("reset", seed=0)
            daemon.enable()
            yield daemon
        finally:
            daemon.close()

    @contextmanager
    def running(self, kind: str = "sine") -> Iterator[Daemon]:
        """The arm follows a policy that is a process of its own."""
        with self.enabled() as daemon, self.policy(daemon, kind):
            yield daemon

    @contextmanager
    def policy(self, daemon: Daemon, kind: str = "sine") -> Iterator[subprocess.Popen[bytes]]:
        child = subprocess.Popen([sys.executable, "-m", "polyarm.real_robot.puppet", self.name, kind])
        try:
            until(lambda: daemon.status()["state"] == "RUN", 60)
            time.sleep(1.0)
            self.remote("log")
            yield child
        finally:
            child.kill()
            child.wait()

    def fault(self, daemon: Daemon) -> None:
        """Wait for it."""
        until(lambda: daemon.status()["state"] == "FAULT", 5)

    def rest_ms(self, since: int, seconds: float = 0.9) -> float:
        """When the twin's arm moved last."""
        last, before = since, self.remote("truth")
        while time.monotonic_ns() < since + seconds * 1e9:
            time.sleep(0.005)
            truth = self.remote("truth")
            dt = (truth["t_ns"] - before["t_ns"]) / 1e9
            if any(abs(a - b) > MOVING_RAD_S * dt for a, b in zip(truth["q"][:5], before["q"][:5], strict=True)):
                last = truth["t_ns"]
            before = truth
        return (last - since) / 1e6

    def goals(self) -> list[tuple[int, tuple[float, ...]]]:
        """(ns, joints) of every whole command that came over the wire since the last call."""
        written = [(t, i, value) for t, i, what, value in self.remote("log")["written"] if what == "goal"]
        rows = [written[k : k + 6] for k in range(0, len(written) - 5, 6)]
        return [(row[0][0], tuple(j.angle(x[2]) for j, x in zip(JOINTS, row, strict=True))) for row in rows]


def until(true: Callable[[], bool], seconds: float) -> None:
    began = time.monotonic()
    while not true():
        if time.monotonic() > began + seconds:
            raise UserError(f"the twin's arm did not get there within {seconds:g} s: give the machine less to do")
        time.sleep(0.001)


def beyond(rows: list[tuple[int, tuple[float, ...]]]) -> tuple[float, float]:
    """How far commands went beyond the limits (rad or m), and their largest share of the velocity limit."""
    out = max(max(low - q, q - high) for _, row in rows for q, low, high in zip(row, SPEC.low, SPEC.high, strict=True))
    pairs = pairwise(rows)
    fast = max(
        abs(b - a) * SPEC.rate_hz / v for (_, x), (_, y) in pairs for a, b, v in zip(x, y, SPEC.velocity, strict=True)
    )
    return out, fast
