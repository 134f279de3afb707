"""What a recording at an arm consists of: the arm's stream of ticks, what else is seen, and the recorder behind the rings."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from polyarm.real_robot import camd, pages, recorder
from polyarm.real_robot.arm import ArmSpec
from polyarm.real_robot.camera import Camera
from polyarm.real_robot.episode_log import Logged
from polyarm.real_robot.manned import Told
from polyarm.real_robot.ring import Reader, Writer
from polyarm.real_robot.states import State
from polyarm.spec import ActionSpace, ObsSpace, Spec, Stream, UserError

ARM, EYE, JOINTS, PERSON = "arm", "eye", "joint_pos", "intervention"
STATES = tuple(State)


def arm_stream(spec: ArmSpec, rate_hz: float) -> Logged:
    """A tick: where the joints were, what was asked of them, what was commanded, whether a person had the arm, and its state by the
    number among `STATES`. nan where there is none."""
    names = [f"{what}.{joint}" for what in (JOINTS, "action", "sent") for joint in spec.joints]
    stream = Stream(ARM, "state", (len(names) + 2,), (*names, f"{PERSON}.{PERSON}", "state.state"), (*spec.units * 3, "1", "1"), "joint")  # fmt: skip
    return Logged(stream, rate_hz)


def arm_row(spec: ArmSpec, told: Told) -> list[float]:
    seen, nothing = told.seen, (np.nan,) * len(spec.joints)
    return [
        *seen.q,
        *(told.action or nothing),
        *(seen.sent or nothing),
        float(told.person),
        float(STATES.index(seen.state)),
    ]


def store_spec(
    spec: ArmSpec, rate_hz: float, eye: Sequence[Stream] = (), cameras: Mapping[str, tuple[int, int]] | None = None,
    versions: Mapping[str, str] | None = None,
) -> Spec:  # fmt: skip
    """Of the demonstrations: joints, what an eye that sees all adds, pictures, and who had the arm."""
    images = (Stream(name, "image", (*size, 3), frame=name) for name, size in (cameras or {}).items())
    joints = Stream(JOINTS, "state", (len(spec.joints),), spec.joints, spec.units, "joint")
    person = Stream(PERSON, "label", (1,), (PERSON,), ("1",))
    return Spec(
        ObsSpace((joints, *eye, *images, person), rate_hz),
        ActionSpace(spec.joints, spec.units, "joint", rate_hz),
        dict(versions or {}),
    )


def eye_stream(streams: Sequence[Stream], rate_hz: float) -> Logged:
    names = tuple(f"{s.name}.{channel}" for s in streams for channel in s.names)
    units = tuple(unit for s in streams for unit in s.units)
    return Logged(Stream(EYE, "state", (len(names),), names, units), rate_hz)


class Tape:
    """The rings of one session in shared memory, its cameras' processes, and the recorder: in a process of its own, or `inline`, for
    a lock-step arm, in this one. `cameras`: {name: (what makes the camera in its process, size, rate, latency)}."""

    def __init__(
        self, name: str, spec: ArmSpec, rate_hz: float, eye: Logged | None = None,
        cameras: Mapping[str, tuple[Callable[[], Camera], tuple[int, int], float, float]] | None = None, inline: bool = False,
    ) -> None:  # fmt: skip
        self.spec, self._stack = spec, ExitStack()
        self.resumed: list[str] = []
        """Sentences on recorders that died and were gone on from."""
        self._log: Path | None = None
        with ExitStack() as stack:
            logged = [arm_stream(spec, rate_hz), *([eye] if eye else [])]
            shown = {
                n: Logged(Stream(n, "image", (*size, 3)), hz, "jpeg", late)
                for n, (_, size, hz, late) in (cameras or {}).items()
            }
            self.paths = []
            for one in (*logged, *shown.values()):
                path = pages.path_of(f"{name}.{one.stream.name}.ring")
                stack.callback(path.unlink, missing_ok=True)
                self.paths.append(recorder.create_ring(path, one))
            self._arm = Writer(self.paths[0])
            stack.callback(self._arm.close)
            self._eye = Writer(self.paths[1]) if eye else None
            if self._eye:
                stack.callback(self._eye.close)
            self.cameras = {}
            self._newest: dict[str, tuple[Reader, tuple[int, int]]] = {}
            for (n, (make, size, _, _)), path in zip((cameras or {}).items(), self.paths[len(logged) :], strict=True):
                self.cameras[n] = camd.Process(make, path)
                stack.callback(self.cameras[n].close)
                self._newest[n] = Reader(path), size
                stack.callback(self._newest[n][0].close)
            self._recorder: recorder.Process | recorder.Recorder
            self._recorder = recorder.Recorder(self.paths) if inline else recorder.Process(self.paths)
            self._stack = stack.pop_all()

    def __enter__(self) -> Tape:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """An episode that was not ended stays unfinished, for the next session to say so."""
        self._recorder.close()
        self._stack.close()

    @property
    def pid(self) -> int:
        """Of the recorder's process."""
        return self._recorder.pid if isinstance(self._recorder, recorder.Process) else os.getpid()

    def put(self, told: Told) -> None:
        """A tick; drained at once where nobody else does it."""
        recorder.put_row(self._arm, told.now_ns, arm_row(self.spec, told))
        if isinstance(self._recorder, recorder.Recorder):
            self._recorder.drain()

    def put_eye(self, now_ns: int, row: Sequence[float]) -> None:
        if self._eye:
            recorder.put_row(self._eye, now_ns, row)

    def newest(self) -> dict[str, Any]:
        """{camera: its newest frame or None}"""
        return {name: recorder.newest_frame(ring, size) for name, (ring, size) in self._newest.items()}

    def begin(self, path: Path, now_ns: int, spec: Spec, **said: Any) -> None:
        if isinstance(self._recorder, recorder.Process):
            self._recorder.begin(path, spec=spec.to_json(), **said)
        else:
            self._recorder.begin(path, now_ns, spec=spec.to_json(), **said)
        self._log = path

    def end(self, now_ns: int, outcome: str, success: bool, spans: Sequence[tuple[int, int]] = ()) -> None:
        """`spans`: from when to when a person had the arm."""
        self.mend()
        if isinstance(self._recorder, recorder.Process):
            self._recorder.end(outcome, success, spans)
        else:
            self._recorder.end(now_ns, outcome, success, spans)
        self._log = None

    def mend(self) -> None:
        """A recorder that died is started again and goes on with its log: the rings still hold what it missed."""
        if isinstance(self._recorder, recorder.Recorder) or self._recorder.alive:
            return
        self._recorder.close()
        self._recorder = recorder.Process(self.paths)
        self.resumed.append("the recorder died and was started again")
        if self._log is not None:
            self.resumed += self._recorder.resume(self._log)


def made(make: Callable[[], Camera]) -> tuple[Callable[[], Camera], tuple[int, int], float, float]:
    """What a tape takes of a camera, asked of one that is not opened."""
    camera = make()
    if not isinstance(camera, Camera):
        raise UserError(f"{type(camera).__name__} is no camera: give what keeps polyarm.real_robot.camera.Camera")
    height, width = camera.size
    return make, (height, width), float(camera.rate_hz), float(getattr(camera, "latency_s", 0.0))
