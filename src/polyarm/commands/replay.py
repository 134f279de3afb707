"""`polyarm replay`: what was recorded, sent to an arm again."""

from __future__ import annotations

from typing import Any

from polyarm.commands import Command, Words
from polyarm.progress import waiting
from polyarm.spec import UserError
from polyarm.words import Takes


def run(words: Words) -> Any:
    if len(words.places) != 1:
        raise UserError(
            "polyarm replay needs one store of demonstrations as its first word: polyarm replay data/so101.zarr robot=so101"
        )
    with waiting("loading the driver", "hydra", "mujoco"):
        from polyarm.config import compose
        from polyarm.real_robot import hands
        from polyarm.real_robot.replay import replay
        from polyarm.real_robot.robot import read
        from polyarm.real_robot.stand import brought_up

    robot, rest = read(words.settings), hands.rest(words.settings)
    mine = [word for word in rest if word.lstrip("+~").startswith("replay.")]
    hands.require_none([word for word in rest if word not in mine])
    with brought_up(robot) as stand:
        return hands.whole(lambda: replay(stand, words.places[0], int(compose(mine).replay.episode)))


def show(found: dict[str, Any]) -> None:
    print(
        f"{found['rows']} rows, {found['seconds']:.1f} s; {found['slips']} slots began late, in {found['holds']} the arm was held"
    )
    if found["bit_equal"]:
        print("the arm was where it had been, to the bit")
        return
    width = max(map(len, found["worst"]))
    for joint, worst in found["worst"].items():
        print(f"{joint:<{width}}  at most {worst:.4f} from where it had been, rms {found['rms'][joint]:.4f}")


COMMAND = Command(
    run,
    "Send a recorded episode to an arm again, and say how far it was from where it had been",
    "replay STORE robot=NAME [replay.episode=0]",
    "The actions go through the station's loop and limits, row by row as they were recorded. A twin's scene is laid out as it was;\n"
    "any other arm first goes, slowly, to where the episode began.\n",
    order=86,
    groups=("robot",),
    takes=Takes(place="a store of demonstrations"),
    show=show,
)
