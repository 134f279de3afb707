"""A page of memory that one process writes and others read, without waiting for each other: a file in /dev/shm.

Two slots take turns, so the last whole value stays readable whatever becomes of the writer; each has a sequence number before and
behind, and a checksum. The writer holds a lock that the kernel drops with the process: nobody writes beside it, and readers see
that it died. (multiprocessing.SharedMemory unlinks its segments when any process that knows them ends.)
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import struct
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any, NamedTuple

from polyarm.spec import UserError

FOLDER = Path("/dev/shm") if os.path.isdir("/dev/shm") else Path(tempfile.gettempdir())
HEAD = struct.Struct("@8sqQ")
"""What it is, bytes of a slot's payload, and at `NEWEST` the number of the newest value."""
NEWEST = 16
SLOT = struct.Struct("@QqII")
"""Number, ns, bytes, checksum."""
MAGIC = b"polyarm1"
TRIES = 1000


class Value(NamedTuple):
    number: int
    """Grows by one a write."""
    t_ns: int
    payload: bytes


class Torn(RuntimeError):
    """No try found a value that is whole: what writes this page is no writer of ours."""


def path_of(name: str) -> Path:
    return FOLDER / f"polyarm-{name}"


class _Page:
    def __init__(self, name: str, fd: int, size: int) -> None:
        self.name, self.size, self._fd = name, size, fd
        self._map = mmap.mmap(fd, _length(size))
        self._words = memoryview(self._map).cast("Q")  # whole words, which other processes see at once or not at all

    def _slot(self, number: int) -> int:
        return HEAD.size + (number & 1) * _room(self.size)

    def close(self) -> None:
        """Twice is once."""
        if self._fd >= 0:
            self._words.release()
            self._map.close()
            os.close(self._fd)
            self._fd = -1


class Writer(_Page):
    """Makes the page, or takes over that of a writer who is gone; numbers go on. A second one at a time is refused."""

    def __init__(self, name: str, size: int = 16384) -> None:
        path = path_of(name)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _own(fd, name)
            if os.fstat(fd).st_size != _length(size):
                os.ftruncate(fd, 0)
                os.ftruncate(fd, _length(size))
            super().__init__(name, fd, size)
        except BaseException:
            os.close(fd)
            raise
        if HEAD.unpack_from(self._map)[:2] != (MAGIC, size):
            HEAD.pack_into(self._map, 0, MAGIC, size, 0)
        self._number = self._words[NEWEST // 8]
        self._newest = b"null"

    def write(self, payload: bytes, t_ns: int | None = None) -> int:
        """Its number."""
        if len(payload) > self.size:
            raise UserError(f"{len(payload)} bytes do not fit the page {self.name} of {self.size}: send fewer rows")
        number, at = self._number + 1, self._slot(self._number + 1)
        stamp = time.monotonic_ns() if t_ns is None else t_ns
        body = at + SLOT.size
        SLOT.pack_into(self._map, at, 0, 0, 0, 0)  # whoever reads this slot now sees that it is not whole
        self._map[body : body + len(payload)] = payload
        SLOT.pack_into(self._map, at, number, stamp, len(payload), _sum(number, stamp, payload))
        self._words[NEWEST // 8] = number  # struct would write zeros first, and 0 says that there never was a value
        self._number, self._newest = number, payload
        return number

    def again(self, t_ns: int | None = None) -> int:
        """The newest value under a new stamp: a sign of life. One in the future says not to worry until then."""
        return self.write(self._newest, t_ns)

    def say(self, what: Any, t_ns: int | None = None) -> int:
        return self.write(json.dumps(what).encode(), t_ns)


class Reader(_Page):
    """Of a page that exists; FileNotFoundError otherwise."""

    def __init__(self, name: str) -> None:
        fd = os.open(path_of(name), os.O_RDWR | os.O_CLOEXEC)
        try:
            head = os.pread(fd, HEAD.size, 0)
            magic, size, _ = HEAD.unpack(head) if len(head) == HEAD.size else (b"", 0, 0)
            if magic != MAGIC or os.fstat(fd).st_size != _length(size):
                raise FileNotFoundError(f"{path_of(name)} is no page yet")
            super().__init__(name, fd, size)
        except BaseException:
            os.close(fd)
            raise

    def read(self) -> Value | None:
        """The newest value; None before the first."""
        slots = self._slot(0), self._slot(1)
        for _ in range(TRIES):
            newest = self._words[NEWEST // 8]  # from here to the copy is what a writer has to be slower than
            if not newest:
                return None
            at = slots[newest & 1]
            number, t_ns, length, crc = SLOT.unpack_from(self._map, at)
            payload = self._map[at + SLOT.size : at + SLOT.size + min(length, self.size)]
            if number == newest and crc == _sum(number, t_ns, payload):
                return Value(number, t_ns, payload)
        raise Torn(f"the page {self.name} gave no whole value in {TRIES} tries")

    @property
    def alive(self) -> bool:
        """Whether its writer still runs, to the kernel's knowledge."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        fcntl.flock(self._fd, fcntl.LOCK_UN)
        return False


def data(value: Value | None) -> dict[str, Any]:
    """What a writer said."""
    return (json.loads(value.payload) if value else None) or {}


def remove(name: str) -> None:
    path_of(name).unlink(missing_ok=True)


def _own(fd: int, name: str) -> None:
    for attempt in range(50):  # a reader that looks whether we live holds the lock for a moment
        try:
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.001 * (attempt < 49))
    raise UserError(f"another process writes {path_of(name)}: end it first, or give this robot another name")


def _sum(number: int, t_ns: int, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(struct.pack("@Qq", number, t_ns)))


def _room(size: int) -> int:
    return SLOT.size + (size + 7) // 8 * 8


def _length(size: int) -> int:
    return HEAD.size + 2 * _room(size)
