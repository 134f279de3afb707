"""A camera as the rest of polyarm speaks to one, and those there are: MuJoCo's renderer and whatever OpenCV opens.

A camera is used from one thread. It is judged by the age of its frames, never by whether a read came back: a network stream
that froze, a cable that was pulled and a shutter that stalled look the same. Stamps are `time.monotonic_ns()`.
"""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from polyarm.real_robot.arm import PortLost, ReadFailed
from polyarm.spec import UserError, unknown

Image = UInt8[np.ndarray, "height width 3"]
FRAME = struct.Struct("<qQQ")
"""What stands before a picture in a ring and in a log: t_rx_ns, seq, dropped."""
OPEN_S = 5.0
"""For the first frame."""
AGAIN_S = 0.25
"""Until a stream that ended is opened again."""


@dataclass(frozen=True, slots=True)
class Frame:
    image: Image
    """RGB."""
    t_ns: int
    """When the scene looked like this, as well as the camera knows."""
    t_rx_ns: int
    """When the picture was here."""
    seq: int
    """Counts the camera's frames, given or not."""
    dropped: int = 0
    """Frames since `open` that nobody was given."""


@runtime_checkable
class Camera(Protocol):
    size: tuple[int, int]
    """(height, width) of every frame."""
    rate_hz: float

    def open(self) -> None:
        """Raises `UserError` with the remedy where there is no camera, no frame, or frames of another size."""
        ...

    def close(self) -> None:
        """Never raises; twice is once."""
        ...

    def read(self, deadline_ns: int) -> Frame:
        """The newest frame that was not given yet. Raises `ReadFailed` where none came by the deadline, `PortLost` where none
        will come without `open`."""
        ...

    def identify(self) -> dict[str, Any]:
        """What a recording keeps and a deployment compares."""
        ...


def fit(image: UInt8[np.ndarray, "h w 3"], size: tuple[int, int]) -> Image:
    """`image` as a policy of (height, width) pictures sees it: what is too wide or too high is cut off at both sides, the rest
    is averaged by area. Recordings and arms both come through here."""
    if image.shape[:2] == size:
        return image
    from PIL import Image as pil

    (h, w), (height, width) = image.shape[:2], size
    across, down = min(w, h * width / height), min(h, w * height / width)
    box = ((w - across) / 2, (h - down) / 2, (w + across) / 2, (h + down) / 2)
    return np.asarray(pil.fromarray(image).resize((width, height), pil.Resampling.BOX, box=box))


@dataclass
class Rendered:
    """What a MuJoCo camera sees. `scene` gives the model and its state of now, and the time of that state; `clock` and `wait`
    are replaced by whoever owns the time."""

    scene: Callable[[], tuple[Any, Any, int]]
    camera: str
    size: tuple[int, int]
    rate_hz: float = 30.0
    clock: Callable[[], int] = time.monotonic_ns
    wait: Callable[[int], None] = lambda until_ns: time.sleep(max(0, until_ns - time.monotonic_ns()) / 1e9)
    _next_ns: int = field(default=0, init=False)
    _seq: int = field(default=-1, init=False)
    _dropped: int = field(default=0, init=False)

    def open(self) -> None:
        model, _, _ = self.scene()
        names = [model.camera(i).name for i in range(model.ncam)]
        if self.camera not in names:
            raise unknown("camera of the scene", self.camera, names)
        self._next_ns, self._seq, self._dropped = self.clock(), -1, 0

    def close(self) -> None:
        pass

    def read(self, deadline_ns: int) -> Frame:
        from polyarm.sim.mujoco.render import picture

        if self._next_ns > deadline_ns:
            self.wait(deadline_ns)
            raise ReadFailed(
                f"camera {self.camera}: the next frame comes {(self._next_ns - deadline_ns) / 1e6:.0f} ms later"
            )
        self.wait(self._next_ns)
        period = round(1e9 / self.rate_hz)
        missed = max(0, self.clock() - self._next_ns) // period
        self._next_ns += (1 + missed) * period
        self._seq, self._dropped = self._seq + 1 + missed, self._dropped + missed
        model, data, t_ns = self.scene()
        image = picture(model, data, self.camera, self.size)
        return Frame(image, t_ns, self.clock(), self._seq, self._dropped)

    def identify(self) -> dict[str, Any]:
        return {"camera": "mujoco", "name": self.camera, "size": list(self.size), "rate_hz": self.rate_hz}


@dataclass
class OpenCV:
    """A camera on USB by its number or /dev/video path, a film file played at the pace of its time stamps, or the URL of an
    MJPEG stream. A thread grabs, since a grab may block for as long as the other end likes."""

    source: int | str
    size: tuple[int, int]
    rate_hz: float = 30.0
    latency_s: float = 0.0
    """From the scene to the frame's arrival here, as it was measured."""
    fourcc: str = "MJPG"
    """Asked of a USB camera: raw pictures of this size do not fit through USB 2 at 30 Hz."""
    properties: Mapping[str, float] = field(default_factory=dict)
    """OpenCV's names without CAP_PROP_, such as EXPOSURE, set before the first frame."""
    timeout_s: float = 1.0
    """Of the network, after which it is opened again."""
    _grabber: _Grabber | None = field(default=None, init=False)

    def open(self) -> None:
        self.close()
        self._grabber = grabber = _Grabber(self)
        try:
            frame = grabber.take(time.monotonic_ns() + round(1e9 * OPEN_S))
        except ReadFailed:
            self.close()
            raise UserError(
                f"camera {self.source} gives no frame in {OPEN_S:g} s: check its cable or address, and try another program"
            ) from None
        except PortLost as e:
            self.close()
            raise UserError(str(e)) from None
        if (given := frame.image.shape[:2]) != tuple(self.size):
            self.close()
            raise UserError(
                f"camera {self.source} gives frames of {given[1]} x {given[0]}, expected {self.size[1]} x {self.size[0]}: "
                f"set its size to [{given[0]}, {given[1]}], or the camera to that"
            )

    def close(self) -> None:
        if self._grabber is not None:
            self._grabber.stop()
            self._grabber = None

    def read(self, deadline_ns: int) -> Frame:
        if self._grabber is None:
            raise PortLost(f"camera {self.source} is not open")
        frame = self._grabber.take(deadline_ns)
        if frame.image.shape[:2] != tuple(self.size):
            raise PortLost(f"camera {self.source} turned to frames of {frame.image.shape[1]} x {frame.image.shape[0]}")
        return frame

    def identify(self) -> dict[str, Any]:
        backend = self._grabber.backend if self._grabber else ""
        return {"camera": "opencv", "source": self.source, "backend": backend, "size": list(self.size), "rate_hz": self.rate_hz}  # fmt: skip


class _Grabber:
    """Grabs all the time in a thread of its own, and keeps the newest frame."""

    def __init__(self, about: OpenCV) -> None:
        try:
            import cv2
        except ImportError:
            raise UserError(
                f"camera {about.source} needs OpenCV, which is not installed: pip install opencv-python-headless"
            ) from None
        self._cv2, self._about = cv2, about
        self._new, self._stopping = threading.Condition(), threading.Event()
        self._frame: Frame | None = None
        self._given, self._last_ns, self._lost = -1, time.monotonic_ns(), ""
        self._dropped, self.backend = 0, ""
        self._thread = threading.Thread(target=self._run, name=f"camera {about.source}", daemon=True)
        self._thread.start()

    @property
    def streamed(self) -> bool:
        return isinstance(self._about.source, str) and "://" in self._about.source

    @property
    def filmed(self) -> bool:
        return isinstance(self._about.source, str) and Path(self._about.source).is_file()

    def take(self, deadline_ns: int) -> Frame:
        with self._new:
            while True:
                if self._frame is not None and self._frame.seq > self._given:
                    self._dropped += self._frame.seq - self._given - 1
                    self._given = self._frame.seq
                    f = self._frame
                    return Frame(f.image, f.t_ns, f.t_rx_ns, f.seq, self._dropped)
                if self._lost:
                    raise PortLost(self._lost)
                left = (deadline_ns - time.monotonic_ns()) / 1e9
                if left <= 0:
                    age = (time.monotonic_ns() - self._last_ns) / 1e6
                    raise ReadFailed(f"camera {self._about.source}: no new frame for {age:.0f} ms")
                self._new.wait(left)

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(2 * self._about.timeout_s)  # a grab that hangs for longer ends with the process

    def _run(self) -> None:
        lost = "was closed"
        try:
            lost = self._grab()
        except Exception as e:  # noqa: BLE001  whatever OpenCV raises goes to the reader
            lost = f"failed: {e}"
        with self._new:
            self._lost = f"camera {self._about.source} {lost}"
            self._new.notify_all()

    def _grab(self) -> str:
        """Why it ended."""
        seq = 0
        while not self._stopping.is_set():
            capture = self._open()
            begin_ns, film_ms = time.monotonic_ns(), None
            while capture.isOpened() and not self._stopping.is_set() and capture.grab():
                now = time.monotonic_ns()
                if self.filmed:
                    at = capture.get(self._cv2.CAP_PROP_POS_MSEC)
                    film_ms = at if film_ms is None else film_ms
                    now = begin_ns + round(1e6 * (at - film_ms))
                    self._stopping.wait(max(0.0, (now - time.monotonic_ns()) / 1e9))
                ok, image = capture.retrieve()
                if not ok:
                    break
                self._put(image, now, seq)
                seq += 1
            capture.release()
            if not self.streamed:
                return (
                    "has ended"
                    if self.filmed and seq
                    else "gives no frame: check its path or number, its cable, and who may read it"
                )
            self._stopping.wait(AGAIN_S)  # a stream is opened again
        return "was closed"

    def _put(self, image: Any, now: int, seq: int) -> None:
        rgb = self._cv2.cvtColor(image, self._cv2.COLOR_BGR2RGB)
        with self._new:
            self._frame = Frame(rgb, now - round(1e9 * self._about.latency_s), now, seq)
            self._last_ns = now
            self._new.notify_all()

    def _open(self) -> Any:
        cv2, about = self._cv2, self._about
        limit = round(1e3 * about.timeout_s)
        limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, limit, cv2.CAP_PROP_READ_TIMEOUT_MSEC, limit]
        if self.streamed:
            capture = cv2.VideoCapture(about.source, cv2.CAP_FFMPEG, limits)
        else:
            capture = cv2.VideoCapture(about.source)
            if capture.isOpened() and not self.filmed:
                capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*about.fourcc))
                capture.set(cv2.CAP_PROP_FRAME_HEIGHT, about.size[0])
                capture.set(cv2.CAP_PROP_FRAME_WIDTH, about.size[1])
                capture.set(cv2.CAP_PROP_FPS, about.rate_hz)
        for name, value in about.properties.items():
            if not capture.set(getattr(cv2, f"CAP_PROP_{name}"), value):
                raise UserError(f"camera {about.source} does not take {name}={value:g}: leave it out")
        self.backend = capture.getBackendName() if capture.isOpened() else ""
        return capture
