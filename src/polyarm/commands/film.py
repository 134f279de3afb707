"""`polyarm film`: episodes of an evaluation as one moving picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from polyarm.commands import Command, Takes, Words, say
from polyarm.progress import waiting
from polyarm.spec import UserError


def run(words: Words) -> Any:
    if len(words.places) != 2:
        raise UserError("polyarm film needs an evaluated run and the file to write: polyarm film outputs/demo demo.gif")
    with waiting("loading torch and the simulator", "torch", "mujoco"):
        from polyarm.eval.reel import reel

    found = reel(Path(words.places[0]), Path(words.places[1]), words.settings)
    say(f"{found['file']}: {len(found['seeds'])} episodes, {found['bytes'] / 1000:,.0f} kB")
    return found


COMMAND = Command(
    run,
    "Play episodes of an evaluation again, side by side in a GIF or mp4",
    "film DIR FILE.gif [eval.videos=N] [key=value ...]",
    "DIR is the folder of an evaluation, or a run with one in eval/. The recorded actions are played again: no policy is needed.\n"
    "eval.videos=N: so many episodes, failures first. Settings of the world may be given anew, such as\n"
    "'+task.env_kwargs.render_size=[480,640]'; an mp4 has every frame, a GIF ten a second.\n",
    order=45,
    takes=Takes(place="an evaluation and a file"),
)
