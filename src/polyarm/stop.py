"""Ctrl-C and SIGTERM between two training steps, never inside one, so that what is left can be saved."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """`with Stop() as stop:` raises KeyboardInterrupt at a first signal: at once, or at the end of a `with stop.held():` block.
    A second signal is as it always was. `waits`: only set `asked`, for loops that agree with other processes on when to end.
    """

    def __init__(self, waits: bool = False):
        self.waits, self.asked, self._held = waits, False, False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._take) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    @contextmanager
    def held(self) -> Iterator[None]:
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self.asked and not self.waits:
            raise KeyboardInterrupt

    def _take(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self._restore()  # a second signal does what it always does
        print("stopping after this step; again to stop at once", file=sys.stderr)
        if not self._held and not self.waits:
            raise KeyboardInterrupt

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
