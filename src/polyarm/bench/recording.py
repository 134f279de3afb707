"""What recording takes: two cameras and an arm through the recorder's process, and whether anything was lost.

python -m polyarm.bench.recording seconds=60
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polyarm.real_robot import recorder
from polyarm.real_robot.camera import Frame
from polyarm.real_robot.episode_log import Logged, survey
from polyarm.real_robot.ring import Writer
from polyarm.spec import Stream, UserError, unknown

SETTINGS: dict[str, float | str] = {
    "seconds": 60.0, "cameras": 2, "height": 480, "width": 640, "rate_hz": 30.0, "arm_hz": 100.0, "codec": "jpeg", "out": "",
}  # fmt: skip
CHANNELS = 40


def measure(seconds: float, cameras: int, height: int, width: int, rate_hz: float, arm_hz: float, codec: str, out: str) -> dict[str, Any]:  # fmt: skip
    """{"core": share of a core that the recorder took, "put_ms" a frame for a camera's process, "late_ms" of the writer, "frames",
    "rows", "lost", "mb_per_s"}. `out`: a folder on the disk to record to; a temporary one by default."""
    shown = [Logged(Stream(f"camera_{i}", "image", (height, width, 3)), rate_hz, codec) for i in range(cameras)]
    names = tuple(map(str, range(CHANNELS)))
    arm = Logged(Stream("arm", "state", (CHANNELS,), names, ("1",) * CHANNELS), arm_hz)
    shm = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=shm) as rings, tempfile.TemporaryDirectory(dir=out or None) as folder:
        paths = [recorder.create_ring(Path(rings) / s.stream.name, s) for s in (*shown, arm)]
        writers = [Writer(path) for path in paths]
        process = recorder.Process(paths)
        log = Path(folder) / "e.log"
        process.begin(log)
        began_s, began = _cpu_s(process.pid), time.monotonic()
        frames, rows, late, put = _play(writers, pictures(height, width), seconds, rate_hz, arm_hz)
        core = (_cpu_s(process.pid) - began_s) / (time.monotonic() - began)
        process.end("saved", True)
        process.close()
        found = survey(log)
        have = [len(s.t_ns) for s in found.samples]
        return {
            "core": round(core, 3), "put_ms": round(1e3 * put, 3), "late_ms": [round(1e3 * float(np.percentile(late, q)), 2) for q in (50, 99, 100)],
            "frames": frames * cameras, "rows": rows, "lost": frames * cameras + rows - sum(have),
            "mb_per_s": round(found.good_bytes / 1e6 / seconds, 2), "told": found.told(), "codec": codec,
        }  # fmt: skip


def pictures(height: int, width: int, n: int = 8) -> list[np.ndarray]:
    """Gradients, a disc that moves and a sensor's noise, so that their JPEGs are of about a real picture's size."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    made = []
    for k in range(n):
        plain = np.stack([x / 3 + 10 * k, y / 2, (x + y) / 5], -1) % 256
        plain[np.hypot(x - 100 - 50 * k, y - height / 2) < height / 8] = (200, 30, 40)
        made.append(np.clip(plain + rng.normal(0, 4, plain.shape), 0, 255).astype(np.uint8))
    return made


def _play(writers: Sequence[Writer], shown: Sequence[np.ndarray], seconds: float, rate_hz: float, arm_hz: float) -> tuple[int, int, list[float], float]:  # fmt: skip
    """(frames of a camera, rows, lateness of each tick, seconds of processor a frame), by the wall clock."""
    *cameras, arm = writers
    row, begin, late, frames, spent = [0.0] * CHANNELS, time.monotonic(), [], 0, 0.0
    ticks = round(seconds * arm_hz)
    for k in range(ticks):
        due = begin + k / arm_hz
        time.sleep(max(0.0, due - time.monotonic()))
        late.append(max(0.0, time.monotonic() - due))
        recorder.put_row(arm, time.monotonic_ns(), row)
        if k * rate_hz / arm_hz >= frames:
            at = time.process_time()
            for i, ring in enumerate(cameras):
                now = time.monotonic_ns()
                recorder.put_frame(ring, Frame(shown[(frames + i) % len(shown)], now, now, frames))
            frames, spent = frames + 1, spent + time.process_time() - at
    return frames, ticks, late, spent / max(1, frames * len(cameras))


def _cpu_s(pid: int) -> float:
    """Of a process, all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main(words: Sequence[str]) -> int:
    settings = dict(SETTINGS)
    try:
        for word in words:
            name, _, value = word.partition("=")
            if name not in settings:
                raise unknown("setting", name, settings)
            settings[name] = type(SETTINGS[name])(value)
        print(json.dumps(measure(**settings), indent=1))  # type: ignore[arg-type]
    except (UserError, ValueError) as e:
        print(e, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
