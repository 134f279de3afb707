"""The `polyarm` command. Nothing heavy is imported before a command is known, so that help is instant."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyarm import __version__
from polyarm.spec import UserError, unknown


@dataclass(frozen=True)
class Command:
    run: Callable[[list[str]], Any]
    summary: str
    usage: str
    details: str = ""
    groups: tuple[str, ...] = ()
    """Config groups whose files are listed as choices."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0 done, 2 bad input, 130 interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in words
    words = [w for w in words if w != "--json"]
    try:
        if not words or words[0] in ("-h", "--help", "help"):
            print(_help())
            return 0
        if words[0] in ("-V", "--version", "version"):
            print(f"polyarm {__version__}")
            return 0
        name, rest = words[0], words[1:]
        if name not in COMMANDS:
            raise unknown("command", name, COMMANDS)
        command = COMMANDS[name]
        if any(w in ("-h", "--help") for w in rest):
            details = "\n".join(filter(None, [command.details, *map(_choices, command.groups)]))
            print(f"usage: polyarm {command.usage}\n\n{command.summary}.\n\n{details}".rstrip())
            return 0
        found = command.run(rest)
        if as_json and found is not None:
            print(json.dumps(found, indent=1, default=str))
        return 0
    except UserError as e:
        print(f"polyarm: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("polyarm: interrupted; what was saved stays, the same command goes on from there", file=sys.stderr)
        return 130


def _help() -> str:
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items())
    return (
        "usage: polyarm COMMAND [key=value ...] [--json]\n\n"
        "Robot-manipulation policies: trained from demonstrations, judged in simulation.\n\n"
        f"{rows}\n\n"
        "`polyarm COMMAND --help` says what it takes. Settings are hydra overrides, such as policy=diffusion train.steps=2000.\n"
        "Exit codes: 0 done, 2 bad input, 130 interrupted."
    )


def _choices(group: str) -> str:
    names = sorted(file.stem for file in (Path(__file__).parent / "configs" / group).glob("*.yaml"))
    return f"{group:<11} {', '.join(names)}"


def _train(words: list[str]) -> Any:
    if "--multirun" in words or "-m" in words:
        return _sweep([w for w in words if w not in ("--multirun", "-m")])
    from polyarm.config import compose
    from polyarm.train import fit

    run = fit(compose(_settings(words, "train")))
    print(f"trained: {run}\nnext:    polyarm eval {run}", file=sys.stderr)
    return {"output_dir": str(run)}


def _sweep(words: list[str]) -> Any:
    """Hydra's own multirun, its launchers included; every job writes to a folder of its own under hydra.sweep.dir."""
    import hydra

    from polyarm.config import ROOT, compose
    from polyarm.train import fit

    words = _settings(words, "train --multirun")
    for word in words:  # what is wrong in one job is said before the first starts
        compose([w.split(",")[0] if "=" in w and not w.startswith("hydra.") else w for w in [word]])
    if not any(w.startswith("output_dir=") for w in words):
        words = [*words, "output_dir=${hydra:runtime.output_dir}"]
    sys.argv = ["polyarm", "--multirun", *words]

    @hydra.main(config_path="pkg://polyarm.configs", config_name=ROOT, version_base="1.3")
    def job(config: Any) -> str:
        from omegaconf import OmegaConf

        OmegaConf.resolve(config)
        return str(fit(config))

    job()
    return None


def _eval(words: list[str]) -> Any:
    from polyarm.eval.run import evaluate

    sources, weights, settings = _parts(words)
    return evaluate(sources, settings, weights)


def _parts(words: list[str]) -> tuple[list[Path], list[float], list[str]]:
    """RUN ... [--weights W ...] [key=value ...]"""
    sources, weights, settings, weighing = [], [], [], False
    for word in words:
        if word == "--weights":
            weighing = True
        elif "=" in word:
            settings.append(word)
        elif weighing:
            try:
                weights.append(float(word))
            except ValueError:
                raise UserError(f"weight {word!r} is no number: give one a policy, such as --weights 0.4 0.6") from None
        elif word.startswith("--"):
            raise UserError(f"polyarm eval knows --weights and --json, not {word!r}: see `polyarm eval --help`")
        else:
            sources.append(Path(word))
    if not sources:
        raise UserError(
            "polyarm eval needs the output_dir of a training run, or a checkpoint, as its first word: polyarm eval PATH"
        )
    weights = weights or [1 / len(sources)] * len(sources)
    if len(weights) != len(sources):
        raise UserError(f"{len(weights)} weights for {len(sources)} policies: give one a policy")
    return sources, weights, settings


def _bench(words: list[str]) -> Any:
    from polyarm.bench import bench
    from polyarm.config import options

    if not words or "=" in words[0]:
        raise UserError(
            f"polyarm bench needs the name of a bench as its first word, one of {', '.join(options('bench'))}"
        )
    return bench(words[0], words[1:])


def _collect(words: list[str]) -> Any:
    from polyarm.collect import collect_task
    from polyarm.config import compose

    return collect_task(compose(_settings(words, "collect")))


def _demo(words: list[str]) -> Any:
    from polyarm.demo import demo

    return demo(_settings(words, "demo"))


def _data(words: list[str]) -> Any:
    if not words or words[0] != "info":
        raise unknown("data command", words[0] if words else "", ["info"])
    from polyarm.datasets.info import info, show
    from polyarm.datasets.store import open_path

    path, rest = _place(words[1:], "data info", "a demonstration store (zarr)")
    if rest:
        raise UserError(f"polyarm data info takes one path, not also {rest[0]!r}: leave it out")
    card = info(open_path(path))
    if "--json" not in sys.argv:
        show(card)
    return card


def _doctor(words: list[str]) -> Any:
    from polyarm.doctor import doctor

    if words:
        raise UserError(f"polyarm doctor takes no settings, not {words[0]!r}: leave it out")
    return doctor()


def _settings(words: list[str], command: str) -> list[str]:
    if "--configs" in words:
        at = words.index("--configs")
        folder = Path(words[at + 1]) if at + 1 < len(words) else Path()
        if at + 1 == len(words) or not folder.is_dir():
            raise UserError(
                f"--configs {folder} is no folder: give one that holds policy/NAME.yaml, task/NAME.yaml or the like"
            )
        words = [*words[:at], *words[at + 2 :], f"hydra.searchpath=[file://{folder.absolute()}]"]
    for word in words:
        if "=" not in word or word.startswith("--"):
            raise UserError(
                f"polyarm {command} takes settings as key=value, not {word!r}: see `polyarm {command.split()[0]} --help`"
            )
    return words


def _place(words: list[str], command: str, what: str) -> tuple[Path, list[str]]:
    if not words or "=" in words[0]:
        raise UserError(f"polyarm {command} needs {what} as its first word: polyarm {command} PATH")
    return Path(words[0]), _settings(words[1:], command)


COMMANDS = {
    "demo": Command(
        _demo, "Collect, train, evaluate and report on the demo task, in minutes on a CPU", "demo [key=value ...]",
        "Settings are those of `polyarm train`; output_dir defaults to outputs/demo.",
    ),
    "collect": Command(
        _collect, "Play a task's scripted expert into a demonstration store", "collect [task=NAME] [collect.episodes=N ...]",
        "collect.path      the store; one that exists is continued\n"
        "collect.episodes  successful episodes in all\ncollect.seed      of the first episode\ncollect.workers   processes\n"
        "task.env_kwargs.cameras=[front,wrist]   records images too\n",
        ("task",),
    ),
    "train": Command(
        _train, "Train a policy from demonstrations; the same command resumes",
        "train [experiment=NAME] [policy=NAME] [task=NAME] [train.steps=N] [output_dir=DIR] [key=value ...] [--multirun]",
        "--configs DIR adds a folder of your own yaml (docs/new_policy.md).\n"
        "All settings with their meaning: configs/polyarm.yaml. With --multirun, comma-separated values are swept by hydra.\n"
        "An experiment is a whole set of settings; the others are choices in it:\n",
        ("experiment", "policy", "task", "body", "encoder", "sampler"),
    ),
    "eval": Command(
        _eval, "Judge a trained policy on fresh seeds, with an interval, clips and a report",
        "eval DIR [DIR ... --weights W W ...] [eval.episodes=N] [eval.seed=S] [output_dir=DIR] [key=value ...]",
        "DIR is the output_dir of a training run, or one of its checkpoints. Results: result.json, report.html, clips/.\n"
        "Several are mixed while they denoise, with weights that sum to one (default: equal).\n"
        "policy.sampler.angles.steps=N changes the denoising steps, eval.n_action_steps=N the rows executed of each chunk,\n"
        "eval.pick=K executes the best of K chunks by a policy's energy, eval.goals=false hides the goal.",
    ),
    "bench": Command(
        _bench, "Train and judge many policies on equal terms; a table and a figure",
        "bench NAME [core_seconds=S] [episodes=N] [tasks=[...]] [only=[...]] [output_dir=DIR]",
        "NAME is a file of configs/bench, which says what is trained, on what, and what is varied. The same command goes on\n"
        "where it stopped, and adds what is new. Results: results.json, table.md, figure.png.\n",
        ("bench",),
    ),
    "data": Command(_data, "Look at demonstrations", "data info PATH [--json]"),
    "doctor": Command(_doctor, "Say what this machine has and what is missing", "doctor [--json]"),
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
