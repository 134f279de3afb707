"""Frames to what plays in a browser: mp4, or a GIF that needs no player; and a picture to show before."""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import numpy as np

from polyarm.spec import UserError

BT709, LIMITED = 1, 1
"""ITU-T H.273's code of the matrix, primaries and transfer curve, and FFmpeg's of the 16 to 235 range. Players guess
the colours of an untagged file by its size."""


def write_mp4(path: Path | str, frames: Iterable[np.ndarray], fps: float) -> None:
    """Write uint8 RGB frames (H, W, 3) as H.264 at `fps` frames a second; makes the folder.

    Odd sizes grow by one row or column, copied from the edge (H.264's 4:2:0 colour needs even ones). The file appears
    under its name only when it is whole.
    """
    _require_fps(fps)
    with _whole(path) as work:
        _encode(work, frames, Fraction(fps).limit_denominator(1000))


def write_gif(path: Path | str, frames: Sequence[np.ndarray], fps: float, hold_s: float = 0.0) -> None:
    """Write uint8 RGB frames (H, W, 3) as a GIF that plays for ever; makes the folder. The last frame stays `hold_s` longer.

    All frames share one palette of 255 colours, undithered, and a clear one, so that what does not move costs nothing. A GIF counts in
    hundredths of a second: `fps` up to 50. The file appears under its name only when it is whole.
    """
    from PIL import Image

    _require_fps(fps)
    if fps > 50:
        raise UserError(f"fps={fps:g}: a GIF plays at most 50 frames a second, give fewer")
    for i, frame in enumerate(frames):
        _require_frame(frame, i, frames[0].shape)
    if not len(frames):
        raise UserError("0 frames make no GIF: give at least 1")
    some = frames[:: -(-len(frames) // PALETTE_FROM)]
    palette = Image.fromarray(np.concatenate(some)).quantize(255, dither=Image.Dither.NONE)
    first, *rest = (Image.fromarray(f).quantize(palette=palette, dither=Image.Dither.NONE) for f in frames)
    ends = [round(100 * (i + 1) / fps) for i in range(len(frames))]  # rounded as times, so that no error adds up
    ends[-1] += round(100 * hold_s)
    shown = [10 * (b - a) for a, b in zip([0, *ends], ends, strict=False)]
    with _whole(path) as work:
        first.save(work, "GIF", save_all=True, append_images=rest, duration=shown, loop=0, optimize=True, disposal=1)


PALETTE_FROM = 16
"""Frames at most that a GIF's palette is chosen from."""


def last_frame(path: Path | str) -> np.ndarray:
    """How a clip ends, uint8 (H, W, 3). Raises `UserError` for a file that cannot be played."""
    import av

    try:
        with av.open(str(path)) as file:
            last = deque(file.decode(video=0), maxlen=1)
    except (av.error.FFmpegError, IndexError) as error:
        raise UserError(f"clip {path} cannot be played ({error}): make it anew") from error
    if not last:
        raise UserError(f"clip {path} holds no picture: make it anew")
    return last[0].reformat(format="rgb24", src_color_range="MPEG", dst_color_range="JPEG").to_ndarray()


def encoded(picture: np.ndarray, kind: str) -> bytes:
    """A picture (H, W, 3) as the bytes of a "png", which is exact, or a "jpeg"."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture).save(file, kind.upper(), optimize=True)
    return file.getvalue()


@contextmanager
def _whole(path: Path | str) -> Iterator[Path]:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    work = path.with_name(path.name + ".partial")
    try:
        yield work
        with work.open("rb") as file:
            os.fsync(file.fileno())
        work.replace(path)
    finally:
        work.unlink(missing_ok=True)


def _require_fps(fps: float) -> None:
    if not 0 < fps < float("inf"):
        raise UserError(f"fps={fps}: give frames a second, above 0")


def _encode(path: Path, frames: Iterable[np.ndarray], rate: Fraction) -> None:
    import av

    shape: tuple[int, ...] | None = None
    # the moov atom in front (faststart): a browser starts before it has read the whole file
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as out:
        for i, frame in enumerate(frames):
            _require_frame(frame, i, shape)
            if shape is None:
                shape = frame.shape
                stream = out.add_stream("libx264", rate, options={"crf": "20", "preset": "medium"})
                stream.pix_fmt = "yuv420p"
                stream.height, stream.width = (n + n % 2 for n in shape[:2])
                context = stream.codec_context
                context.colorspace = context.color_primaries = context.color_trc = BT709
                context.color_range = LIMITED
            even = np.pad(frame, [(0, n % 2) for n in shape[:2]] + [(0, 0)], mode="edge")
            picture = av.VideoFrame.from_ndarray(even, "rgb24")
            out.mux(stream.encode(picture.reformat(format="yuv420p", dst_colorspace="ITU709")))
        if shape is None:
            raise UserError("0 frames make no video: give at least 1")
        out.mux(stream.encode())


def _require_frame(frame: np.ndarray, i: int, shape: tuple[int, ...] | None) -> None:
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        raise UserError(f"frame {i} is {frame.dtype} {frame.shape}: give uint8 RGB, (height, width, 3)")
    if shape is not None and frame.shape != shape:
        raise UserError(f"frame {i} is {frame.shape}, the first is {shape}: give frames of one size")
