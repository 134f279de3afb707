"""`polyarm record`: demonstrations at an arm."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from polyarm.commands import Command, Words, say, stopping
from polyarm.progress import waiting


def run(words: Words) -> Any:
    with waiting("loading the driver", "hydra", "mujoco"):
        from polyarm.config import compose
        from polyarm.real_robot import hands
        from polyarm.real_robot.robot import read
        from polyarm.record import Recording, Session, mind

    robot, rest = read(words.settings), hands.rest(words.settings)
    told = [word.partition("=")[2] for word in rest if word.startswith("task=")]
    mine = [word for word in rest if word.lstrip("+~").startswith("record.")]
    rest = [word for word in rest if word not in mine and not word.startswith("task=")]
    given = compose(mine).record
    path = Path(given.path or f"data/{robot.name}.zarr")
    size = None if given.image_size is None else (given.image_size[0], given.image_size[1])
    how = Recording(path, given.episodes, " ".join(told), given.episode_s, given.seed, size, given.recover)
    if given.policy is None:
        hands.require_none(rest)
    acts = mind(given.policy, rest, robot.clock == "wall") if given.policy else None
    with (
        stopping(f"the episodes in {path} stay; `{words.line()}` goes on from there"),
        hands.standing_at(robot, words.settings, idle=acts is not None) as (stand, teleop),
    ):
        session = Session(stand, how, teleop, acts, hands.attended(teleop), say, hands.Live())
        done = hands.whole(session.run)
    say(
        f"recorded: {done['recorded']} episodes, {done['episodes']} in {path}\n"
        f"train:    {shlex.join(['polyarm', 'train', 'policy=flow', f'task.demos.path={path}'])}"
    )
    return done


COMMAND = Command(
    run,
    "Record demonstrations at an arm, by hand or by a policy that a person may take it from",
    'record robot=NAME [teleop=leader|keyboard|scripted] [record.path=STORE record.episodes=N] [task="..."]',
    "right: begin, then the episode is good; left: do it again; escape: stop; space: take the arm with a leader, and give it back\n"
    "record.path      the store; one that exists is continued. Each episode's log lies in STORE.logs\n"
    "record.episodes  in all\n"
    "record.policy    a run whose policy acts; a person may take the arm, and what he does is labelled `intervention`\n"
    "record.episode_s record.image_size record.seed record.recover   see configs/polyarm.yaml\n"
    'task="..."       what is done, in words, kept with the demonstrations\n'
    "polyarm train task.demos.path=STORE learns from it.\n",
    order=85,
    groups=("robot", "teleop"),
)
