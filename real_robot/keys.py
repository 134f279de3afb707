"""Keys that are pressed in a terminal: without Enter, without echo, without X."""

from __future__ import annotations

import os
import select
import sys
import termios
import tty
from typing import Any

from polyarm.spec import UserError

NAMES = {
    b"[A": "up",
    b"[B": "down",
    b"[C": "right",
    b"[D": "left",
    b"OA": "up",
    b"OB": "down",
    b"OC": "right",
    b"OD": "left",
}
ALONE_NS = 50_000_000
"""An escape that nothing follows for so long is the key, not the beginning of an arrow."""


class Keys:
    """Of the terminal `fd`. Ctrl-C stays what it is, and `close` leaves the terminal as it was."""

    def __init__(self, fd: int | None = None) -> None:
        self.fd = sys.stdin.fileno() if fd is None else fd
        self._before: Any = None
        self._rest, self._since_ns = b"", 0

    def open(self) -> None:
        if self._before is not None:
            return
        try:
            self._before = termios.tcgetattr(self.fd)
            tty.setcbreak(self.fd)
        except termios.error:
            raise UserError(
                "keys are read from a terminal, and this is none: run it in one, or give another teleop"
            ) from None

    def close(self) -> None:
        if self._before is not None:
            termios.tcsetattr(self.fd, termios.TCSADRAIN, self._before)
            self._before = None

    def take(self, now_ns: int) -> list[str]:
        """Names of those pressed since the last time, in their order."""
        while select.select([self.fd], [], [], 0)[0] and (data := os.read(self.fd, 1024)):
            self._rest, self._since_ns = self._rest + data, now_ns
        names, self._rest = named(self._rest, now_ns - self._since_ns > ALONE_NS)
        return names


def named(data: bytes, over: bool) -> tuple[list[str], bytes]:
    """(names of keys, bytes of one that is not whole yet). `over`: nothing more will come of it."""
    found = []
    while data:
        if data[:1] != b"\x1b":
            found.append("space" if data[:1] == b" " else chr(data[0]))
            data = data[1:]
        elif data[1:3] in NAMES:
            found.append(NAMES[data[1:3]])
            data = data[3:]
        elif len(data) < 3 and data[1:2] in (b"", b"[", b"O") and not over:
            return found, data
        elif data[1:2] == b"[" and len(data) > 2:  # a key that has no name here
            end = next((i for i, x in enumerate(data[2:], 2) if 0x40 <= x < 0x7F), len(data) - 1)
            data = data[end + 1 :]
        else:
            found.append("escape")
            data = data[1:]
    return found, data


def terminal() -> bool:
    """Whether there is one to read keys from."""
    return sys.stdin is not None and sys.stdin.isatty()
