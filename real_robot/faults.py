"""What the promises about a dying or damaged part are worth on this machine: `python -m polyarm.real_robot.faults`.

Everything runs as on an arm, against a twin on a Unix socket (the kernel moves a pty's bytes when it likes); evidence is the twin's
log of what was written and where its arm really was, never the driver's word. Settings: kills=20 takeovers=5 minutes=10 seconds=60.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from polyarm.real_robot.rig import Rig, beyond
from polyarm.spec import UserError, unknown

SETTINGS = {"kills": 20.0, "takeovers": 5.0, "minutes": 10.0, "seconds": 60.0}
Row = tuple[str, str, str, bool]
"""fault, promise, measured, kept"""


def policy_killed(rig: Rig, n: int) -> Iterator[Row]:
    last, rest, out, fast = [], [], [], []
    with rig.enabled() as daemon:
        for k in range(n):
            with rig.policy(daemon) as child:
                time.sleep(0.2 + 0.61803 * k % 0.9)
                killed = time.monotonic_ns()
                child.kill()
                child.wait()
                rest.append(rig.rest_ms(killed))
                goals = rig.goals()
                changes = [t for (_, before), (t, q) in pairwise(goals) if q != before and t > killed]
                last.append(max([0.0, *((t - killed) / 1e6 for t in changes)]))
                far, quick = beyond(goals)
                out.append(far)
                fast.append(quick)
    yield f"kill -9 of the policy x{n}", "last goal change <= 150 ms", spread(last), max(last) <= 150
    yield "", "arm at rest <= 420 ms", spread(rest), max(rest) <= 420
    yield (
        "",
        "within position and velocity",
        f"{max(out):+.4f} beyond, {max(fast):.2f} of v",
        max(out) <= 0 and max(fast) < 1.08,
    )


def owner_lost(rig: Rig, n: int, number: signal.Signals) -> Iterator[Row]:
    held, rest = [], []
    for k in range(n):
        with rig.running() as daemon:
            time.sleep(0.1 * k % 0.5)
            owner = int(Path(f"/proc/{daemon.process.pid}/task/{daemon.process.pid}/children").read_text().split()[0])
            lost = time.monotonic_ns()
            os.kill(owner, number)
            rest.append(rig.rest_ms(lost))
            rig.fault(daemon)
            held.append((rig.goals()[-1][0] - lost) / 1e6)  # the supervisor writes goals once
    yield f"{number.name} of armd x{n}", "the supervisor holds <= 300 ms", spread(held), max(held) <= 300
    yield "", "arm at rest <= 420 ms", spread(rest), max(rest) <= 420


def noisy_wire(rig: Rig, minutes: float, **trouble: float) -> Iterator[Row]:
    with rig.running() as daemon:
        rig.remote("trouble", **trouble)
        states, ages, errors, end = set(), [], [], time.monotonic() + 60 * minutes
        while time.monotonic() < end:
            truth, said = rig.remote("truth"), daemon.status()
            states.add(said["state"])
            age = (truth["t_ns"] - said["seen_ns"]) / 1e6
            ages.append(age)
            errors.append(max(abs(a - b) for a, b in zip(truth["q"][:5], said["seen"]["q"][:5], strict=True)))
            time.sleep(0.01)
        counts = daemon.status()["counts"]["loop"]
        rig.remote("trouble", **dict.fromkeys(trouble, 0.0))
    what = ", ".join(f"{100 * share:g} % {name}" for name, share in trouble.items())
    yield f"{what}, {minutes:g} min", "no stop", ", ".join(sorted(states)), states == {"RUN"}
    yield "", "state age <= 50 ms", spread(ages), max(ages) <= 50
    bad = counts.get("states that cannot be", 0)
    yield (
        "",
        "no bad state accepted",
        f"off by {max(errors):.3f} rad at most, {bad} refused",
        max(errors) <= 3.0 * 0.05 + 0.02,
    )


def alarms(rig: Rig) -> Iterator[Row]:
    for what, deed, given, most in (
        ("overheat bit", "force", {"motor": 2, "bits": 4}, 30.0),
        ("cable pulled", "unplug", {}, 20.0),
    ):
        with rig.running() as daemon:
            began = time.monotonic()
            rig.remote(deed, **given)
            rig.fault(daemon)
            took = 1e3 * (time.monotonic() - began)
            why = daemon.status()["why"]
            rig.remote("plug") if deed == "unplug" else rig.remote("force", motor=2, bits=0)
        yield what, f"FAULT <= {most:g} ms", f"{took:.0f} ms: {why[:60]}", took <= most


def chunks(rig: Rig, kind: str) -> Iterator[Row]:
    with rig.running(kind):
        time.sleep(4)
        far, quick = beyond(rig.goals())
    yield (
        f"every third chunk {kind}",
        "within position and velocity",
        f"{far:+.4f} beyond, {quick:.2f} of v",
        far <= 0 and quick < 1.08,
    )


def lateness(rig: Rig, seconds: float) -> Iterator[Row]:
    with rig.running() as daemon:
        time.sleep(seconds)
        said = daemon.status()
    late = said["late_ms"]
    yield f"100 Hz beside a policy, {seconds:g} s", "p99 lateness <= 0.5 ms", "p50 {p50:.2f}, p99 {p99:.2f}, max {max:.2f} ms".format(**late), late["p99"] <= 0.5  # fmt: skip
    yield "", "real-time priority", said["priority"], "FIFO" in said["priority"]


def spread(ms: list[float]) -> str:
    return f"median {median(ms):.0f}, max {max(ms):.0f} ms"


def measure(settings: dict[str, float]) -> Iterator[Row]:
    with ExitStack() as stack:
        rig = Rig(Path(stack.enter_context(tempfile.TemporaryDirectory())), stack)
        yield from policy_killed(rig, int(settings["kills"]))
        for number in (signal.SIGKILL, signal.SIGSTOP):
            yield from owner_lost(rig, int(settings["takeovers"]), number)
        yield from alarms(rig)
        for kind in ("nan", "jump"):
            yield from chunks(rig, kind)
        yield from noisy_wire(rig, settings["minutes"], drop=0.01, corrupt=0.01)
        yield from noisy_wire(rig, settings["minutes"] / 10, late=0.02)
        yield from lateness(rig, settings["seconds"])


def main(words: list[str]) -> int:
    """0 if every promise was kept."""
    given: dict[str, Any] = dict(word.split("=", 1) for word in words)
    for name in given:
        if name not in SETTINGS:
            raise unknown("setting", name, SETTINGS)
    kept = True
    print(
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; the twin stands for the arm, no hardware was there\n"
    )
    for fault, promise, measured, good in measure(SETTINGS | {k: float(x) for k, x in given.items()}):
        print(f"{fault:34} | {promise:31} | {'kept' if good else 'NOT '} | {measured}", flush=True)
        kept = kept and good
    return 0 if kept else 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as e:
        sys.exit(f"polyarm: {e}")
