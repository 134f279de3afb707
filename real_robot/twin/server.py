"""A twin where a driver can find it: on a pty or a Unix socket, with a second socket beside it for what no bus says.

That one, `PATH.ctl`, takes a line of JSON, {"do": "heat", "motor": 2, "celsius": 80}, and answers with one; `Remote` speaks it.
"""

from __future__ import annotations

import json
import os
import select
import socket
import stat
import time
import tty
from collections import deque
from pathlib import Path
from typing import Any

from polyarm.real_robot.twin.twin import Twin
from polyarm.spec import UserError

ARRIVE_S = 1.0
"""How long a twin in lock-step waits for bytes that were sent: a kernel worker moves those of a pty."""


class Server:
    """`kind`: "pty" (`path` becomes a link to it) or "unix". `pace_baud`: replies take their bytes' time, 0 for none; `usb_ms`:
    an adapter's. One thread runs it; `stop` may be called from any, and from a signal handler."""

    def __init__(self, twin: Twin, kind: str, path: str, pace_baud: float = 0, usb_ms: float = 0) -> None:
        self.twin, self.kind, self.path = twin, kind, os.path.abspath(path)
        self.pace_baud, self.usb_s = pace_baud, usb_ms / 1000
        self.heard = 0
        self._due: deque[tuple[float, bytes]] = deque()
        self._late: list[tuple[float, bytes]] = []
        self._hosts: dict[int, socket.socket] = {}
        self._wake, self._woken = os.pipe()
        self._door: socket.socket | None = None
        self._line = self._slave = -1
        _clear(self.path)
        _clear(self.control)
        self._ctl = _listen(self.control)
        try:
            self._plug()
        except BaseException:
            self._remove()
            raise

    @property
    def control(self) -> str:
        return self.path + ".ctl"

    @property
    def port(self) -> str:
        """What a driver opens."""
        return os.ttyname(self._slave) if self._slave >= 0 else self.path

    def run(self) -> None:
        """Until `stop`; leaves no file behind."""
        try:
            while self._once():
                pass
        finally:
            self._remove()

    def stop(self, *_: object) -> None:
        os.write(self._woken, b"x")

    # the loop

    def _once(self) -> bool:
        ways = [fd for fd in (self._line, self._wake, self._ctl.fileno()) if fd >= 0] + list(self._hosts)
        if self._door is not None:
            ways.append(self._door.fileno())
        ready = select.select(ways, [], [], self._patience_s())[0]
        if self._wake in ready:
            return False
        for fd in ready:
            if fd == self._line:
                self._hear()
            elif self._door is not None and fd == self._door.fileno():
                self._accept()
            elif fd == self._ctl.fileno():
                host = self._ctl.accept()[0]
                self._hosts[host.fileno()] = host
            elif fd in self._hosts:
                self._serve(fd)
        self.twin.follow()
        self._send()
        return True

    def _patience_s(self) -> float:
        """Until the next reply is due, or physics moves on."""
        now = time.monotonic()
        step_s = 1.0 if self.twin.lockstep else self.twin.plant.step_ns / 1e9
        waits = [t - now for t, _ in (*list(self._due)[:1], *self._late)]
        return max(0.0, min([step_s, *waits]))

    def _hear(self) -> None:
        try:
            data = os.read(self._line, 4096)
        except BlockingIOError:
            return
        except OSError:  # the last host has closed its end of a pty
            data = b""
        if not data:
            self._hang_up()
            return
        self.heard += len(data)
        now = time.monotonic()
        for late_s, said in self.twin.line.hear(data):
            if late_s:
                self._late.append((now + late_s, said))  # the bus goes on meanwhile
                continue
            wire_s = 10 * len(said) / self.pace_baud if self.pace_baud else 0.0
            start = max(now + self.usb_s, self._due[-1][0] if self._due else 0.0)
            self._due.append((start + wire_s, said))
        self._send()

    def _send(self) -> None:
        now = time.monotonic()
        ready = [x for x in self._late if x[0] <= now]
        self._late = [x for x in self._late if x[0] > now]
        while self._due and self._due[0][0] <= now:
            ready.append(self._due.popleft())
        for _, said in ready:
            if self._line >= 0:
                try:
                    os.write(self._line, said)
                except OSError:  # nobody reads any more
                    pass

    def _accept(self) -> None:
        assert self._door is not None
        line = self._door.accept()[0]
        if self._line >= 0:  # a port has one owner
            line.close()
            return
        line.setblocking(False)
        self._line, self.heard = line.detach(), 0
        self.twin.line.forget()

    def _hang_up(self) -> None:
        if self.kind == "unix":
            os.close(self._line)
            self._line = -1
        self.twin.line.forget()
        self._due.clear()

    # its places

    def _plug(self) -> None:
        if self.kind == "pty":
            self._line, self._slave = os.openpty()
            for fd in (self._line, self._slave):  # the slave stays open: a pty without one hangs up
                tty.setraw(fd)
            os.set_blocking(self._line, False)
            os.symlink(os.ttyname(self._slave), self.path)
        else:
            self._door = _listen(self.path)

    def _unplug(self) -> None:
        for fd in (self._line, self._slave):
            if fd >= 0:
                os.close(fd)
        self._line = self._slave = -1
        if self._door is not None:
            self._door.close()
            self._door = None
        _unlink(self.path)
        self._due.clear()

    def _remove(self) -> None:
        self._unplug()
        for host in self._hosts.values():
            host.close()
        self._hosts.clear()
        self._ctl.close()
        _unlink(self.control)
        os.close(self._wake)
        os.close(self._woken)

    # what no bus says

    def _serve(self, fd: int) -> None:
        host = self._hosts[fd]
        try:
            with host.makefile("rb") as lines:  # a host writes its line at once
                line = lines.readline()
            if line:
                host.sendall(json.dumps(self._do(line)).encode() + b"\n")
                return
        except OSError:
            pass
        host.close()
        del self._hosts[fd]

    def _do(self, line: bytes) -> dict[str, Any]:
        try:
            given = json.loads(line)
            name = given.pop("do")
        except (ValueError, AttributeError, KeyError):
            return {"error": f'{line.decode(errors="replace").strip()!r} is no deed: write {{"do": "truth"}}'}
        try:
            if name == "unplug":
                self._unplug()
                return {}
            if name == "plug":
                if self._slave < 0 and self._door is None:
                    self._plug()
                return {}
            if name == "advance":
                return self._advance(**given)
            return self.twin.do(name, given)
        except (UserError, TypeError) as error:
            return {"error": str(error)}

    def _advance(self, dt_ns: int, sent: int | None = None) -> dict[str, Any]:
        """Lock-step: first hear all `sent` bytes of this connection."""
        if not self.twin.lockstep:
            raise UserError("this twin follows the clock: start it with --lockstep to move it on")
        end_s = time.monotonic() + ARRIVE_S
        while sent is not None and self.heard < sent and self._line >= 0 and time.monotonic() < end_s:
            if select.select([self._line], [], [], 0.05)[0]:
                self._hear()
        self.twin.advance(dt_ns)
        return {"time_ns": self.twin.plant.time_ns, "heard": self.heard}


class Remote:
    """A twin's control socket. `remote("heat", motor=2)` does a deed and returns what it says."""

    def __init__(self, path: str, timeout_s: float = 20.0) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(timeout_s)
        try:
            self._socket.connect(path if path.endswith(".ctl") else path + ".ctl")
        except OSError as error:
            self._socket.close()
            raise UserError(
                f"no twin is told anything at {path}.ctl ({error.strerror}): start one with `polyarm twin`"
            ) from None
        self._lines = self._socket.makefile("rb")

    def __call__(self, name: str, **given: Any) -> dict[str, Any]:
        self._socket.sendall(json.dumps({"do": name, **given}).encode() + b"\n")
        line = self._lines.readline()
        if not line:
            raise UserError("the twin has ended: start it again")
        said = json.loads(line)
        if "error" in said:
            raise UserError(said["error"])
        return said

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


def _listen(path: str) -> socket.socket:
    door = socket.socket(socket.AF_UNIX)
    try:
        door.bind(path)
    except OSError as error:
        door.close()
        raise UserError(
            f"no socket can be made at {path} ({error}): give a short path in a folder that exists"
        ) from None
    door.listen(8)
    return door


def _clear(path: str) -> None:
    """What a twin that was killed left there; anything else is not ours to remove."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if stat.S_ISLNK(mode) and not os.path.exists(path):
        os.unlink(path)
    elif stat.S_ISSOCK(mode):
        with socket.socket(socket.AF_UNIX) as door:
            if door.connect_ex(path) == 0:
                raise UserError(f"a twin listens at {path} already: end it, or give another path")
        os.unlink(path)
    else:
        raise UserError(f"{path} exists: give a path for the twin where nothing is")


def _unlink(path: str) -> None:
    Path(path).unlink(missing_ok=True)
