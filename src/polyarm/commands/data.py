"""`polyarm data`: a look at demonstrations, at their calibrations, and the yaml that trains on them."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

from polyarm.commands import Command, Takes, Words, say
from polyarm.progress import waiting
from polyarm.spec import UserError, unknown

FOLDER = "mine"
"""Where `data new` writes unless told otherwise; docs/new_policy.md has its yaml there too."""
MOST = {"info": 1, "check": 1, "show": 2, "new": 2}
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
        takes = {"info": "one path", "check": "one path", "show": "a store and a file", "new": "a store and a folder"}[
            what
        ]
        raise UserError(f"polyarm data {what} takes {takes}, not also {paths[MOST[what]]!r}: leave it out")
    with waiting("loading zarr", "zarr"):
        from polyarm.datasets import skeleton
        from polyarm.datasets.info import info
        from polyarm.datasets.store import open_path

    if what == "info":
        return info(open_path(Path(paths[0])))
    if what == "show":
        return look(Path(paths[0]), Path(paths[1]) if len(paths) > 1 else None)
    if what == "check":
        return _check(Path(paths[0]))
    folder = Path(paths[1] if len(paths) > 1 else FOLDER)
    file = skeleton.write(Path(paths[0]), folder)
    return {
        "task": file.stem,
        "file": str(file),
        "next": shlex.join(["polyarm", "train", "--configs", str(folder), "policy=flow", f"task={file.stem}"]),
    }


def look(store: Path, page: Path | None) -> dict[str, str]:
    """Write the view in three dimensions of a store's first episode."""
    from polyarm.datasets.store import open_path
    from polyarm.eval.scene import scene
    from polyarm.eval.turning import write_look

    page = page or Path(f"{store.absolute().stem}.html")
    if page.suffix != ".html":
        raise UserError(f"the page to write is {page}: give a name that ends in .html")
    write_look(page, store.name, scene(open_path(store)))
    return {"page": str(page)}


def _check(path: Path) -> dict[str, Any]:
    from polyarm.datasets import calibration

    found = calibration.check(path)
    if found["wrong"]:
        print(calibration.said(found), file=sys.stderr)
        raise UserError(f"{path}: {found['wrong'][0]}, and look with `polyarm data show {path}`")
    return found


def show(found: Any) -> None:
    if "wrong" in found:
        from polyarm.datasets.calibration import said

        say(said(found))
        return
    if "page" in found:
        say(f"page:    {found['page']}")
        return
    if "file" in found:
        say(f"task:    {found['file']}\nnext:    {found['next']}")
        return
    from polyarm.datasets.info import show as print_card

    print_card(found)


COMMAND = Command(
    run,
    "Look at demonstrations, or begin a task for them",
    "data info PATH [--json] | data check STORE [--json] | data show STORE [FILE.html] | data new STORE [FOLDER]",
    "info: episodes, rows, channels with their ranges, and what is odd about them.\n"
    "check: whether the calibrations of depth cameras fit what was seen; an extrinsic that is clearly off is an error.\n"
    "show: a page that turns the points of depth cameras, where they stand, and the gripper's path (FILE: the store's name).\n"
    f"new: FOLDER/task/NAME.yaml (FOLDER: {FOLDER}) with a store's streams, channels and units, for `polyarm train --configs FOLDER\n"
    "     task=NAME`; what policies see, how it is scaled and how much is held out is changed there. Nothing is written over.",
    order=60,
    takes=Takes(place="info, check, show or new, and a path", settings=False),
    show=show,
)
