"""Frames to an mp4 that plays in a browser."""

from __future__ import annotations

from collections.abc import Iterable
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
    if not 0 < fps < float("inf"):
        raise UserError(f"fps={fps}: give frames a second, above 0")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    work = path.with_name(path.name + ".partial")
    try:
        _encode(work, frames, Fraction(fps).limit_denominator(1000))
        work.replace(path)
    finally:
        work.unlink(missing_ok=True)


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
