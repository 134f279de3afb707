"""A policy without a network, for faults to happen to: `python -m polyarm.real_robot.puppet ROBOT sine|nan|jump`."""

from __future__ import annotations

import math
import sys
import time

from polyarm.real_robot import pages

HOME = (0.0, -0.3, 0.4, 1.2, 0.0, 0.015)


def policy(name: str, kind: str = "sine") -> None:
    """A policy in a process of its own: eight rows ahead every 100 ms, and sums in between as a network would do. `kind`: what
    every third chunk holds."""
    page = pages.Writer(f"{name}.policy", 65536)
    began, number = time.monotonic_ns(), 0
    while True:
        now, number = time.monotonic_ns(), number + 1
        times = [(now + k * 50_000_000 - began) / 1e9 for k in range(8)]
        rows = [
            [0.7 * math.sin(2.5 * t), *(h + 0.15 * math.sin(2 * t + j) for j, h in enumerate(HOME[1:5])), 0.015]
            for t in times
        ]
        if number % 3 == 2 and kind != "sine":
            rows = [[math.nan if kind == "nan" else 50.0 * (-1) ** number] * 6] * 8
        page.say({"number": number, "seen_ns": now, "t_ns": now, "dt_ns": 50_000_000, "rows": rows})
        while time.monotonic_ns() - now < 100_000_000:
            sum(math.sqrt(k) for k in range(20_000))
            page.again()


if __name__ == "__main__":
    policy(*sys.argv[1:])
