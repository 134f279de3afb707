"""The commands, one file each: `polyarm NAME` is NAME.py, which says what it takes in `COMMAND` and is found by being here.

A command file imports nothing heavy at its top, so that help is instant.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from polyarm.spec import UserError
from polyarm.words import Takes, Words


@dataclass(frozen=True)
class Command:
    run: Callable[[Words], Any]
    """Returns what `--json` prints."""
    summary: str
    usage: str
    details: str = ""
    order: int = 100
    """Of its line in `polyarm --help`: from nothing to a result."""
    groups: tuple[str, ...] = ()
    """Config groups whose files are listed as choices."""
    takes: Takes = field(default_factory=Takes)
    show: Callable[[Any], None] | None = None
    """Prints the result for people, where `run` has not."""
    code: Callable[[Any], int] | None = None
    """The exit code that a result asks for; 0 where there is none."""


def commands() -> dict[str, Command]:
    """Every command by name, in the order of help."""
    found = {m.name: import_module(f"{__name__}.{m.name}").COMMAND for m in iter_modules(__path__)}
    return dict(sorted(found.items(), key=lambda item: (item[1].order, item[0])))


@contextmanager
def stopping(what_stays: str) -> Iterator[None]:
    """Ctrl-C in this block says what stays and how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; {what_stays}") from None


def say(text: str) -> None:
    """To people: on stderr, so that `--json` has stdout for itself."""
    print(text, file=sys.stderr, flush=True)


__all__ = ["Command", "Takes", "UserError", "Words", "commands", "say", "stopping"]
