"""What lets a loop keep its time: priority, memory that stays, no garbage collection; and a figure of how well it did."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
import time

LIBC = ctypes.CDLL(None, use_errno=True)
PDEATHSIG, MCL_CURRENT, MCL_FUTURE = 1, 1, 2


def prioritise(priority: int) -> str:
    """SCHED_FIFO, or else nice, or else as it is; says which, and how to get the first."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
        return f"real-time priority {priority} (SCHED_FIFO)"
    except (PermissionError, OSError):
        pass
    remedy = "for real-time priority give the user `rtprio 90` in /etc/security/limits.conf"
    try:
        os.setpriority(os.PRIO_PROCESS, 0, -15)
        return f"nice -15, ticks may come late under load: {remedy}"
    except (PermissionError, OSError):
        return f"normal priority, ticks will come late under load: {remedy}"


def settle() -> None:
    """What is in memory stays there, and is never searched for garbage: everything a loop makes it lets go of by itself."""
    LIBC.mlockall(MCL_CURRENT | MCL_FUTURE)  # refused without the right to: then it is not
    gc.collect()
    gc.freeze()
    gc.disable()


def follow_parent(parent: int, number: int = signal.SIGTERM) -> None:
    """The kernel sends `number` when the process that started this one ends, however it does."""
    LIBC.prctl(PDEATHSIG, number)
    if os.getppid() != parent:  # it has already
        sys.exit(0)


class Ticks:
    """Absolute deadlines, `dt_ns` apart. One that is missed is counted and let go, never caught up with."""

    def __init__(self, dt_ns: int) -> None:
        self.dt_ns, self.missed = dt_ns, 0
        self.late = Late()
        self._next = time.monotonic_ns()

    def wait(self) -> int:
        """Sleep until the next one is due; the time it really is."""
        self._next += self.dt_ns
        ahead = self._next - time.monotonic_ns()
        if ahead > 0:
            time.sleep(ahead / 1e9)
        now = time.monotonic_ns()
        self.late.add(now - self._next)
        if now - self._next > self.dt_ns:
            gone = (now - self._next) // self.dt_ns
            self.missed += gone
            self._next += gone * self.dt_ns
        return now


class Late:
    """Counts of how late, in bins of 10 us up to 50 ms."""

    BIN_NS, BINS = 10_000, 5000

    def __init__(self) -> None:
        self._bins = [0] * self.BINS
        self.n = self.most_ns = 0

    def add(self, ns: int) -> None:
        self._bins[min(max(ns, 0) // self.BIN_NS, self.BINS - 1)] += 1
        self.n += 1
        self.most_ns = max(self.most_ns, ns)

    def ms(self, share: float) -> float:
        """The lateness that this share of ticks stayed within, rounded up to a bin."""
        left = share * self.n
        for k, count in enumerate(self._bins):
            left -= count
            if left <= 0:
                return min((k + 1) * self.BIN_NS, max(self.most_ns, 0)) / 1e6
        return self.most_ns / 1e6

    def figures(self) -> dict[str, int | float]:
        return {"n": self.n, "p50": self.ms(0.5), "p99": self.ms(0.99), "max": self.most_ns / 1e6}
