"""A camera's process: every frame into its ring, from which the recorder takes all and a policy the newest."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from polyarm.real_robot.arm import PortLost, ReadFailed
from polyarm.real_robot.camera import Camera
from polyarm.real_robot.recorder import put_frame
from polyarm.real_robot.ring import Writer
from polyarm.spec import UserError

WAIT_S = 0.1
"""For a frame, between looks at whether the process is still wanted."""
AGAIN_S = 1.0
"""Until a camera that was lost is opened again."""


class Camd:
    """Owns neither clock nor process: `tick` moves one frame, if there is one by the deadline."""

    def __init__(self, camera: Camera, ring: Writer) -> None:
        self.camera, self.ring = camera, ring
        self.frames, self.dropped, self.why = 0, 0, ""
        """why: what is wrong, in words; "" while frames come."""

    def tick(self, deadline_ns: int) -> bool:
        """Whether a frame came. Raises `PortLost` where none will without opening the camera again."""
        try:
            frame = self.camera.read(deadline_ns)
        except ReadFailed as e:
            self.why = str(e)
            return False
        put_frame(self.ring, frame)
        self.frames, self.dropped, self.why = self.frames + 1, frame.dropped, ""
        return True


class Process:
    """A camera that is opened, or refused, in a process of its own. `make` gives the camera there, so it must pickle."""

    def __init__(self, make: Callable[[], Camera], ring: str | Path) -> None:
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, str(ring)), daemon=True)
        self._process.start()
        theirs.close()
        self.identity: dict[str, Any] = self._answer()

    @property
    def pid(self) -> int:
        return self._process.pid or 0

    def status(self) -> dict[str, Any]:
        """{"frames", "dropped", "why"}"""
        self._pipe.send("status")
        return self._answer()

    def close(self) -> None:
        self._pipe.close()
        self._process.join()

    def _answer(self) -> Any:
        try:
            answer = self._pipe.recv()
        except (EOFError, OSError):
            raise UserError(f"a camera's process died (exit {self._process.exitcode}): start it again") from None
        if isinstance(answer, Exception):
            raise answer
        return answer


def _serve(pipe: Connection, make: Callable[[], Camera], ring: str) -> None:
    """Until the other end closes, which the kernel does however the parent dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    try:
        camera, writer = make(), Writer(ring)
        camera.open()
    except UserError as e:
        pipe.send(e)
        return
    camd = Camd(camera, writer)
    with suppress(EOFError, OSError):
        pipe.send(camera.identify())
        while True:
            _turn(camd)
            while pipe.poll(0):
                pipe.recv()
                pipe.send({"frames": camd.frames, "dropped": camd.dropped, "why": camd.why})
    camera.close()
    writer.close()


def _turn(camd: Camd) -> None:
    try:
        camd.tick(time.monotonic_ns() + round(1e9 * WAIT_S))
    except PortLost as e:
        camd.why = str(e)
        time.sleep(AGAIN_S)
        with suppress(UserError, PortLost):
            camd.camera.open()
