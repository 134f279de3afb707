"""Outlives the arm's process: when that dies or stands still, it ends it, takes the port and holds the arm where it is.

Started by `world.Daemon` in a session of its own, so that neither Ctrl-C nor the death of who started it reaches it. Run as
`python -m polyarm.real_robot.supervisor JSON`, with what `station.Station` has.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

from polyarm.real_robot import pages
from polyarm.real_robot.arm import Arm, PortLost, ReadFailed, Stop
from polyarm.real_robot.realtime import prioritise, settle
from polyarm.real_robot.states import ESTOP, FAULT, OFF
from polyarm.real_robot.station import Station, build_arm, own, pressed
from polyarm.spec import UserError

ABOVE = 70
"""Real-time priority: above the process that it watches."""
LOOK_S, KEEP_S = 0.01, 0.05
AWAKE_NS = 20_000_000
"""Of the time between two looks no more counts: what is beyond it this process did not run either."""
TAKE_S = 2.0
"""For how long it tries to have the port: the kernel lets go of a dead process's things when it likes."""


class Supervisor:
    def __init__(self, station: Station) -> None:
        self.station = station
        self.asked = False
        command = [sys.executable, "-m", "polyarm.real_robot.armd", station.json(), str(os.getpid())]
        self.child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        self.arm = build_arm(station)  # all that taking over needs is loaded before it is needed
        self._state: pages.Reader | None = None
        self._operator: pages.Reader | None = None
        self._began = self._looked_ns = time.monotonic_ns()
        self._heard = 0
        self._still_ns = self._pressed_ns = self._alone_ns = 0

    def run(self) -> int:
        """The exit code: 0 once the arm was closed as asked."""
        prioritise(ABOVE)
        settle()
        while True:
            time.sleep(LOOK_S)
            now = time.monotonic_ns()
            code = self.child.poll()
            if code == 0 or (code is not None and self._value() is None):
                return code
            why = f"the arm's process ended with {code}" if code is not None else self._silent(now)
            if why:
                self.child.kill()
                self.child.wait()
                return Keeper(self, why, now).run()
            if self.asked or self._alone(now):
                self.child.terminate()

    def _silent(self, now: int) -> str:
        """Why the arm's process has to go although it is there. Only time that this process was awake for counts: where a whole
        machine stood still, the other gets its turn too before it is judged."""
        stale_ns = self.station.stale_ms * 1e6
        awake_ns, self._looked_ns = min(now - self._looked_ns, AWAKE_NS), now
        value = self._value()
        if value is None:
            late = now - self._began > self.station.start_s * 1e9
            return f"the arm's process did not start within {self.station.start_s:g} s" if late else ""
        speaks = value.number != self._heard or value.t_ns >= now
        self._heard, self._still_ns = value.number, 0 if speaks else self._still_ns + awake_ns
        if self._still_ns > stale_ns:
            return f"the arm's process said nothing for {(now - value.t_ns) / 1e6:.0f} ms"
        self._pressed_ns = self._pressed_ns + awake_ns if pressed(self.station.name) else 0
        unheard = self._pressed_ns > stale_ns and now > value.t_ns and pages.data(value)["state"] not in (ESTOP, OFF)
        return "the arm's process did not see the emergency stop" if unheard else ""

    def _value(self) -> pages.Value | None:
        """What the arm's process said last; None before it said anything."""
        if self._state is None:
            with suppress(FileNotFoundError):
                self._state = pages.Reader(f"{self.station.name}.state")
        value = self._state.read() if self._state else None
        return value if value and value.t_ns > self._began else None

    def _alone(self, now: int) -> bool:
        """Whether whoever started this has been gone for too long."""
        if operator(self):
            self._alone_ns = 0
            return False
        self._alone_ns = self._alone_ns or now
        return now - self._alone_ns > self.station.linger_s * 1e9


def operator(of: Supervisor) -> pages.Reader | None:
    """The page of whoever started this, while he lives."""
    if of._operator is None:
        with suppress(FileNotFoundError):
            of._operator = pages.Reader(f"{of.station.name}.operator")
    return of._operator if of._operator and of._operator.alive else None


class Keeper:
    """Holds the arm in place of the process that had it; all that can be done then is to be limp, or to end."""

    def __init__(self, supervisor: Supervisor, why: str, since: int) -> None:
        self.of, self.why, self.since = supervisor, why, since
        self.done = int(pages.data(supervisor._value()).get("done", 0))
        self.error = ""
        self.page = pages.Writer(f"{supervisor.station.name}.state")
        self.lock: int | None = None

    def run(self) -> int:
        arm, held = self.of.arm, self._take()
        after = (time.monotonic_ns() - self.since) / 1e6
        self.why += f"; the supervisor holds the arm, after {after:.0f} ms" if held else "; the arm cannot be reached"
        while True:
            self._say(arm)
            if self.of.asked or self._told(arm) or self.of._alone(time.monotonic_ns()):
                arm.close()
                return 1
            time.sleep(KEEP_S)

    def _take(self) -> bool:
        end = time.monotonic() + TAKE_S
        while time.monotonic() < end:
            try:
                self.lock = own(self.of.station) if self.lock is None else self.lock
                self.of.arm.open()
                self.of.arm.stop(Stop.HOLD)
                return True
            except (UserError, ReadFailed, PortLost) as e:
                self.error = str(e)
                time.sleep(0.005)
        return False

    def _say(self, arm: Arm) -> None:
        seen = None
        with suppress(ReadFailed, PortLost):
            seen = {"q": arm.read().q}
        now = time.monotonic_ns()
        self.page.say({"state": FAULT, "why": self.why, "stopped_by": self.why, "now_ns": now, "seen_ns": now,
                       "seen": seen, "sent": None, "done": self.done, "error": self.error})  # fmt: skip

    def _told(self, arm: Arm) -> bool:
        """Whether it is told to end."""
        page = operator(self.of)
        asked = pages.data(page.read()) if page else {}
        if asked.get("number", 0) <= self.done:
            return False
        self.error = ""
        if asked["act"] == "limp":
            with suppress(ReadFailed, PortLost):
                arm.stop(Stop.LIMP)
        elif asked["act"] != "close":
            self.error = f"{self.why}: only limp and close are left, then start again"
        self.done = asked["number"]
        self._say(arm)
        return asked["act"] == "close"


def main(text: str) -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    supervisor = Supervisor(Station(**json.loads(text)))
    signal.signal(signal.SIGTERM, lambda *_: setattr(supervisor, "asked", True))
    return supervisor.run()


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1]))
    except UserError as e:
        sys.exit(f"polyarm: {e}")
