"""Bytes to and from an arm: a serial port, or the Unix socket of a twin. Nothing here waits without a deadline."""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import select
import socket
import stat
import termios
import time
import tty
from collections.abc import Callable

from polyarm.real_robot.arm import PortLost
from polyarm.spec import UserError

BAUD = 1_000_000
QUIET_S, NOISY_S = 0.002, 0.02
"""How long a line is silent before it is quiet, and how long that is waited for."""


class Wire:
    """An open descriptor; `sent` counts the bytes of a lifetime, which a twin in lock-step waits for."""

    def __init__(self, fd: int, where: str, flush: Callable[[int], None] | None = None) -> None:
        self.fd, self.where, self.sent, self._flush = fd, where, 0, flush
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)

    def send(self, data: bytes) -> None:
        """All of it. A full buffer is a lost port: nobody reads there."""
        try:
            if os.write(self.fd, data) != len(data):
                raise PortLost(f"{self.where} takes no more bytes")
        except OSError as error:
            raise lost(self.where, error) from error
        self.sent += len(data)

    def receive(self, until_s: float) -> bytes:
        """What has come, as soon as something has; b"" when nothing has by `until_s` of `time.monotonic`."""
        while (left_s := until_s - time.monotonic()) > 0:
            if self._poll.poll(1000 * left_s):
                return self._take()
        return b""

    def _take(self) -> bytes:
        try:
            data = os.read(self.fd, 4096)
        except BlockingIOError:
            return b""
        except OSError as error:
            raise lost(self.where, error) from error
        if not data:
            raise PortLost(f"{self.where} was closed at the other end")
        return data

    def waiting(self) -> bool:
        return bool(self._poll.poll(0))

    def discard(self) -> None:
        """Forget what has come: input, not output, which is what the vendor's SDK flushes."""
        if self._flush is None:
            while self.waiting():
                self._take()
            return
        try:
            self._flush(self.fd)
        except (termios.error, OSError) as error:  # termios.error is no OSError
            raise lost(self.where, error) from error

    def quiet(self) -> bool:
        """Wait until nothing has come for QUIET_S, so that a late reply is not taken for that of the next request."""
        end_s = time.monotonic() + NOISY_S
        while time.monotonic() < end_s:
            if not self.receive(time.monotonic() + QUIET_S):
                return True
        return False

    def close(self) -> None:
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            try:
                os.close(fd)
            except OSError:
                pass


def lost(where: str, error: Exception) -> PortLost:
    number, text = (*error.args, "")[:2] if len(error.args) > 1 else (errno.EIO, str(error))
    return PortLost(number, f"{where}: {text}")


def open_wire(path: str) -> Wire:
    """The serial port or socket at `path`, for this process alone."""
    try:
        is_socket = stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        there = sorted(glob.glob("/dev/ttyACM*") + glob.glob("/dev/ttyUSB*"))
        raise UserError(
            f"there is no port {path}: plug the arm in and give its port; there "
            + (f"are {', '.join(there)}" if there else "is no /dev/ttyACM* or /dev/ttyUSB* on this machine")
        ) from None
    return _socket(path) if is_socket else _serial(path)


def _socket(path: str) -> Wire:
    door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    door.settimeout(1.0)
    try:
        door.connect(path)
    except OSError as error:
        door.close()
        raise UserError(
            f"no twin listens at {path} ({error}): start one with `polyarm twin so101 --unix {path}`"
        ) from None
    door.setblocking(False)
    return Wire(door.detach(), path)


def _serial(path: str) -> Wire:
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError as error:
        raise _refused(path, error) from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.ioctl(fd, termios.TIOCEXCL)  # root passes this one by, hence the lock
        tty.setraw(fd)
        settings = termios.tcgetattr(fd)
        settings[4] = settings[5] = termios.B1000000
        termios.tcsetattr(fd, termios.TCSANOW, settings)
    except (termios.error, OSError) as error:
        os.close(fd)
        raise _refused(path, error) from None
    return Wire(fd, path, lambda fd: termios.tcflush(fd, termios.TCIFLUSH))


def _refused(path: str, error: Exception) -> UserError:
    number = error.args[0] if error.args else 0
    if number in (errno.EBUSY, errno.EAGAIN):
        return UserError(f"{path} is in use by another process: end it first (`fuser {path}` says which)")
    if number in (errno.EACCES, errno.EPERM):
        return UserError(
            f"{path} may not be opened: `sudo usermod -aG dialout $USER` and log in again, or put "
            f'KERNEL=="ttyACM*", MODE="0666" into /etc/udev/rules.d/99-arm.rules'
        )
    if number in (errno.ENOTTY, errno.EINVAL):
        return UserError(f"{path} is no serial port: give the arm's, such as /dev/ttyACM0")
    return UserError(f"{path} cannot be opened ({error.args[-1]}): check the cable and give the arm's port")
