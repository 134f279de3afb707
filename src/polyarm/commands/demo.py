"""`polyarm demo`: demonstrations collected, a policy trained, an honest success rate, a report. Minutes, no GPU."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from polyarm.commands import Command, Takes, Words, say
from polyarm.progress import waiting
from polyarm.spec import UserError

IMAGES = "--images"
DEPLOY = {"--deploy": "lockstep", "--deploy=wall": "wall"}
"""Switch: the clock of the twin."""
TWIN = "so101_twin"


def run(words: Words) -> Any:
    images = IMAGES in words.switches
    if images and words.gives("experiment"):
        raise UserError(f"{IMAGES} is experiment=demo_images: give one of them, or only the experiment")
    clocks = [clock for switch, clock in DEPLOY.items() if switch in words.switches]
    if len(clocks) > 1:
        raise UserError(f"{' '.join(DEPLOY)}: in lock-step or by the clock; give one of them")
    return demo(words.settings, words.line(), "demo_images" if images else "demo", *clocks)


def demo(
    overrides: Sequence[str], again: str | None = None, experiment: str = "demo", deploy: str | None = None
) -> dict[str, Any]:
    """Runs the line from nothing to a report in output_dir (default outputs/demo); returns result.json's content. `deploy`: then
    the policy plays on the twin through the wire too, under this clock.

    A second run goes on with what the first has saved; another set of settings wants another output_dir.
    """
    with waiting("loading the simulator", "hydra", "mujoco"):
        from polyarm.collect import collect_task
        from polyarm.config import compose

    again = again or shlex.join(["polyarm", "demo", *overrides])
    given = [word.partition("=")[0] for word in overrides]
    settings = [word for word in overrides if word.partition("=")[0].partition(".")[0] != "robot"]
    config = compose([*settings] if "experiment" in given else [f"experiment={experiment}", *settings])
    out, seconds = Path(config.output_dir), dict[str, float]()

    with _stage("collect", f"the episodes in {config.collect.path} stay", again, seconds):
        collected = collect_task(config)
    say(
        f"collected {collected['episodes']} demonstrations ({collected['frames']} frames) in {seconds['collect']:.0f} s"
    )

    with _stage("train", f"the demonstrations and what was saved in {out} stay", again, seconds):
        with waiting("loading torch", "torch"):
            from polyarm.train import fit
        trained = fit(config)

    with _stage("evaluate", f"the trained policy in {out} stays", again, seconds):
        from polyarm.eval.run import evaluate

        mine = [word for word in overrides if word.startswith("eval.")]
        result = evaluate([trained], mine, seconds=seconds, prefer=out, command=again)
    if deploy is None:
        return result
    with _stage("deploy", f"the result in {out} stays", again, seconds):
        return result | {"deployment": _deploy(trained, overrides, out, deploy)}


def _deploy(trained: Path, overrides: Sequence[str], out: Path, clock: str) -> dict[str, Any]:
    """What the policy did through the wire, beside what it did in simulation on the same seeds; kept in the demo's result.json."""
    from polyarm.eval.deploy import beside, deploy
    from polyarm.real_robot.robot import of_robot, read

    words = [word for word in overrides if of_robot(word)]
    robot = read(
        [*([] if any(w.startswith("robot=") for w in words) else [f"robot={TWIN}"]), f"robot.clock={clock}", *words]
    )
    mine = [word for word in overrides if word.startswith(("eval.", "deploy."))]
    line = shlex.join(["polyarm", "deploy", str(trained), f"robot={robot.name}", f"robot.clock={clock}", *words, *mine])
    return beside(out, deploy(trained, mine, robot, line))


@contextmanager
def _stage(name: str, what_stays: str, again: str, seconds: dict[str, float]) -> Iterator[None]:
    """Takes the stage's time; says where it stopped, what stays and how to go on."""
    began = time.perf_counter()
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted at {name}; {what_stays}, `{again}` goes on") from None
    except UserError as e:
        raise UserError(f"{e} (at {name}; {what_stays}, `{again}` goes on)") from e
    seconds[name] = round(time.perf_counter() - began, 2)


COMMAND = Command(
    run,
    "Collect, train, evaluate and report on the demo task, in minutes on a CPU",
    "demo [--images] [--deploy | --deploy=wall] [key=value ...]",
    "Settings are those of `polyarm train`; output_dir defaults to outputs/demo. A second run goes on where the first stopped.\n"
    "--images: from two cameras in place of the poses of cube and target, into outputs/demo_images, in ten minutes\n"
    "--deploy: then plays deploy.episodes=20 of the same seeds on a twin of the SO-101, through driver, bus and motors, in lock-step:\n"
    "deploy_so101_twin/ and `deployment` in result.json; --deploy=wall: by the clock, as on an arm\n",
    order=10,
    groups=("policy", "task", "body", "sampler"),
    takes=Takes(switches=(IMAGES, *DEPLOY)),
)
