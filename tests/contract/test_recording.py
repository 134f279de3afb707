"""What was measured is in the log, and what is in the log is in the store: whoever is killed, and however full the disk is.

Mutations that turn it red stand at the tests.
"""

import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from polyarm.datasets.store import Store
from polyarm.real_robot import closing, recorder
from polyarm.real_robot.camera import Frame
from polyarm.real_robot.episode_log import EpisodeLog, Kind, Logged, entries, survey
from polyarm.real_robot.recorder import Recorder
from polyarm.real_robot.ring import Lost, Reader, Ring, Writer
from polyarm.spec import ActionSpace, ObsSpace, Spec, Stream, UserError

MS = 1_000_000
ARM = Logged(Stream("arm", "state", (3,), ("joint_pos.a", "action.a", "intervention.intervention"), ("rad", "rad", "1")), 100.0)  # fmt: skip
FRONT = Logged(Stream("front", "image", (48, 64, 3)), 30.0, "jpeg")
SPEC = Spec(
    ObsSpace(
        (Stream("joint_pos", "state", (1,), ("a",), ("rad",)), Stream("front", "image", (24, 32, 3)),
         Stream("intervention", "label", (1,), ("intervention",), ("1",))), 20.0,
    ),
    ActionSpace(("a",), ("rad",), "joint", 20.0),
)  # fmt: skip


def picture(k, size=(48, 64)):
    """Its grey says which one it is."""
    return np.full((*size, 3), 3 * k % 250, "u1")


@pytest.fixture
def rings(tmp_path):
    """Paths of a ring of the arm's rows and one of a camera's frames."""
    return [recorder.create_ring(tmp_path / f"{x.stream.name}.ring", x) for x in (ARM, FRONT)]


# rings


def test_a_ring_gives_what_was_put_and_says_what_was_written_over(tmp_path):
    """Mutations: a slot that does not carry its number; what was lost not counted; the newest taken from the reader's place."""
    path = Ring.create(tmp_path / "r", 8, 4, {"about": "x"})
    with Writer(path) as writer, Reader(path) as reader, Reader(path) as idle:
        assert reader.said == {"about": "x"} and reader.take() is None and idle.newest() is None
        for k in range(3):
            assert writer.put(k, bytes([k]), bytes([k, k])) == k
        assert [reader.take().payload for _ in range(3)] == [bytes([k]) * 3 for k in range(3)]
        for k in range(3, 12):
            writer.put(k, bytes([k]))
            assert idle.newest() == (k, k, bytes([k]))  # whoever keeps up, or not
        got = list(iter(reader.take, None))
        lost = got[0]
        assert isinstance(lost, Lost) and lost.seq == 3
        assert [r.seq for r in got[1:]] == list(range(3 + lost.number, 12))  # no number is given twice or missing
        assert lost.number >= 5
        with pytest.raises(UserError, match="a record of 65 bytes"):
            writer.put(0, bytes(65))
        with pytest.raises(UserError, match="another process writes to the ring"):
            Writer(path)
    with Writer(path) as writer:  # after one that died
        assert writer.put(0, b"x") == 12


def test_a_record_that_is_being_written_or_spoiled_is_never_given(tmp_path):
    """Mutations: the number of a slot written before its payload; no checksum of a slot."""
    path = Ring.create(tmp_path / "r", 8, 4)
    with Writer(path) as writer, Reader(path) as reader:
        writer.put(1, b"abc")
        at = reader._at(0)
        writer._view[at + 24] ^= 1  # of the payload
        assert reader.newest() is None and reader.take() == Lost(0, 1)
        writer.put(2, b"abc")
        writer._numbers[reader._at(1) // 8] = 0  # a writer that dies here has not counted it, or is going round
        assert reader.newest() is None


def test_a_ring_that_cannot_be_is_said(tmp_path):
    (tmp_path / "text").write_text("no ring" * 1000)
    for make, sentence in (
        (lambda: Reader(tmp_path / "none"), "cannot be opened .No such file.*start what writes to it first"),
        (lambda: Reader(tmp_path / "text"), "is no ring of polyarm's"),
        (lambda: Ring.create(tmp_path / "huge", 1 << 40, 1 << 10), "ring of .* MB cannot be made at .*: free space"),
        (lambda: Ring.create(tmp_path / "one", 8, 1), "give 2 or more slots"),
    ):
        with pytest.raises(UserError, match=sentence):
            make()
    assert [p.name for p in tmp_path.iterdir()] == ["text"]


# logs


def small_log(path, samples=6, finish=True):
    log = EpisodeLog.create(path, [ARM], 5, station={"arm": "so101"})
    for k in range(samples):
        log.add(0, 100 + k, k, np.full(3, k / 8))
    if finish:
        log.note(200, state="HOLD")
        log.finish(300, "saved", True, [(110, 120)])
    else:
        log.close()
    return path


def test_a_log_says_what_was_put_into_it(tmp_path):
    found = survey(small_log(tmp_path / "e.log"))
    assert found.header["station"] == {"arm": "so101"} and found.streams == (ARM,)
    assert found.samples[0].t_ns == list(range(100, 106)) and found.samples[0].seq == list(range(6))
    raw = (tmp_path / "e.log").read_bytes()
    at, n = found.samples[0].at[4], found.samples[0].length[4]
    assert np.frombuffer(raw[at : at + n]).tolist() == [0.5] * 3
    assert found.footer == {"outcome": "saved", "success": True, "interventions": [[110, 120]]}
    assert found.notes == [(200, {"state": "HOLD"})] and found.torn_bytes == 0 and found.told() == []
    with pytest.raises(UserError, match="exists: give another path, recordings are never written over"):
        small_log(tmp_path / "e.log")


def test_every_flipped_bit_and_every_cut_is_noticed(tmp_path):
    """All that follow the header, of a whole file. A mutation: kind, stamp and number left out of the checksum."""
    log = EpisodeLog.create(tmp_path / "e.log", [Logged(Stream("a", "state", (1,), ("a",)), 1.0)], 0)
    for k in range(2):
        log.add(0, k, k, b"xyz"[:k])
    log.finish(9, "", True)
    raw, whole = (tmp_path / "e.log").read_bytes(), [e[:5] for e in entries(tmp_path / "e.log")]
    bad = tmp_path / "bad.log"

    def noticed(spoiled):
        bad.write_bytes(spoiled)
        try:
            found = survey(bad)
        except UserError:
            return True
        kept = [e[:5] for e in entries(bad)]
        assert kept == whole[: len(kept)]  # nothing but what was written is believed
        return bool(found.told())

    spoiled = bytearray(raw)
    head = len(raw) - sum(26 + len(e[4]) for e in whole[1:])  # its text is long: one bit of each byte there
    for i, bit in [(i, i % 8) for i in range(head)] + list(itertools.product(range(head, len(raw)), range(8))):
        spoiled[i] ^= 1 << bit
        assert noticed(spoiled), (i, bit)
        spoiled[i] ^= 1 << bit
    assert not noticed(raw)
    assert all(noticed(raw[:n]) for n in (*range(0, head, 50), *range(head, len(raw), 3)))
    assert noticed(raw + b"\0") and noticed(raw[:-40] + bytes(40)) and noticed(raw + raw[8:])


def test_samples_that_were_never_written_are_told(tmp_path):
    """The numbers prove it. A mutation: `missing` that counts samples."""
    log = EpisodeLog.create(tmp_path / "e.log", [ARM], 0)
    for seq in (7, 8, 11, 12, 13, 20):
        log.add(0, seq, seq, b"")
    log.finish(9, "saved", True)
    found = survey(tmp_path / "e.log")
    assert found.samples[0].missing == [(9, 2), (14, 6)]
    assert found.told() == [f"{tmp_path}/e.log misses 8 samples of arm, from number 9, 14 on"]


KILLED = """
import os, signal, sys
from polyarm.real_robot.episode_log import EpisodeLog
from tests.contract.test_recording import ARM
for line in sys.stdin:
    path, seconds = line.split()
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        log = EpisodeLog.create(path, [ARM], 0)
        for k in range(10**9):
            log.add(0, k, k, bytes(k % 5000))
            os.write(tell, k.to_bytes(4, "little"))
    os.close(tell)
    os.read(told, 4)  # it has begun
    import time; time.sleep(float(seconds))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    last = 0
    while piece := os.read(told, 65536): last = int.from_bytes(piece[-4:], "little")
    print(last, flush=True)
"""


@pytest.mark.parametrize("kills", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_a_killed_recorder_loses_nothing_acknowledged(tmp_path, kills):
    """SIGKILL at random moments; a pipe holds what was acknowledged. A mutation: records kept in a buffer of the process."""
    rng = np.random.default_rng()
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    with subprocess.Popen([sys.executable, "-c", KILLED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as killer:  # fmt: skip
        for i in range(kills):
            path = tmp_path / f"{i}.log"
            killer.stdin.write(f"{path} {rng.uniform(0, 0.05)}\n")
            killer.stdin.flush()
            last = int(killer.stdout.readline())
            found = survey(path)
            assert found.footer is None and "was cut off" in found.told()[0]
            seq = found.samples[0].seq
            assert seq == list(range(len(seq))) and last < len(seq) <= last + 2
            assert found.samples[0].length == [k % 5000 for k in seq]
        killer.stdin.close()


def test_a_log_is_gone_on_with_behind_its_last_good_record(tmp_path):
    """What is torn off is kept aside. Mutations: resumed behind the torn bytes; the torn bytes thrown away."""
    path = small_log(tmp_path / "e.log", finish=False)
    raw = path.read_bytes()
    path.write_bytes(raw + raw[-30:-3])
    log, found = EpisodeLog.resume(path)
    assert found.torn_bytes == 27 and "27 bytes behind the last good record" in found.told()[1]
    with pytest.raises(UserError, match="is being recorded by another process"):
        EpisodeLog.resume(path)
    with pytest.raises(UserError, match="is being recorded: finish the episode first"):
        closing.close([path], tmp_path / "s.zarr", SPEC)
    log.add(0, 1, 6, np.zeros(3))
    log.finish(9, "saved", False)
    again = survey(path)
    assert again.samples[0].seq == list(range(7)) and again.notes[0][1] == {"resumed": True, "torn_bytes": 27}
    assert path.read_bytes().startswith(raw) and (tmp_path / "e.log.torn").read_bytes() == raw[-30:-3]
    with pytest.raises(UserError, match="is finished: record into another"):
        EpisodeLog.resume(path)


def test_a_full_disk_is_a_sentence_and_loses_nothing_saved(tmp_path):
    """The limit of a file's size cuts a write as a full disk does. Mutations: a short write that passes; the piece of a record
    that was taken left in the file."""
    log = EpisodeLog.create(tmp_path / "e.log", [ARM], 0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (log.size + 2500, hard))
    try:
        for k in range(2):
            log.add(0, k, k, bytes(1000))
        for _ in range(2):
            with pytest.raises(
                UserError, match="e.log cannot be written .*: free space, .*; what was saved before stays"
            ):
                log.add(0, 2, 2, bytes(1000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    log.add(0, 2, 2, bytes(1000))  # once there is space again
    log.finish(9, "saved", True)
    found = survey(tmp_path / "e.log")
    assert found.samples[0].seq == [0, 1, 2] and found.told() == []


def test_the_disk_that_fails_later_is_told_at_the_next_record(tmp_path, monkeypatch):
    """A mutation: the thread that lets an error of fdatasync pass, which the kernel says only once."""
    monkeypatch.setattr("polyarm.real_robot.episode_log.SYNC_S", 0.01)
    log = EpisodeLog.create(tmp_path / "e.log", [ARM], 0)

    def fail(_):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        log.add(0, 0, 0, b"x")
        log._thread.join(60)
        with pytest.raises(UserError, match="cannot be written .Input/output error."):
            log.add(0, 1, 1, b"x")
    log.close()


# recorder


def put(writers, t_ms, arm, k):
    recorder.put_row(writers[0], t_ms * MS, [float(x) for x in arm])
    if k is not None:
        recorder.put_frame(writers[1], Frame(picture(k), t_ms * MS, t_ms * MS + 7, k))


def test_the_recorder_writes_all_and_keeps_stamps(tmp_path, rings):
    """Mutations: stamps of the recorder's clock; what was in the rings before `begin` written too."""
    writers, made = [Writer(p) for p in rings], Recorder(rings)
    put(writers, 1, (9, 9, 9), 0)
    made.begin(tmp_path / "e.log", 0, spec=SPEC.to_json())
    for k in range(1, 7):
        put(writers, 10 * k, (k, k, 0), k)
    assert made.drain() == 12 and made.drain() == 0
    put(writers, 70, (7, 7, 0), 7)
    made.end(80 * MS, "saved", True)
    found = survey(tmp_path / "e.log")
    assert found.told() == [] and found.footer["success"]
    for samples in found.samples:
        assert samples.t_ns == [10 * k * MS for k in range(1, 8)] and samples.seq == list(range(1, 8))
    frame = next(e for e in entries(tmp_path / "e.log") if e.kind == Kind.SAMPLE and e.stream == 1)
    assert recorder.FRAME.unpack_from(frame.payload) == (10 * MS + 7, 1, 0)
    assert np.abs(recorder.decode(frame.payload[recorder.FRAME.size :]).astype(int) - picture(1)).max() <= 2
    for x in (*writers, made):
        x.close()


def test_a_ring_that_went_round_is_a_fault_of_the_log(tmp_path, rings):
    """Never a silent gap. A mutation: `Lost` passed over."""
    writers, made = [Writer(p) for p in rings], Recorder(rings)
    made.begin(tmp_path / "e.log", 0)
    for k in range(500):
        put(writers, k, (k, 0, 0), None)
    made.drain()
    assert made.lost > 200
    made.end(1, "saved", True)
    found = survey(tmp_path / "e.log")
    assert found.faults == [{"fault": "overflow", "stream": "arm", "first": 0, "count": made.lost}]
    assert (
        found.samples[0].seq == list(range(made.lost, 500))
        and f"misses {made.lost} samples of arm, from number 0 on" in found.told()[0]
    )


def test_png_is_lossless(tmp_path):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (48, 64, 3), dtype="u1")
    assert np.array_equal(recorder.decode(recorder.encode(noise, "png")), noise)
    with pytest.raises(UserError, match="unknown codec of camera 'front' 'jpg': did you mean 'jpeg'"):
        recorder.create_ring(tmp_path / "r", Logged(FRONT.stream, 30.0, "jpg"))


def test_a_recorder_that_is_killed_is_followed_by_one_that_goes_on(tmp_path, rings):
    """The process itself, killed between two samples: no sample is missing or there twice. Mutations: the ring read from its
    newest on; the last sample of the log written again."""
    writers = [Writer(p) for p in rings]
    first = recorder.Process(rings)
    first.begin(tmp_path / "e.log", spec=SPEC.to_json())
    until = time.monotonic() + 60
    for k in range(1, 21):
        put(writers, k, (k, 0, 0), k)
        if k == 10:
            while first.status()["bytes"] < 2000 and time.monotonic() < until:
                time.sleep(0.01)
            os.kill(first.pid, signal.SIGKILL)
            first._process.join()
            with pytest.raises(UserError, match="the recorder died .*: start it again, its log is resumed"):
                first.status()
    second = recorder.Process(rings)
    assert "was cut off" in second.resume(tmp_path / "e.log")[0]
    assert second.status()["lost"] == 0 and second.status()["recording"] == str(tmp_path / "e.log")
    second.close()  # whoever asked for it is gone
    found = survey(tmp_path / "e.log")
    assert found.footer == {"outcome": "interrupted", "success": False, "interventions": []}
    assert [s.seq for s in found.samples] == [list(range(20))] * 2


# closing


def recorded(path, seconds=2.0, late=lambda t_ms: False, camera=FRONT, offset=0, size=(48, 64), finish=True):
    """A log of 100 Hz rows, joint = time in s, action sent 2 ms after each, and 30 Hz frames; `late`: frames that are missing."""
    log = EpisodeLog.create(path, [ARM, camera], 0, spec=SPEC.to_json())
    n = int(100 * seconds)
    for k in range(n):
        t = 1000 * MS + k * 10 * MS
        log.add(0, t + 2 * MS, k, np.array([k / 100, k / 100, float(0.5 <= k / 100 < 1.0)]))
        if k % 3 == 0 and not late(10 * k):
            frame = recorder.FRAME.pack(t, k // 3, 0) + recorder.encode(picture(k // 3, size), "jpeg")
            log.add(1, t + offset, k // 3, frame)
    if finish:
        log.finish(t, "saved", True)
    else:
        log.close()
    return path


def test_rows_are_what_a_policy_would_have_seen_and_was_sent(tmp_path):
    """Mutations: the nearest sample in place of the newest; an action from before its row; the label from the row before."""
    done = closing.close([recorded(tmp_path / "e.log")], tmp_path / "s.zarr")
    store = Store.open(tmp_path / "s.zarr")
    n = store.frames
    time_s, joint, action = store.read("time_s"), store.read("joint_pos")[:, 0], store.read("action")[:, 0]
    assert np.allclose(time_s, np.arange(n) / 20) and n == 40 and store.successes.tolist() == [True]
    assert np.allclose(joint, np.arange(n) * 0.05, atol=1e-6)  # the grid begins with the first row of the arm
    assert np.array_equal(action, joint)
    shown = store.read("front")[:, 12, 16, 0].astype(int)
    newest = np.floor((time_s + 0.002 + 1e-9) / 0.03).astype(int)
    assert np.abs(shown - 3 * newest % 250).max() <= 2
    assert np.array_equal(store.read("intervention")[:, 0], (action >= 0.5) & (action < 1.0))
    assert store.stream("front").shape[1:] == (24, 32, 3)
    assert done[0].told == [] and done[0].rows == n and 0 <= done[0].age_ms["front"][0] <= 30


def test_an_action_is_the_first_of_its_period_and_a_camera_is_as_late_as_it_is(tmp_path):
    """Mutations: latency left out; actions taken as observations are, the newest before."""
    log = EpisodeLog.create(tmp_path / "e.log", [
        Logged(Stream("joint_pos", "state", (1,), ("a",), ("rad",)), 100.0, latency_s=0.02),
        Logged(Stream("action", "state", (1,), ("a",), ("rad",)), 20.0),
    ], 0)  # fmt: skip
    for k in range(3, 100):
        log.add(0, k * 10 * MS, k, np.array([float(k)]))
    for k in range(20):
        sent = np.nan if k == 10 else float(k)  # a row that says nothing: the one before is still in force
        log.add(1, k * 50 * MS + 30 * MS, k, np.array([sent]))
    log.finish(0, "saved", True)
    spec = Spec(ObsSpace(SPEC.obs.streams[:1], 20.0), SPEC.action)
    closing.close([tmp_path / "e.log"], tmp_path / "s.zarr", spec)
    store = Store.open(tmp_path / "s.zarr")
    assert store.read("joint_pos")[:3, 0].tolist() == [
        3.0,
        8.0,
        13.0,
    ]  # rows stand at 50, 100 ms, ...; 40 ms is too new
    assert store.read("action")[:, 0].tolist() == [*range(1, 10), 9, *range(11, 20)]  # sent 30 ms after each row


@pytest.mark.parametrize("finish", [True, False])
def test_gaps_losses_and_a_recording_cut_off_are_told(tmp_path, finish):
    """A mutation: a camera that froze for half a second passed over."""
    done = closing.close(
        [recorded(tmp_path / "e.log", late=lambda t: 600 <= t < 1100, finish=finish)], tmp_path / "s.zarr"
    )
    said = "\n".join(done[0].told)
    assert "front says nothing for 5" in said and "more than 100 ms" in said
    assert "misses 17 samples of front, from number 20 on" in said and ("was cut off" in said) is not finish
    assert done[0].age_ms["front"][2] > 450
    assert Store.open(tmp_path / "s.zarr").successes.tolist() == [finish]
    assert json.loads(closing.report(done[0]))["rows"] == done[0].rows


def test_a_recording_is_in_the_store_once(tmp_path):
    """Closed again after a kill, or by somebody who forgot. A mutation: the log's id left out of the store."""
    logs = [recorded(tmp_path / f"{k}.log", 0.5) for k in range(2)]
    assert len(closing.close(logs[:1], tmp_path / "s.zarr")) == 1
    assert [c.episode for c in closing.close(logs, tmp_path / "s.zarr")] == [1]
    assert closing.close(logs, tmp_path / "s.zarr") == [] and len(Store.open(tmp_path / "s.zarr")) == 2


def test_a_recording_that_does_not_fit_is_refused_and_leaves_the_store(tmp_path):
    recorded(tmp_path / "e.log", 0.5)
    other = Spec(ObsSpace((Stream("wrist", "image", (24, 32, 3)),), 20.0), SPEC.action)
    with pytest.raises(UserError, match="unknown stream of .*e.log 'wrist': known are"):
        closing.close([tmp_path / "e.log"], tmp_path / "other.zarr", other)
    closing.close([tmp_path / "e.log"], tmp_path / "s.zarr")
    with pytest.raises(UserError, match="sees|wrist"):
        closing.close([tmp_path / "e.log"], tmp_path / "s.zarr", other)
    log = EpisodeLog.create(tmp_path / "empty.log", [ARM, FRONT], 0, spec=SPEC.to_json())
    log.finish(0, "saved", True)
    with pytest.raises(UserError, match="holds no sample of 'joint_pos'"):
        closing.close([tmp_path / "empty.log"], tmp_path / "s.zarr")
    assert len(Store.open(tmp_path / "s.zarr")) == 1
    (tmp_path / "text").write_text("text")
    for path, sentence in (
        (tmp_path / "text", "is no log of an episode"),
        (tmp_path / "none", "cannot be read .No such"),
    ):
        with pytest.raises(UserError, match=sentence):
            closing.close([path], tmp_path / "s.zarr")


def test_an_episode_needs_the_memory_of_a_piece(tmp_path):
    """A mutation: pieces as long as the episode."""
    size = (96, 128)
    spec = Spec(ObsSpace((Stream("front", "image", (*size, 3)),), 20.0), SPEC.action)
    path = recorded(
        tmp_path / "e.log", 5.0, camera=Logged(Stream("front", "image", (*size, 3)), 30.0, "jpeg"), size=size
    )
    with Store.create(tmp_path / "s.zarr", spec) as store:
        found = survey(path)
        tracemalloc.start()
        closing.close_one(found, store, piece_bytes=10 * 96 * 128 * 3)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert store.frames == 99 or store.frames == 100
        assert peak < 45 * 96 * 128 * 3


def small(folder, *more):
    """Words of a training on three recordings of joints and the label."""
    spec = Spec(ObsSpace(SPEC.obs.streams[::2], 20.0), SPEC.action)
    closing.close([recorded(folder / f"{k}.log", 1.0) for k in range(3)], folder / "s.zarr", spec)
    return [f"task.demos.path={folder}/s.zarr", f"output_dir={folder}/run", "policy.body.width=32", "policy.body.blocks=1", "train.batch_size=4", "train.device=cpu", *more]  # fmt: skip


def test_a_policy_learns_from_what_was_recorded(tmp_path):
    """From all of it but the label. A mutation: labels shown to policies."""
    from polyarm.config import compose
    from polyarm.job import prepare
    from polyarm.task import fitting

    words = small(tmp_path)
    assert fitting(words) == ["task=own", *words]
    config = compose(["task=own", *words])
    job = prepare(config)
    assert job.spec.obs.names == ("joint_pos",)
    learner = job.learner(config)
    losses = learner.update(next(iter(job.batches(config, learner))))
    assert np.isfinite(float(losses["loss"]))
    with pytest.raises(
        UserError, match="'intervention', a label that nobody knows while acting: give some of joint_pos"
    ):
        prepare(compose(["task=own", "task.streams=[joint_pos,intervention]", *words]))


@pytest.mark.slow
def test_polyarm_train_reads_what_was_recorded(tmp_path, capsys):
    from polyarm.cli import main

    words = small(tmp_path, "train.steps=2")
    assert main(["train", *words]) == 0, capsys.readouterr().err


def test_the_measure_of_recording_counts_what_was_lost():
    """A smoke run; its figures are never asserted. A mutation: rows in place of frames counted."""
    from polyarm.bench.recording import measure

    found = measure(0.3, 2, 48, 64, 30.0, 100.0, "jpeg", "")
    assert (found["frames"], found["rows"], found["lost"], found["told"]) == (18, 30, 0, [])
