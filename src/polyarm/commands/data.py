"""`polyarm data`: a look at demonstrations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from polyarm.commands import Command, Takes, Words
from polyarm.progress import waiting
from polyarm.spec import UserError, unknown


def run(words: Words) -> Any:
    what, *paths = words.places or [""]
    if what != "info":
        raise unknown("data command", what, ["info"])
    if not paths:
        raise UserError(
            "polyarm data info needs a demonstration store (zarr) as its first word: polyarm data info PATH"
        )
    if len(paths) > 1:
        raise UserError(f"polyarm data info takes one path, not also {paths[1]!r}: leave it out")
    with waiting("loading zarr", "zarr"):
        from polyarm.datasets.info import info
        from polyarm.datasets.store import open_path

    return info(open_path(Path(paths[0])))


def show(card: Any) -> None:
    from polyarm.datasets.info import show as print_card

    print_card(card)


COMMAND = Command(
    run,
    "Look at demonstrations",
    "data info PATH [--json]",
    "info: episodes, rows, channels with their ranges, and what is odd about them.",
    order=60,
    takes=Takes(place="info and a path", settings=False),
    show=show,
)
