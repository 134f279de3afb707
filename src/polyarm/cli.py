"""The `polyarm` command: finds the command, prints help, and turns every expected error into one sentence and an exit code."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Sequence

from polyarm import __version__
from polyarm.choices import adding, options
from polyarm.commands import Command, commands
from polyarm.spec import UserError, unknown
from polyarm.words import parse

COMMANDS = commands()
REMEDIES = {
    errno.ENOSPC: "free some space or give a folder on another disk",
    errno.EDQUOT: "free some space or give a folder on another disk",
    errno.EROFS: "give a folder that can be written to",
    errno.EACCES: "give a file or folder that you may read and write",
    errno.EPERM: "give a file or folder that you may read and write",
    errno.ENAMETOOLONG: "give a shorter path",
    errno.ENOTDIR: "a file is in the way; give another path",
    errno.EISDIR: "a folder is in the way; give another path",
    errno.EEXIST: "a file is in the way; give another path",
    errno.ENOENT: "give a path that exists",
    errno.EIO: "the disk has a fault; give another",
}
"""What to do about what a disk says."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0 done, 2 bad input, 130 interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _run([w for w in words if w != "--json"], "--json" in words)
    except KeyboardInterrupt as e:
        print(f"polyarm: {e.args[0] if e.args else 'interrupted; what was saved stays'}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `polyarm ... | head`: the reader has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except Exception as e:
        said = sentence(e)
        if said is None or os.environ.get("POLYARM_TRACEBACK"):
            raise
        print(f"polyarm: {' '.join(said.splitlines())}", file=sys.stderr)
        return 2


def _run(words: list[str], as_json: bool) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if words[0] in ("-V", "--version", "version"):
        print(f"polyarm {__version__}")
        return 0
    name, rest = words[0], words[1:]
    if name not in COMMANDS:
        raise unknown("command", name, COMMANDS)
    command, asked = COMMANDS[name], [w for w in rest if w in ("-h", "--help")]
    given = parse(name, [w for w in rest if w not in asked], command.takes)
    if asked:
        with adding(given.configs):
            print(_command_help(command))
        return 0
    with given.in_force():
        found = command.run(given)
    if as_json and found is not None:
        print(json.dumps(found, indent=1, default=str))
    elif command.show is not None:
        command.show(found)
    return command.code(found) if command.code is not None else 0


def sentence(error: Exception) -> str | None:
    """What to tell a user about an error that bad input, a disk or a configuration causes; None for a fault of polyarm's."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.errno in REMEDIES:
        what = f"{error.filename}: " if error.filename is not None else ""
        return f"{what}{error.strerror}: {REMEDIES[error.errno]}; what was saved stays"
    if type(error).__module__.partition(".")[0] in ("hydra", "omegaconf"):
        from polyarm.config import explain

        return str(explain(error))
    return None


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


def _command_help(command: Command) -> str:
    shared = (
        "--configs DIR adds a folder of your own yaml and modules, and trusts those it names (docs/new_policy.md, new_task.md).\n"
        "--trust MODULE lets a checkpoint name that module's classes. Both may be given again.\n"
    )
    details = [command.details, shared if command.takes.settings else "", *map(_choices, command.groups)]
    return f"usage: polyarm {command.usage}\n\n{command.summary}.\n\n" + "\n".join(filter(None, details)).rstrip()


def _choices(group: str) -> str:
    return f"{group:<11} {', '.join(options(group))}"


if __name__ == "__main__":
    sys.exit(main())
