"""A written clip holds the frames that were given, and plays in a browser."""

import av
import numpy as np
import pytest

from polyarm.eval.video import write_mp4
from polyarm.spec import UserError

COLOURS = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (235, 235, 235)]


def stripes(height=98, width=120):
    """Four upright stripes of one colour each."""
    frame = np.zeros((height, width, 3), np.uint8)
    for part, colour in zip(np.array_split(np.arange(width), 4), COLOURS, strict=True):
        frame[:, part] = colour
    return frame


def read(path):
    """Frames as RGB by the file's own colour tags, and its stream."""
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        tags = {"src_color_range": "MPEG", "dst_color_range": "JPEG"}  # else PyAV keeps the studio range's contrast
        frames = [f.reformat(format="rgb24", **tags).to_ndarray() for f in file.decode(stream)]
        return frames, stream


def test_frames_rate_and_colours_come_back(tmp_path):
    write_mp4(tmp_path / "clips" / "a.mp4", (stripes() for _ in range(17)), 12.5)
    frames, stream = read(tmp_path / "clips" / "a.mp4")
    assert len(frames) == 17 and float(stream.average_rate) == 12.5
    assert stream.codec_context.name == "h264" and stream.codec_context.pix_fmt == "yuv420p"
    assert stream.codec_context.colorspace == stream.codec_context.color_primaries == 1, "tagged BT.709"
    for frame in frames:
        assert frame.shape == (98, 120, 3)
        for i, colour in enumerate(COLOURS):
            assert np.abs(frame[20:-20, 30 * i + 15].astype(int) - colour).max() <= 8


def test_frames_keep_their_order(tmp_path):
    shades = np.linspace(20, 230, 24).astype(np.uint8)
    write_mp4(tmp_path / "a.mp4", [np.full((64, 64, 3), s) for s in shades], 30.0)
    frames, _ = read(tmp_path / "a.mp4")
    assert [f.mean() for f in frames] == pytest.approx(shades.astype(float), abs=4)


def test_odd_sizes_grow_by_the_edge(tmp_path):
    write_mp4(tmp_path / "a.mp4", [stripes(97, 121)], 10.0)
    frames, _ = read(tmp_path / "a.mp4")
    assert frames[0].shape == (98, 122, 3)
    assert np.abs(frames[0][97, 121].astype(int) - COLOURS[3]).max() <= 8, "black would show as a line"


def test_the_index_comes_before_the_frames(tmp_path):
    write_mp4(tmp_path / "a.mp4", [stripes()] * 5, 10.0)
    data = (tmp_path / "a.mp4").read_bytes()
    assert 0 < data.find(b"moov") < data.find(b"mdat")


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.mp4"
    write_mp4(path, [stripes()] * 3, 10.0)
    before = path.read_bytes()

    def broken():
        yield stripes()
        raise RuntimeError("the renderer died")

    with pytest.raises(RuntimeError, match="renderer"):
        write_mp4(path, broken(), 10.0)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize(
    ("frames", "fps", "words"),
    [
        ([], 10.0, "0 frames"),
        ([stripes() / 255.0], 10.0, "frame 0 is float64"),
        ([stripes()[..., 0]], 10.0, "frame 0 is uint8"),
        ([stripes(), stripes(64, 64)], 10.0, "frame 1 is"),
        ([stripes()], 0.0, "fps=0.0"),
    ],
)
def test_what_is_refused(tmp_path, frames, fps, words):
    with pytest.raises(UserError, match=words):
        write_mp4(tmp_path / "a.mp4", frames, fps)
    assert not list(tmp_path.iterdir())
