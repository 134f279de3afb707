"""A queue in shared memory from one process to others: one writes and waits for nobody, whoever reads never holds it up.

A file in /dev/shm: a head, then slots of one size that are written round and round. Record k lies in slot k modulo the number
of slots and carries its number, so a reader that was overtaken knows exactly which records it missed; the newest is there for
anybody, whether or not a recorder keeps up. A record is number | t_ns | length | crc32c | payload; the number is 0 while the
slot is being written and k + 1 after, and a copy counts only if number and checksum hold after it was taken.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from google_crc32c import extend
from google_crc32c import value as crc32c

from polyarm.spec import UserError

MAGIC = b"polyring"
HEAD = struct.Struct("<8sQQI")  # magic, bytes of a slot, slots, bytes of what is said
SLOT = struct.Struct("<QqII")  # number + 1 or 0, t_ns, length, crc32c of t_ns, length and payload
TELL = struct.Struct("<qI")
AT, SAID, FIRST = 32, 64, 4096
"""Where in the file the count of records stands, what is said of them, and the first slot."""

TRIES = 100
"""Copies of a record, after which it is spoiled: another core's writes may be seen in another order, for a moment."""


def checksum(crc: int, part: Any) -> int:
    """crc32c of what `crc` is of, and of this buffer behind it."""
    return extend(crc, part if isinstance(part, bytes) else np.frombuffer(part, np.uint8))  # it takes no memoryview


class Record(NamedTuple):
    seq: int
    """Counts all that were put, from 0."""
    t_ns: int
    payload: bytes


class Lost(NamedTuple):
    """Records that were written over before they were read: `number` of them from `seq` on."""

    seq: int
    number: int


class Ring:
    """Made by `create`; then a `Writer` or any number of `Reader`s open it. `said`: what its maker says of the records."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._fd = os.open(self.path, os.O_RDWR)
        except OSError as e:
            raise UserError(
                f"the ring {self.path} cannot be opened ({e.strerror}): start what writes to it first"
            ) from e
        try:
            size = os.fstat(self._fd).st_size
            head = os.pread(self._fd, FIRST, 0)
            magic, self.slot_bytes, self.slots, n = HEAD.unpack_from(head) if len(head) == FIRST else (b"", 0, 0, 0)
            if magic != MAGIC or size != FIRST + self.slots * self.slot_bytes:
                raise UserError(f"{self.path} is no ring of polyarm's: remove it, and start what writes to it again")
            self.said: dict[str, Any] = json.loads(head[SAID : SAID + n])
            self._map = mmap.mmap(self._fd, size)
        except BaseException:
            os.close(self._fd)
            raise
        self._view = memoryview(self._map)
        self._numbers = self._view.cast("Q")  # whole words, which other processes see at once or not at all

    @staticmethod
    def create(path: str | Path, payload_bytes: int, slots: int, said: Mapping[str, Any] | None = None) -> Path:
        """A ring without records; one that was there before is gone on with only by those who have it open."""
        text = json.dumps(dict(said or {})).encode()
        if slots < 2 or payload_bytes < 1 or len(text) > FIRST - SAID:
            raise UserError(
                f"a ring of {slots} slots of {payload_bytes} bytes: give 2 or more slots of 1 or more bytes"
            )
        slot = -(-(SLOT.size + payload_bytes) // 64) * 64
        path = Path(path)
        made = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            with open(made, "wb") as file:
                file.write(HEAD.pack(MAGIC, slot, slots, len(text)).ljust(SAID, b"\0") + text)
                file.flush()
                # a /dev/shm that is full says so here, not by SIGBUS at a later write
                os.posix_fallocate(file.fileno(), 0, FIRST + slot * slots)
            made.replace(path)
        except OSError as e:
            made.unlink(missing_ok=True)
            raise UserError(
                f"a ring of {slot * slots / 1e6:.0f} MB cannot be made at {path} ({e.strerror}): free space there, or ask for fewer slots"
            ) from e
        return path

    @property
    def count(self) -> int:
        """Records that were put so far."""
        return self._numbers[AT // 8]

    def close(self) -> None:
        if self._fd >= 0:
            self._numbers.release()
            self._view.release()
            self._map.close()
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Ring:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _at(self, seq: int) -> int:
        return FIRST + seq % self.slots * self.slot_bytes


class Writer(Ring):
    """The one process that puts; after another that died it goes on counting where that one ended."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise UserError(f"another process writes to the ring {path}: stop it first") from None

    def put(self, t_ns: int, *parts: Any) -> int:
        """One record of these buffers end to end; returns its number."""
        parts = tuple(memoryview(part).cast("B") for part in parts)
        length, seq = sum(map(len, parts)), self.count
        if SLOT.size + length > self.slot_bytes:
            raise UserError(
                f"a record of {length} bytes for {self.path}, whose slots hold {self.slot_bytes - SLOT.size}"
            )
        at = self._at(seq)
        self._numbers[at // 8] = 0
        crc, to = crc32c(TELL.pack(t_ns, length)), at + SLOT.size
        for part in parts:
            self._view[to : to + len(part)] = part
            crc, to = checksum(crc, part), to + len(part)
        SLOT.pack_into(self._view, at, 0, t_ns, length, crc)
        self._numbers[at // 8] = seq + 1
        self._numbers[AT // 8] = seq + 1
        return seq


class Reader(Ring):
    """One reader of many; `seq` is the number of the record that `take` gives next."""

    def __init__(self, path: str | Path, seq: int | None = None) -> None:
        super().__init__(path)
        self.seq = self.count if seq is None else seq

    def take(self) -> Record | Lost | None:
        """The next record, what was lost before it, or None if there is none yet."""
        for tried in range(TRIES):
            if self.seq >= (count := self.count):
                return None
            if self.seq >= count - self.slots and (record := self._copy(self.seq)) is not None:
                self.seq += 1
                return record
            kept = self.count - self.slots + 1  # the first whose slot is not being written over
            if self.seq < kept or tried == TRIES - 1:
                lost = Lost(self.seq, max(1, kept - self.seq))
                self.seq += lost.number
                return lost
        return None

    def newest(self) -> Record | None:
        """The last record that was put, whatever was taken."""
        for _ in range(TRIES):  # while a fast writer goes round
            if not (count := self.count):
                return None
            if (record := self._copy(count - 1)) is not None:
                return record
        return None

    def _copy(self, seq: int) -> Record | None:
        at = self._at(seq)
        number, t_ns, length, crc = SLOT.unpack_from(self._view, at)
        if number != seq + 1 or SLOT.size + length > self.slot_bytes:
            return None
        payload = bytes(self._view[at + SLOT.size : at + SLOT.size + length])
        if self._numbers[at // 8] != seq + 1 or extend(crc32c(TELL.pack(t_ns, length)), payload) != crc:
            return None
        return Record(seq, t_ns, payload)
