"""`polyarm data`: a look at demonstrations, and the yaml that trains on them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from polyarm.commands import Command, Takes, Words, say
from polyarm.progress import waiting
from polyarm.spec import UserError, unknown

FOLDER = "mine"
"""Where `data new` writes unless told otherwise; docs/new_policy.md has its yaml there too."""
MOST = {"info": 1, "new": 2}
"""How many paths each takes."""


def run(words: Words) -> Any:
    what, *paths = words.places or [""]
    if what not in MOST:
        raise unknown("data command", what, MOST)
    if not paths:
        raise UserError(
            f"polyarm data {what} needs a demonstration store (zarr) as its first word: polyarm data {what} PATH"
        )
    if len(paths) > MOST[what]:
        takes = "one path" if MOST[what] == 1 else "a store and a folder"
        raise UserError(f"polyarm data {what} takes {takes}, not also {paths[MOST[what]]!r}: leave it out")
    with waiting("loading zarr", "zarr"):
        from polyarm.datasets import skeleton
        from polyarm.datasets.info import info
        from polyarm.datasets.store import open_path

    if what == "info":
        return info(open_path(Path(paths[0])))
    folder = Path(paths[1] if len(paths) > 1 else FOLDER)
    file = skeleton.write(Path(paths[0]), folder)
    return {
        "task": file.stem,
        "file": str(file),
        "next": shlex.join(["polyarm", "train", "--configs", str(folder), "policy=flow", f"task={file.stem}"]),
    }


def show(found: Any) -> None:
    if "file" in found:
        say(f"task:    {found['file']}\nnext:    {found['next']}")
        return
    from polyarm.datasets.info import show as print_card

    print_card(found)


COMMAND = Command(
    run,
    "Look at demonstrations, or begin a task for them",
    "data info PATH [--json] | data new STORE [FOLDER]",
    "info: episodes, rows, channels with their ranges, and what is odd about them.\n"
    f"new: FOLDER/task/NAME.yaml (FOLDER: {FOLDER}) with a store's streams, channels and units, for `polyarm train --configs FOLDER\n"
    "     task=NAME`; what policies see, how it is scaled and how much is held out is changed there. Nothing is written over.",
    order=60,
    takes=Takes(place="info or new, and a path", settings=False),
    show=show,
)
