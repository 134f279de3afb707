"""Pages that one process writes and others read: whole values only, one writer, and a dead one is seen.

Mutations that turn these red: one slot in place of two; a value that is believed without its checksum; a lock that is not taken.
"""

import os
import signal
import subprocess
import sys
import time

import pytest

from polyarm.real_robot import pages
from polyarm.spec import UserError


@pytest.fixture
def name():
    name = f"test-{os.getpid()}-{time.monotonic_ns()}"
    yield name
    pages.remove(name)


def test_the_newest_value_is_read_with_its_number_and_stamp(name):
    writer = pages.Writer(name, 64)
    reader = pages.Reader(name)
    assert reader.read() is None
    for k in range(1, 6):
        assert writer.write(bytes([k]) * k, k * 10) == k
        assert reader.read() == (k, k * 10, bytes([k]) * k)
    assert writer.again(99) == 6 and reader.read() == (6, 99, b"\5" * 5)


def test_what_does_not_fit_is_refused_and_the_last_value_stays(name):
    writer = pages.Writer(name, 8)
    writer.write(b"before")
    with pytest.raises(UserError, match="do not fit"):
        writer.write(b"x" * 9)
    assert pages.Reader(name).read().payload == b"before"


def test_a_second_writer_is_refused_and_the_next_goes_on_counting(name):
    writer = pages.Writer(name, 64)
    writer.write(b"a")
    with pytest.raises(UserError, match="another process writes"):
        pages.Writer(name, 64)
    reader = pages.Reader(name)
    assert reader.alive
    writer.close()
    assert not reader.alive
    assert pages.Writer(name, 64).write(b"b") == 2 and reader.read().payload == b"b"


def test_a_page_that_is_not_there_or_not_ours_is_not_found(name):
    with pytest.raises(FileNotFoundError):
        pages.Reader(name)
    pages.path_of(name).write_bytes(b"something else that is long enough to hold a head")
    with pytest.raises(FileNotFoundError):
        pages.Reader(name)


@pytest.mark.parametrize("at", (pages.HEAD.size, pages.HEAD.size + 8, pages.HEAD.size + pages.SLOT.size))
def test_a_damaged_value_is_never_served(name, at):
    """A flipped bit of its number, its stamp or its payload. Slot 0 has the even numbers."""
    writer = pages.Writer(name, 64)
    writer.write(b"one")
    writer.write(b"two")
    reader = pages.Reader(name)
    reader._map[at] ^= 1
    with pytest.raises(pages.Torn):
        reader.read()


def test_a_writer_that_dies_in_the_middle_leaves_the_value_before(name):
    """The slot that it was at is not the newest yet. Red with one slot."""
    writer = pages.Writer(name, 64)
    writer.write(b"whole")
    at = writer._slot(2)
    pages.SLOT.pack_into(writer._map, at, 0, 0, 0, 0)
    writer._map[at + pages.SLOT.size : at + pages.SLOT.size + 4] = b"half"
    writer.close()
    assert pages.Reader(name).read().payload == b"whole"


WRITE = """
import sys
from polyarm.real_robot import pages
writer, k = pages.Writer(sys.argv[1], 4096), 0
while True:
    k += 1
    if k == 2:
        print("writes", flush=True)
    writer.write(bytes([k % 256]) * (k * 37 % 4096))
"""


def test_a_reader_beside_a_writer_at_full_speed_sees_whole_values_only_and_its_end(name):
    """A value at every read once there was one, and `kill -9` in the middle of a write leaves one. Mutation: the head written with
    struct, which puts zeros there first."""
    child = subprocess.Popen([sys.executable, "-c", WRITE, name], stdout=subprocess.PIPE)
    child.stdout.readline()
    reader, seen, n = pages.Reader(name), 0, 0
    end = time.monotonic() + 0.5
    while time.monotonic() < end or n < 50:
        value = reader.read()
        assert value is not None and value.number >= seen
        assert value.payload == bytes([value.number % 256]) * (value.number * 37 % 4096)
        n, seen = n + 1, value.number
    assert reader.alive
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert not reader.alive and reader.read().number >= seen
