"""The recorder: what lies in the rings goes into an episode's log, pictures coded, stamps and numbers as they were measured.

`Recorder` owns neither clock nor process; `Process` runs one at low priority beside everything else. A ring that went round
before it was read is a fault: a note of the log says what was lost, and the numbers of the samples prove it.
"""

from __future__ import annotations

import io
import os
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from polyarm.real_robot.camera import FRAME, Frame, Image
from polyarm.real_robot.episode_log import EpisodeLog, Logged, Survey
from polyarm.real_robot.ring import Lost, Reader, Ring, Writer
from polyarm.spec import UserError, unknown

SECONDS = 2.0
"""That a ring holds, so that a disk which stalls loses nothing."""
POLL_S = 0.005
NICE = 5
CODECS: Mapping[str, Mapping[str, Any]] = {
    "jpeg": {"format": "JPEG", "subsampling": 0},
    "png": {"format": "PNG", "compress_level": 1},  # lossless, 30 times as dear and 10 times as large
}
QUALITY = 90


def create_ring(path: str | Path, logged: Logged, seconds: float = SECONDS) -> Path:
    """The ring that a stream goes through on its way to the recorder."""
    if logged.stream.kind == "image" and logged.codec not in CODECS:
        raise unknown(f"codec of camera {logged.stream.name!r}", logged.codec, CODECS)
    item, before = (1, FRAME.size) if logged.stream.kind == "image" else (8, 0)
    payload = before + item * int(np.prod(logged.stream.shape))
    return Ring.create(path, payload, max(2, round(seconds * logged.rate_hz)), logged.to_json())


def put_row(ring: Writer, t_ns: int, row: Sequence[float]) -> int:
    return ring.put(t_ns, np.asarray(row, np.float64))


def put_frame(ring: Writer, frame: Frame) -> int:
    head = FRAME.pack(frame.t_rx_ns, frame.seq, frame.dropped)
    return ring.put(frame.t_ns, head, np.ascontiguousarray(frame.image))


def newest_frame(ring: Reader, size: tuple[int, int]) -> Frame | None:
    """The last frame of a camera's ring, which any process may ask for; whoever asks looks at its age."""
    record = ring.newest()
    if record is None:
        return None
    t_rx_ns, seq, dropped = FRAME.unpack_from(record.payload)
    image = np.frombuffer(record.payload, np.uint8, offset=FRAME.size).reshape(*size, 3)
    return Frame(image, record.t_ns, t_rx_ns, seq, dropped)


def encode(image: Image, codec: str, quality: int = QUALITY) -> bytes:
    from PIL import Image as pil

    out = io.BytesIO()
    pil.fromarray(image).save(out, **CODECS[codec], quality=quality)
    return out.getvalue()


def decode(coded: bytes) -> Image:
    from PIL import Image as pil

    return np.asarray(pil.open(io.BytesIO(coded)).convert("RGB"))


class Recorder:
    """Reads the rings at these paths; `begin`, then `drain` again and again, then `end`. One episode at a time."""

    def __init__(self, rings: Sequence[str | Path], quality: int = QUALITY) -> None:
        self.rings = [Reader(path) for path in rings]
        self.streams = [Logged.from_json(ring.said) for ring in self.rings]
        self.quality = quality
        self.log: EpisodeLog | None = None
        self.lost = 0
        """Samples of this episode that a ring had written over."""

    def begin(self, path: str | Path, now_ns: int, **said: Any) -> None:
        """A new log; what is in the rings already is of before. `said`: spec, station and what else its header holds."""
        if self.log is not None:
            raise UserError(f"{self.log.path} is being recorded: end it before {path}")
        for ring in self.rings:
            ring.seq = ring.count
        first = [ring.seq for ring in self.rings]
        self.log = EpisodeLog.create(path, self.streams, now_ns, quality=self.quality, first=first, **said)
        self.lost = 0

    def resume(self, path: str | Path) -> Survey:
        """Go on with the log of a recorder that died: nothing is missing if the rings have not gone round since."""
        if self.log is not None:
            raise UserError(f"{self.log.path} is being recorded: end it before {path}")
        log, found = EpisodeLog.resume(path)
        after = [samples.seq[-1] + 1 if samples.seq else None for samples in found.samples]
        counts = [ring.count for ring in self.rings]
        if found.streams != tuple(self.streams) or any((a or 0) > n for a, n in zip(after, counts, strict=True)):
            log.close()
            raise UserError(f"{path} was recorded from other rings than there are now: record into another")
        self.log, self.lost = log, 0
        for ring, seq, count in zip(self.rings, after, counts, strict=True):
            ring.seq = count if seq is None else seq
        return found

    def drain(self) -> int:
        """Write what has come, a sample of each ring in turn; returns how many."""
        if self.log is None:
            return 0
        done, going = 0, list(enumerate(self.rings))
        while going:
            going = [(i, ring) for i, ring in going if self._take(i, ring, self.log)]
            done += len(going)
        return done

    def end(self, now_ns: int, outcome: str, success: bool, interventions: Sequence[tuple[int, int]] = ()) -> None:
        """What is left in the rings, and the footer."""
        if self.log is None:
            raise UserError("no episode is being recorded: begin one first")
        self.drain()
        log, self.log = self.log, None
        try:
            log.finish(now_ns, outcome, success, interventions)
        except BaseException:
            with suppress(UserError):
                log.close()
            raise

    def close(self) -> None:
        if self.log is not None:
            self.log.close()
            self.log = None
        for ring in self.rings:
            ring.close()

    def _take(self, i: int, ring: Reader, log: EpisodeLog) -> bool:
        found, logged = ring.take(), self.streams[i]
        if found is None:
            return False
        if isinstance(found, Lost):
            self.lost += found.number
            name = logged.stream.name
            log.note(time.monotonic_ns(), fault="overflow", stream=name, first=found.seq, count=found.number)
        elif logged.codec:
            image = np.frombuffer(found.payload, np.uint8, offset=FRAME.size).reshape(logged.stream.shape)
            coded = encode(image, logged.codec, self.quality)
            log.add(i, found.t_ns, found.seq, found.payload[: FRAME.size], coded)
        else:
            log.add(i, found.t_ns, found.seq, found.payload)
        return True


class Process:
    """A recorder in a process of its own. Every call raises the `UserError` that the recorder ran into since the last one."""

    def __init__(self, rings: Sequence[str | Path], quality: int = QUALITY) -> None:
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, list(map(str, rings)), quality), daemon=True)
        self._process.start()
        theirs.close()
        self._ask("status")

    @property
    def pid(self) -> int:
        return self._process.pid or 0

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def begin(self, path: str | Path, **said: Any) -> None:
        self._ask("begin", str(path), **said)

    def resume(self, path: str | Path) -> list[str]:
        """Returns the sentences of what was recovered."""
        return self._ask("resume", str(path))

    def end(self, outcome: str, success: bool, interventions: Sequence[tuple[int, int]] = ()) -> None:
        self._ask("end", outcome, success, list(interventions))

    def status(self) -> dict[str, Any]:
        """{"recording": path or None, "bytes", "lost": samples that a ring had written over, "nice"}"""
        return self._ask("status")

    def close(self) -> None:
        self._pipe.close()
        self._process.join()

    def _ask(self, what: str, *arguments: Any, **said: Any) -> Any:
        try:
            self._pipe.send((what, arguments, said))
            answer = self._pipe.recv()
        except (EOFError, OSError):
            raise UserError(
                f"the recorder died (exit {self._process.exitcode}): start it again, its log is resumed"
            ) from None
        if isinstance(answer, Exception):
            raise answer
        return answer


def _serve(pipe: Connection, rings: Sequence[str], quality: int) -> None:
    """The recorder's life, until the other end closes, which the kernel does however the parent dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    nice = os.nice(NICE)
    recorder: Recorder | None = None
    failed: UserError | None = None
    while True:
        try:
            if recorder is None and failed is None:
                recorder = Recorder(rings, quality)
            busy = failed is None and recorder is not None and recorder.drain() > 0
        except UserError as e:  # told with the next answer; the log stays as it is
            failed, busy = e, False
        try:
            while pipe.poll(0 if busy else POLL_S):
                what, arguments, said = pipe.recv()
                answer: Any = failed
                if failed is None and recorder is not None:
                    try:
                        answer = _answer(recorder, nice, what, *arguments, **said)
                    except UserError as e:
                        answer = e
                elif recorder is not None:
                    recorder.close()
                    recorder = None
                failed = None
                pipe.send(answer)
        except (EOFError, OSError):
            break
    if recorder is not None and recorder.log is not None:
        with suppress(UserError):
            recorder.end(time.monotonic_ns(), "interrupted", False)


def _answer(recorder: Recorder, nice: int, what: str, *arguments: Any, **said: Any) -> Any:
    now = time.monotonic_ns()
    if what == "begin":
        return recorder.begin(arguments[0], now, **said)
    if what == "resume":
        return recorder.resume(arguments[0]).told()
    if what == "end":
        return recorder.end(now, *arguments)
    log = recorder.log
    return {"recording": str(log.path) if log else None, "bytes": log.size if log else 0, "lost": recorder.lost, "nice": nice}  # fmt: skip
