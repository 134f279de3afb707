"""The store's way to the disk: what is written is settled, one process writes."""

from __future__ import annotations

import fcntl
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from polyarm.spec import UserError


class Disk:
    """Files below `root` that are put in place whole, and remembered so that `settle` can fsync them together."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._touched: set[Path] = set()

    def put(self, file: Path, value: bytes, settled: bool = False) -> None:
        """Written beside and renamed; with `settled` it is on the disk before it takes the place of another."""
        file.parent.mkdir(parents=True, exist_ok=True)
        beside = file.with_name(f"{file.name}.partial")
        beside.write_bytes(value)
        if settled:
            fsync(beside)
        beside.replace(file)
        self._touched.add(file)

    def settle(self) -> None:
        """Whatever was put is on the disk when this returns, with the folders that name it."""
        folders = {folder for file in self._touched for folder in file.parents if folder.is_relative_to(self.root)}
        list(_pool().map(fsync, (*self._touched, *folders)))
        self._touched.clear()


@cache
def _pool() -> ThreadPoolExecutor:
    """For calls to fsync: those that wait together share one commit of the file system's journal (1.5 ms, not 60)."""
    return ThreadPoolExecutor(16)


def fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def lock_folder(path: Path) -> int:
    """The one writer's lock: the kernel drops it with the process, so a dead one leaves nothing behind."""
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise UserError(f"{path} is being written by another process: wait until it ends, or write elsewhere") from None
    return fd
