"""Cameras are judged by the age of their frames, and one that is not what was said is refused in a sentence.

Mutations that turn it red: the thread's last frame given twice; a stamp taken when the frame is asked for; BGR taken for RGB; the
size not looked at; frames nobody asked for not counted; a film played as fast as it can be read.
"""

import os
import time
from functools import partial
from itertools import pairwise

import mujoco
import numpy as np
import pytest

from polyarm.real_robot import camd, recorder
from polyarm.real_robot.arm import PortLost, ReadFailed
from polyarm.real_robot.camera import Frame, OpenCV, Rendered, fit
from polyarm.real_robot.episode_log import Logged
from polyarm.real_robot.ring import Lost, Reader, Writer
from polyarm.spec import Stream, UserError
from tests import mjpeg

SIZE = (48, 64)


@pytest.fixture
def needs_cv2():
    pytest.importorskip("cv2", reason="OpenCV is not installed: pip install opencv-python-headless")


def test_pictures_are_cut_and_averaged_as_the_policy_sees_them():
    """Mutations: squeezed in place of cut; the left part kept in place of the middle; the nearest pixel in place of the mean."""
    wide = np.zeros((4, 12, 3), "u1")
    wide[:, 4:8] = 200
    wide[::2, 4:8] = 100
    assert np.array_equal(fit(wide, (2, 2)), np.full((2, 2, 3), 150))
    assert np.array_equal(fit(wide.transpose(1, 0, 2), (1, 1)), np.full((1, 1, 3), 150))
    assert fit(wide, (4, 12)) is wide


def test_a_stream_is_read_stamped_and_judged_by_age(needs_cv2):
    """Over real sockets: fresh frames, each once; a frozen one is a failed read that says its age; then it goes on."""
    with mjpeg.serve(SIZE) as (url, state):
        camera = OpenCV(url, SIZE, latency_s=0.01, timeout_s=0.3)
        camera.open()
        frames = [camera.read(mjpeg.now_in(60)) for _ in range(5)]
        for a, b in pairwise(frames):
            assert a.t_rx_ns < b.t_rx_ns and a.seq < b.seq and b.dropped >= a.dropped
        f = frames[-1]
        assert f.image.shape == (*SIZE, 3) and f.t_rx_ns - f.t_ns == 10_000_000
        assert f.seq + 1 == 1 + 5 + f.dropped  # `open` took one to look at its size
        state.frozen = True
        try:
            while True:
                camera.read(mjpeg.now_in(0.2))
        except ReadFailed as e:
            assert "no new frame for" in str(e)
        state.frozen = False
        assert camera.read(mjpeg.now_in(60)).seq > f.seq
        assert camera.identify()["backend"] == "FFMPEG"
        camera.close()
        camera.close()
    with pytest.raises(PortLost, match="is not open"):
        camera.read(0)


def test_a_camera_that_is_not_what_was_said_is_refused(needs_cv2, monkeypatch, tmp_path):
    with mjpeg.serve((24, 32)) as (url, state):
        camera = OpenCV(url, SIZE, timeout_s=0.3)
        with pytest.raises(UserError, match=r"gives frames of 32 x 24, expected 64 x 48: set its size to \[24, 32\]"):
            camera.open()
        camera = OpenCV(url, (24, 32), timeout_s=0.3)
        camera.open()
        camera.size = (20, 30)
        with pytest.raises(PortLost, match="turned to frames of 32 x 24"):
            camera.read(mjpeg.now_in(60))
        camera.close()
        state.frozen = True
        monkeypatch.setattr("polyarm.real_robot.camera.OPEN_S", 0.2)
        with pytest.raises(UserError, match="gives no frame in 0.2 s"):
            OpenCV(url, (24, 32), timeout_s=0.1).open()
    for source in (str(tmp_path / "none.mp4"), 97):
        with pytest.raises(UserError, match="gives no frame: check its path or number"):
            OpenCV(source, SIZE).open()


def test_a_film_is_played_at_its_pace_in_true_colours(needs_cv2, tmp_path):
    import cv2

    film = cv2.VideoWriter(str(tmp_path / "film.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 20, SIZE[::-1])
    for k in range(8):
        film.write(np.full((*SIZE, 3), (20 * k, 0, 250), "u1"))  # OpenCV's blue is first
    film.release()
    camera = OpenCV(str(tmp_path / "film.avi"), SIZE)
    camera.open()
    frames = []
    with pytest.raises(PortLost, match="has ended"):
        while True:
            frames.append(camera.read(mjpeg.now_in(60)))
    last = frames[-1]
    assert last.seq == 7 and last.t_ns - frames[0].t_ns == pytest.approx((7 - frames[0].seq) * 50_000_000, abs=2)
    assert last.t_ns <= time.monotonic_ns()
    assert np.abs(last.image[20, 20].astype(int) - (250, 0, 140)).max() < 12
    camera.close()


SCENE = """<mujoco><worldbody><light pos="0 0 2"/><geom type="plane" size="2 2 .1"/><body><freejoint/>
<geom type="box" size=".1 .1 .1" rgba="1 0 0 1"/></body><camera name="top" pos="0 0 1"/></worldbody></mujoco>"""


def rendered(now, waits):
    model = mujoco.MjModel.from_xml_string(SCENE)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return Rendered(lambda: (model, data, now[0]), "top", SIZE, 10.0, clock=lambda: now[0], wait=waits)


def test_a_rendered_camera_keeps_to_a_clock_that_it_does_not_own():
    """Exact under any clock. Mutations: missed frames not counted; the next frame a period after the last in place of on the grid."""
    from polyarm.sim.world import Missing

    now = [0]
    camera = rendered(now, lambda until: now.__setitem__(0, max(now[0], until)))
    camera.open()
    try:
        first = camera.read(10**9)
    except Missing as e:
        pytest.skip(str(e))
    assert first.image.shape == (*SIZE, 3) and first.image[24, 32, 0] > 2 * int(first.image[24, 32, 2])
    assert (first.t_ns, first.seq, first.dropped) == (0, 0, 0)
    assert camera.read(10**9).t_ns == 100_000_000
    with pytest.raises(ReadFailed, match="comes 50 ms later"):
        camera.read(150_000_000)
    now[0] = 430_000_000
    late = camera.read(10**9)
    assert (late.t_ns, late.seq, late.dropped) == (430_000_000, 4, 2)
    assert camera.read(10**9).t_ns == 500_000_000
    camera.camera = "topp"
    with pytest.raises(UserError, match="unknown camera of the scene 'topp': did you mean 'top'"):
        camera.open()


def numbered(**more):
    return OpenCV(size=SIZE, timeout_s=0.3, **more)


def test_a_camera_in_its_own_process_fills_its_ring(needs_cv2, tmp_path):
    """Every frame for the recorder, the newest for a policy; one that is refused says why here. A mutation: the last frame put
    again while the stream is frozen."""
    logged = Logged(Stream("front", "image", (*SIZE, 3)), 30.0, "jpeg")
    path = recorder.create_ring(tmp_path / "front.ring", logged)
    with mjpeg.serve(SIZE) as (url, state), Reader(path, 0) as reader:
        made = camd.Process(partial(numbered, source=url), path)
        assert made.identity["source"] == url
        until = time.monotonic() + 60
        while reader.count < 5 and time.monotonic() < until:
            time.sleep(0.01)
        state.frozen = True
        while not made.status()["why"] and time.monotonic() < until:
            time.sleep(0.05)
        assert "no new frame for" in made.status()["why"]
        count = reader.count
        newest = recorder.newest_frame(reader, SIZE)
        assert newest.image.shape == (*SIZE, 3) and 0 < newest.t_ns <= newest.t_rx_ns < time.monotonic_ns()
        taken = [r for r in iter(reader.take, None) if not isinstance(r, Lost)]
        stamps = [r.t_ns for r in taken]
        assert stamps == sorted(set(stamps)) and reader.seq == count
        made.close()
        with pytest.raises(ProcessLookupError):
            os.kill(made.pid, 0)
        state.frozen = False
        with pytest.raises(UserError, match="gives frames of 64 x 48, expected 32 x 24"):
            camd.Process(partial(OpenCV, url, (24, 32), timeout_s=0.3), path)


class Late:
    """A camera of which each word is a read: a frame, a failed one, or lost."""

    size, rate_hz = SIZE, 30.0

    def __init__(self, *words):
        self.words = list(words)

    def open(self): ...

    def close(self): ...

    def identify(self):
        return {}

    def read(self, deadline_ns):
        word = self.words.pop(0)
        if isinstance(word, Exception):
            raise word
        return Frame(np.zeros((*SIZE, 3), "u1"), word, word, word, word)


def test_a_tick_moves_one_frame_or_says_why(tmp_path):
    path = recorder.create_ring(tmp_path / "r", Logged(Stream("front", "image", (*SIZE, 3)), 30.0, "jpeg"))
    with Writer(path) as writer:
        made = camd.Camd(Late(3, ReadFailed("frozen for 40 ms"), 9, PortLost("gone")), writer)
        assert made.tick(0) and (made.frames, made.dropped, made.why) == (1, 3, "")
        assert not made.tick(0) and made.why == "frozen for 40 ms" and writer.count == 1
        assert made.tick(0) and (made.frames, made.dropped, made.why) == (2, 9, "")
        with pytest.raises(PortLost):
            made.tick(0)
