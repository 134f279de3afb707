"""`polyarm deploy`: a trained policy on an arm, its twin or its model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from polyarm.commands import Command, Takes, Words
from polyarm.progress import waiting
from polyarm.spec import UserError


def run(words: Words) -> Any:
    if len(words.places) != 1:
        raise UserError(
            "polyarm deploy needs one training run, or a checkpoint, and a robot: polyarm deploy outputs/demo robot=so101_twin"
        )
    source = Path(words.places[0])
    if not source.exists():
        raise UserError(f"{source} does not exist: give the output_dir of a training run, or one of its checkpoints")
    with waiting("loading torch and the simulator", "torch", "mujoco"):
        from polyarm.eval.deploy import deploy
        from polyarm.real_robot.robot import of_robot, read

    mine = [word for word in words.settings if of_robot(word)]
    return deploy(source, [word for word in words.settings if word not in mine], read(mine), words.line())


COMMAND = Command(
    run,
    "Run a trained policy on an arm: a real one, its twin on a wire, or its model",
    "deploy DIR robot=NAME [robot.KEY=VALUE ...] [deploy.episodes=N] [eval.ahead=N] [key=value ...]",
    "DIR is the output_dir of a training run, or one of its checkpoints. robot=NAME is a file of configs/robot or of --configs.\n"
    "A policy that sees or does what the station does not is refused before anything is opened; then the arm is opened, and only\n"
    "when all of it answers is torque on. Ctrl-C: the arm brakes and holds, then robot.at_end.\n"
    "By the clock, chunks are planned as many rows ahead as planning takes here, unless eval.ahead or eval.latency_ms say it.\n"
    "Results: result.json with success_rate, mean_steps, slips, lateness_ms, and report.html, in deploy_NAME/ of the run.\n"
    'robot=so101_twin starts a twin; it lays the scene out by seeds and says where the cube is ("estimator": "twin").\n',
    order=85,
    groups=("robot",),
    takes=Takes(place="a run or checkpoint"),
)
