"""The link to an arm's own process: `Daemon`."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

from polyarm.real_robot import pages
from polyarm.real_robot.arm import Row
from polyarm.real_robot.link import ArmStopped, Seen
from polyarm.real_robot.plan import Chunk
from polyarm.real_robot.states import MOVES, State
from polyarm.real_robot.station import Station
from polyarm.spec import UserError

ANSWER_S = 5.0
BEAT_S = 0.025


class Daemon:
    """Starts the supervisor, and through it the arm's process; ends both at `close`. A thread of it is the policy's beat: what a
    policy that hangs has planned runs out, and what one that dies has planned ends with it."""

    def __init__(self, station: Station) -> None:
        self.station = station
        self._policy, self._operator = (
            pages.Writer(f"{station.name}.{kind}", 65536) for kind in ("policy", "operator")
        )
        self._hand = pages.Writer(f"{station.name}.hand")
        self._operator.say(None)
        self._number = 0
        self._turn, self._over = threading.Lock(), threading.Event()
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  closed in `_end`
        self._state: pages.Reader | None = None
        self._began = time.monotonic_ns()
        command = [sys.executable, "-m", "polyarm.real_robot.supervisor", station.json()]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=self._said, start_new_session=True)
        try:
            self._until(lambda: bool(self.status()), station.start_s, "did not start")
        except BaseException:
            self._end()
            raise
        self.lead_ns = int(1e9 / (station.rate_hz or 100.0))
        threading.Thread(target=self._beat, daemon=True, name="beat").start()

    def now(self) -> int:
        return time.monotonic_ns()

    def status(self) -> dict[str, Any]:
        """What the arm's process said last; {} before it said anything."""
        if self._state is None:
            try:
                self._state = pages.Reader(f"{self.station.name}.state")
            except FileNotFoundError:
                return {}
        value = self._state.read()
        return pages.data(value) if value and value.t_ns > self._began else {}

    def act(self, act: str, why: str = "") -> None:
        """Have a person's act done; UserError where it is refused."""
        self._number += 1
        self._operator.say({"number": self._number, "act": act, "why": why})
        self._until(lambda: self.status()["done"] >= self._number, ANSWER_S, f"did not answer to {act}")
        if error := self.status()["error"]:
            raise UserError(error)

    def enable(self) -> None:
        self.act("enable")

    def release(self) -> None:
        """Braked, then torque off."""
        if self.status()["state"] in MOVES:
            self.act("hold")
            self._until(self._resting, ANSWER_S, "does not come to rest")
            self.act("limp")

    def yield_policy(self) -> None:
        """Another process is the policy from now on; this one only operates."""
        self._over.set()
        with self._turn:
            self._policy.close()

    def submit(self, chunk: Chunk) -> None:
        with self._turn:
            self._policy.say(vars(chunk))

    def wait(self, t_ns: int) -> None:
        if (left := t_ns - self.now()) > 0:
            time.sleep(left / 1e9)

    def look(self) -> Seen:
        said = self.status()
        if self.process.poll() is not None:
            raise ArmStopped(f"the arm's supervisor ended with {self.process.poll()}")
        if not said["seen"]:
            raise ArmStopped(said["why"])
        sent = None if said["sent"] is None else tuple(said["sent"])
        return Seen(tuple(said["seen"]["q"]), said["seen_ns"], State(said["state"]), said["why"], said["now_ns"], sent)

    def last(self) -> Seen:
        return self.look()

    def hand(self, q: Row | None, at_ns: int) -> None:
        self._hand.say({"q": q}, at_ns)

    def close(self) -> None:
        """The arm brakes and stays, torque on where it was."""
        try:
            if self.process.poll() is None:
                if self.status()["state"] in MOVES:
                    self.act("hold")
                    self._until(self._resting, ANSWER_S, "does not come to rest")
                self.act("close")
                self.process.wait(ANSWER_S)
        finally:
            self._end()

    def _resting(self) -> bool:
        before = self.status()["sent"]
        time.sleep(0.03)
        return self.status()["sent"] == before

    def _beat(self) -> None:
        while not self._over.wait(BEAT_S):
            with self._turn:
                if not self._over.is_set():
                    self._policy.again()

    def _until(self, true: Callable[[], bool], seconds: float, what: str) -> None:
        end = time.monotonic() + seconds
        while not true():
            over = self.process.poll() is not None or time.monotonic() > end
            if over and not true():  # it may have answered and gone
                self._said.seek(0)
                last = self._said.read().decode(errors="replace").strip().splitlines()[-1:]
                raise UserError(last[0].removeprefix("polyarm: ") if last else f"the arm's process {what}")
            time.sleep(0.001)

    def _end(self) -> None:
        self._over.set()
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(ANSWER_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
        with self._turn:
            for page in (self._policy, self._operator, self._hand, self._state):
                if page is not None:
                    page.close()
        self._said.close()
        for kind in ("state", "policy", "operator", "hand"):
            pages.remove(f"{self.station.name}.{kind}")
