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


def run(words: Words) -> Any:
    if words.switches and words.gives("experiment"):
        raise UserError(f"{IMAGES} is experiment=demo_images: give one of them, or only the experiment")
    return demo(words.settings, words.line(), "demo_images" if words.switches else "demo")


def demo(overrides: Sequence[str], again: str | None = None, experiment: str = "demo") -> dict[str, Any]:
    """Runs the line from nothing to a report in output_dir (default outputs/demo); returns result.json's content.

    A second run goes on with what the first has saved; another set of settings wants another output_dir.
    """
    with waiting("loading the simulator", "hydra", "mujoco"):
        from polyarm.collect import collect_task
        from polyarm.config import compose

    again = again or shlex.join(["polyarm", "demo", *overrides])
    given = [word.partition("=")[0] for word in overrides]
    config = compose([*overrides] if "experiment" in given else [f"experiment={experiment}", *overrides])
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
        return evaluate([trained], mine, seconds=seconds, prefer=out, command=again)


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
    "demo [--images] [key=value ...]",
    "Settings are those of `polyarm train`; output_dir defaults to outputs/demo. A second run goes on where the first stopped.\n"
    "--images: from two cameras in place of the poses of cube and target, into outputs/demo_images, in ten minutes\n",
    order=10,
    groups=("policy", "task", "body", "sampler"),
    takes=Takes(switches=(IMAGES,)),
)
