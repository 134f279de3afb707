"""The log of one recorded episode: a file that only grows, in which every bit is checked and a kill costs nothing.

    polyarm\\n, then records   len u32 | crc32c u32 | kind u8 | stream u8 | t_ns i64 | seq u64 | payload

The first record is the header (JSON: format, id, streams, spec, station, the wall's clock at t_ns), the last one of a finished
episode the footer. Between them lie samples as they were measured, numbered by stream, and notes. A record is one write and
is there, whoever is killed, when `EpisodeLog.add` returns; a thread brings it to the disk within `SYNC_S`. Readers believe
everything up to the first record that is cut short or does not match its checksum, and say what lies behind.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import struct
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import IntEnum
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from google_crc32c import value as crc32c

from polyarm.datasets.disk import fsync
from polyarm.real_robot.ring import checksum
from polyarm.spec import Stream, UserError

FORMAT = 1
MAGIC = b"polyarm\n"
HEAD = struct.Struct("<IIBBqQ")
LENGTH, REST = struct.Struct("<I"), struct.Struct("<BBqQ")
SYNC_S = 0.5
LONGEST = 1 << 28
"""Bytes of a payload."""


class Kind(IntEnum):
    HEADER = 1
    SAMPLE = 2
    NOTE = 3
    FOOTER = 4


@dataclass(frozen=True)
class Logged:
    """A stream as it is recorded: rows of float64 for numbers, coded pictures behind a `camera.FRAME` for images."""

    stream: Stream
    rate_hz: float
    codec: str = ""
    """jpeg or png, of pictures."""
    latency_s: float = 0.0
    """From a sample's stamp to when a policy could have had it; counted in when rows are made."""
    gap_s: float = 0.0
    """Between two samples, beyond which it is told; 0: three periods."""
    clock: str = "monotonic_ns"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Logged:
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data["stream"].items()}
        return cls(**{**data, "stream": Stream(**fields)})


class Entry(NamedTuple):
    kind: Kind
    stream: int
    t_ns: int
    seq: int
    payload: bytes
    end: int
    """Where in the file the next one begins."""


class EpisodeLog:
    """An episode that is being written, by one process. Made by `create`, or by `resume` after the one that wrote it died."""

    def __init__(self, path: Path, fd: int, size: int) -> None:
        self.path, self.size = path, size
        self._fd, self._stopping = fd, threading.Event()
        self._broken: OSError | None = None
        self._thread = threading.Thread(target=self._sync, name="fdatasync", daemon=True)
        self._thread.start()

    @classmethod
    def create(cls, path: str | Path, streams: Sequence[Logged], t_ns: int, **said: Any) -> EpisodeLog:
        """A new log. `said`: what else the header holds, such as spec, station, and `first`: of each stream the number that its
        first sample will have."""
        path = Path(path)
        head = {"format": FORMAT, "id": secrets.randbelow(1 << 62), "wall_s": time.time(), **said}
        payload = json.dumps({**head, "streams": [s.to_json() for s in streams]}).encode()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o644)
        except FileExistsError:
            raise UserError(f"{path} exists: give another path, recordings are never written over") from None
        except OSError as e:
            raise _unwritable(path, e) from e
        _lock(fd, path)
        log = cls(path, fd, 0)
        log._write([MAGIC, *_record(Kind.HEADER, 0, t_ns, 0, [payload])])
        log._settle()
        fsync(path.parent)
        return log

    @classmethod
    def resume(cls, path: str | Path) -> tuple[EpisodeLog, Survey]:
        """Go on behind the last good record; what lies behind it is put into `PATH.torn`, and a note says so."""
        path = Path(path)
        found = survey(path)
        if found.footer is not None:
            raise UserError(f"{path} is finished: record into another")
        fd = os.open(path, os.O_WRONLY | os.O_APPEND)
        _lock(fd, path)
        if found.torn_bytes:
            with open(path, "rb") as file, open(path.with_name(f"{path.name}.torn"), "ab") as torn:
                file.seek(found.good_bytes)
                torn.write(file.read())
                torn.flush()
                os.fsync(torn.fileno())
            os.ftruncate(fd, found.good_bytes)
        log = cls(path, fd, found.good_bytes)
        log.note(time.monotonic_ns(), resumed=True, torn_bytes=found.torn_bytes)
        return log, found

    def add(self, stream: int, t_ns: int, seq: int, *parts: Any) -> None:
        """A sample: these buffers end to end. Raises `UserError` where the disk does not take it; what was saved stays."""
        self._write(_record(Kind.SAMPLE, stream, t_ns, seq, parts))

    def note(self, t_ns: int, **said: Any) -> None:
        """Something that happened; `fault=...` for what should not have."""
        self._write(_record(Kind.NOTE, 0, t_ns, 0, [json.dumps(said).encode()]))

    def finish(self, t_ns: int, outcome: str, success: bool, interventions: Sequence[tuple[int, int]] = ()) -> None:
        """The footer, and everything on the disk. `interventions`: from when to when a person had the arm, ns."""
        said = {"outcome": outcome, "success": success, "interventions": [list(span) for span in interventions]}
        self._write(_record(Kind.FOOTER, 0, t_ns, 0, [json.dumps(said).encode()]))
        self._settle()
        self.close()

    def close(self) -> None:
        """Without a footer: what is there is on the disk. Twice is once."""
        if self._fd >= 0:
            self._stopping.set()
            self._thread.join()
            try:
                self._settle()
            finally:
                os.close(self._fd)
                self._fd = -1

    def _write(self, parts: Sequence[Any]) -> None:
        if self._broken is not None:
            raise _unwritable(self.path, self._broken)
        left = sum(map(len, parts))
        try:
            done = os.writev(self._fd, parts)
            if done < left:  # the disk is full, which only the next write says
                os.write(self._fd, b"".join(parts)[done:])
                if (size := os.fstat(self._fd).st_size) != self.size + left:
                    raise OSError(0, f"{self.size + left - size} bytes were not taken")
        except OSError as e:
            os.ftruncate(self._fd, self.size)
            raise _unwritable(self.path, e) from e
        self.size += left

    def _settle(self) -> None:
        try:
            os.fdatasync(self._fd)
        except OSError as e:
            raise _unwritable(self.path, e) from e

    def _sync(self) -> None:
        settled = 0
        while not self._stopping.wait(SYNC_S):
            size = self.size
            if size != settled:
                try:
                    os.fdatasync(self._fd)
                except OSError as e:  # said at the next write: the kernel forgets it
                    self._broken = e
                    return
                settled = size


@dataclass
class Samples:
    """Where the samples of one stream lie in a log: stamps, and the places of the payloads."""

    first: int | None
    """The number that the first one was to have, where the header says it."""
    t_ns: list[int]
    seq: list[int]
    at: list[int]
    length: list[int]

    @property
    def missing(self) -> list[tuple[int, int]]:
        """(first number, how many) of samples that were never written."""
        first = self.first if self.first is not None else (self.seq or [0])[0]
        seq = [first - 1, *self.seq]
        return [(a + 1, b - a - 1) for a, b in pairwise(seq) if b != a + 1]


@dataclass
class Survey:
    """What a log holds, by one pass over all of it."""

    path: Path
    header: dict[str, Any]
    streams: tuple[Logged, ...]
    samples: tuple[Samples, ...]
    notes: list[tuple[int, dict[str, Any]]]
    footer: dict[str, Any] | None
    good_bytes: int
    torn_bytes: int
    """Behind the last good record, of one that was cut short or is damaged."""

    @property
    def faults(self) -> list[dict[str, Any]]:
        return [said for _, said in self.notes if "fault" in said]

    def told(self) -> list[str]:
        """A sentence for each thing that is not as it should be."""
        said = []
        if self.footer is None:
            n = sum(len(s.t_ns) for s in self.samples)
            said.append(f"{self.path} was cut off: {n} samples up to there are recovered")
        if self.torn_bytes:
            said.append(f"{self.path} holds {self.torn_bytes} bytes behind the last good record that are left out")
        for logged, samples in zip(self.streams, self.samples, strict=True):
            if missing := samples.missing:
                count, where = sum(n for _, n in missing), ", ".join(str(first) for first, _ in missing[:3])
                more = f" and at {len(missing) - 3} other places" if len(missing) > 3 else ""
                said.append(f"{self.path} misses {count} samples of {logged.stream.name}, from number {where} on{more}")
        proven = [fault for fault in self.faults if fault["fault"] != "overflow"]  # which the numbers say too
        return said + [f"{self.path}: {json.dumps(fault)}" for fault in proven]


def entries(path: str | Path) -> Iterator[Entry]:
    """Every record of a log up to the first that cannot be believed. Raises `UserError` for a file that is none."""
    try:
        with open(path, "rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise UserError(
                    f"{path} is no log of an episode, or its first bytes are damaged: restore it from a copy"
                )
            size = os.fstat(file.fileno()).st_size
            while len(head := file.read(HEAD.size)) == HEAD.size:
                length, crc, kind, stream, t_ns, seq = HEAD.unpack(head)
                payload = file.read(length) if length <= size - file.tell() else b""
                if len(payload) != length or _crc(length, REST.pack(kind, stream, t_ns, seq), [payload]) != crc:
                    return
                if kind not in Kind:  # of a format that is younger
                    return
                yield Entry(Kind(kind), stream, t_ns, seq, payload, file.tell())
                if kind == Kind.FOOTER:
                    return
    except OSError as e:
        raise UserError(f"{path} cannot be read ({e.strerror}): check the path and who may read it") from e


def survey(path: str | Path) -> Survey:
    """Read a whole log once. Raises `UserError` where not even its header can be believed."""
    path = Path(path)
    records = entries(path)
    first = next(records, None)
    if first is None or first.kind != Kind.HEADER:
        raise UserError(f"the header of {path} is damaged: restore it from a copy, nothing of it can be read without")
    header = json.loads(first.payload)
    if header["format"] != FORMAT:
        raise UserError(
            f"{path} has format {header['format']}, this polyarm reads {FORMAT}: use the polyarm that wrote it"
        )
    streams = tuple(map(Logged.from_json, header["streams"]))
    begun = header.get("first") or [None] * len(streams)
    samples = tuple(Samples(n, [], [], [], []) for n in begun)
    notes, footer, good = [], None, first.end
    for entry in records:
        good = entry.end
        if entry.kind == Kind.SAMPLE:
            into, n = samples[entry.stream], len(entry.payload)
            for column, x in zip((into.t_ns, into.seq, into.at, into.length), (entry.t_ns, entry.seq, good - n, n), strict=True):  # fmt: skip
                column.append(x)
        elif entry.kind == Kind.NOTE:
            notes.append((entry.t_ns, json.loads(entry.payload)))
        elif entry.kind == Kind.FOOTER:
            footer = json.loads(entry.payload)
    return Survey(path, header, streams, samples, notes, footer, good, path.stat().st_size - good)


def require_idle(path: Path) -> None:
    """Refuse a log that a living process writes."""
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"{path} is being recorded: finish the episode first") from None
    finally:
        os.close(fd)


def _record(kind: Kind, stream: int, t_ns: int, seq: int, parts: Sequence[Any]) -> list[Any]:
    """The buffers of a record, head first."""
    views = [memoryview(part).cast("B") for part in parts]
    rest, length = REST.pack(kind, stream, t_ns, seq), sum(map(len, views))
    if length > LONGEST:
        raise UserError(f"a sample of {length} bytes: an episode's log takes up to {LONGEST}, code pictures first")
    return [LENGTH.pack(length), _crc(length, rest, views).to_bytes(4, "little"), rest, *views]


def _crc(length: int, rest: bytes, parts: Sequence[Any]) -> int:
    crc = crc32c(LENGTH.pack(length) + rest)
    for part in parts:
        crc = checksum(crc, part)
    return crc


def _lock(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise UserError(f"{path} is being recorded by another process: stop it first, or give another path") from None


def _unwritable(path: Path, e: OSError) -> UserError:
    return UserError(
        f"{path} cannot be written ({e.strerror or e}): free space, or give a path that can; what was saved before stays"
    )
