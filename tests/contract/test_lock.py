"""One process at a time works in a folder.

Mutations that turn this red: no flock; LOCK_SH for LOCK_EX; a lock that is kept after the block, or after its process died;
`wait` refusing.
"""

import subprocess
import sys
import time

import pytest

from polyarm.lock import lock
from polyarm.spec import UserError

HOLD = """
import sys, time
from polyarm.lock import lock
with lock(sys.argv[1], "this training"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds tmp_path until its input closes."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_the_second_process_is_told_who_has_the_folder(tmp_path, holder):
    with (
        pytest.raises(UserError, match=rf"in use by this training \(process {holder.pid}\): .* another output_dir"),
        lock(tmp_path, "this training"),
    ):
        pass
    with lock(tmp_path / "other", "this training"):
        pass


def test_a_killed_process_leaves_no_lock(tmp_path, holder):
    holder.kill()
    holder.wait()
    with lock(tmp_path, "this training"):
        pass
    with lock(tmp_path, "this training"):  # and neither does a block that ended
        pass


def test_one_that_waits_gets_its_turn(tmp_path, holder):
    late = subprocess.Popen(
        [sys.executable, "-c", HOLD.replace('training"', 'training", wait=True'), str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    time.sleep(0.3)
    assert late.poll() is None
    holder.communicate("")
    assert late.stdout.readline() == "held\n"
    late.communicate("")


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to .*file.* another output_dir"), lock(tmp_path / "file", "it"):
        pass
