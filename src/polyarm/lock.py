"""One process at a time works in a folder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from polyarm.spec import UserError

NAME = ".lock"
"""The file in the folder that is locked; it holds the process that has it. It stays, empty of meaning, when nobody does."""


@contextmanager
def lock(folder: Path | str, what: str, wait: bool = False) -> Iterator[None]:
    """Hold `folder`, made if it is not there, for as long as the `with` block runs. `what` is done in it, for the message
    to whoever comes second: a `UserError`, or with `wait` its turn.

    The kernel drops the lock with the process, so a dead one leaves nothing behind. File systems without locks hold nothing.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fd = os.open(folder / NAME, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(f"{what} cannot write to {folder} ({error.strerror}): give another output_dir") from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            holder = os.read(fd, 100).decode(errors="replace").strip() or "another process"
            raise UserError(
                f"{folder} is in use by {holder}: wait until it ends, or give {what} another output_dir"
            ) from None
        except OSError:  # no locks here
            yield
            return
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{what} (process {os.getpid()})\n".encode(), 0)
        yield
    finally:
        os.close(fd)
