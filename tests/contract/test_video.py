"""A written clip or GIF holds the frames that were given, and plays in a browser."""

import av
import numpy as np
import pytest
from PIL import Image

from polyarm.eval.video import last_frame, write_gif, write_mp4
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


def shown(path):
    """(frames as RGB, milliseconds of each, times it is played) of a GIF."""
    with Image.open(path) as gif:
        times = gif.info["loop"]
        every = [gif.seek(i) or (np.asarray(gif.convert("RGB")), gif.info["duration"]) for i in range(gif.n_frames)]
    return [frame for frame, _ in every], [ms for _, ms in every], times


def moving(n):
    """A dark square that goes right over the stripes."""
    frames = [stripes() for _ in range(n)]
    for i, frame in enumerate(frames):
        frame[40:50, 3 * i : 3 * i + 10] = 10
    return frames


def test_a_gif_shows_every_frame_for_ever_and_in_its_time(tmp_path):
    """Mutations: played once; a third of a hundredth lost at every frame; no hold; a palette of the first frame alone."""
    frames = [*moving(30), np.full((98, 120, 3), (250, 0, 250), np.uint8)]
    write_gif(tmp_path / "new" / "a.gif", frames, 30.0, 1.5)
    found, ms, times = shown(tmp_path / "new" / "a.gif")
    assert times == 0 and len(found) == 31 and set(ms[:-1]) == {30, 40}
    assert sum(ms[:-1]) == pytest.approx(1000, abs=10) and ms[-1] - 1500 in (30, 40)
    for a, b in zip(found, frames, strict=True):
        assert np.abs(a.astype(int) - b).max() <= 8


def test_what_stands_still_costs_a_gif_nothing(tmp_path):
    """Though something moves in opposite corners. Mutations: no clear colour; a palette that leaves it no room."""
    noise = np.random.default_rng(0).integers(0, 256, (98, 120, 3)).astype(np.uint8)
    dark = [
        np.roll(frame == 10, -38, axis=0) for frame in moving(30)
    ]  # near the upper edge, and its mirror near the lower
    still = [np.where(d | d[::-1, ::-1], 10, noise).astype(np.uint8) for d in dark]
    sizes = []
    for n in (1, 30):
        write_gif(tmp_path / "a.gif", still[:n], 10.0)
        sizes.append((tmp_path / "a.gif").stat().st_size)
    assert sizes[1] < 6 * sizes[0]


def test_a_gif_that_cannot_be_made_leaves_the_old_one(tmp_path, monkeypatch):
    write_gif(tmp_path / "a.gif", [stripes()] * 2, 10.0)
    before = (tmp_path / "a.gif").read_bytes()
    for frames, fps, words in (
        ([], 10.0, "0 frames make no GIF"), ([stripes()[..., 0]], 10.0, "frame 0 is uint8"), ([stripes()], 0.0, "fps=0"),
        ([stripes(), stripes(64, 64)], 10.0, "frame 1 is"), ([stripes()], 60.0, "fps=60: a GIF plays at most 50"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=words):
            write_gif(tmp_path / "a.gif", frames, fps)
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError, match="No space"):
        write_gif(tmp_path / "a.gif", [stripes()] * 3, 10.0)
    assert (tmp_path / "a.gif").read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.gif"]


def test_the_last_frame_is_how_a_clip_ends(tmp_path):
    """In its own colours. Mutation: the first."""
    write_mp4(tmp_path / "a.mp4", [*[np.full((98, 120, 3), 128, np.uint8)] * 40, stripes()], 10.0)
    end = last_frame(tmp_path / "a.mp4")
    assert end.shape == (98, 120, 3)
    for i, colour in enumerate(COLOURS):
        assert np.abs(end[20:-20, 30 * i + 15].astype(int) - colour).max() <= 8


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
