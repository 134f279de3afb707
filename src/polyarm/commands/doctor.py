"""`polyarm doctor`: what this machine has, what is missing, and what to do about it."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from polyarm.commands import Command, Takes, Words
from polyarm.progress import waiting
from polyarm.spec import UserError

STATION = "--station"
CORE = {
    "torch": "torch", "torchvision": "torchvision", "numpy": "numpy", "zarr": "zarr", "hydra-core": "hydra",
    "diffusers": "diffusers", "accelerate": "accelerate", "gymnasium": "gymnasium", "mujoco": "mujoco",
    "gym-pusht": "gym_pusht", "av": "av",
}  # fmt: skip
"""Package: what it is imported as."""


def run(words: Words) -> dict[str, Any]:
    """{check: {ok, found, remedy}}"""
    if words.places or (words.settings and STATION not in words.switches):
        raise UserError(
            f"polyarm doctor takes settings with {STATION} only, not {[*words.places, *words.settings][0]!r}: leave it out"
        )
    if STATION in words.switches:
        return _station(words)
    with waiting("looking", "torch", "mujoco"):
        return {
            name: {"ok": ok, "found": found, "remedy": "" if ok else remedy} for name, ok, found, remedy in _checks()
        }


def _station(words: Words) -> dict[str, Any]:
    with waiting("looking at the station", "mujoco"):
        from polyarm.real_robot.preflight import preflight, table_of
        from polyarm.real_robot.robot import of_robot, read

    if other := [word for word in words.settings if not of_robot(word)]:
        raise UserError(
            f"polyarm doctor {STATION} takes robot=NAME and robot.KEY=VALUE, not {other[0]!r}: leave it out"
        )
    return table_of(preflight(read(words.settings)))


def code(rows: dict[str, Any]) -> int:
    """A station that is not well is no place to start from, but for ticks that will come late; of a machine that is for each to judge."""
    return 2 if STATION[2:] in rows and any(not row["ok"] for name, row in rows.items() if name != "priority") else 0


def show(rows: dict[str, Any]) -> None:
    """One line a check."""
    try:
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table
    except ImportError:  # what is missing is what this is for
        for name, row in rows.items():
            print("ok" if row["ok"] else "no", name, row["found"], row["remedy"], sep="  ")
        return
    table = Table("", "check", "found", "what to do", box=None)
    for name, row in rows.items():
        table.add_row(
            "[green]ok[/]" if row["ok"] else "[red]no[/]", name, escape(str(row["found"])), escape(str(row["remedy"]))
        )
    Console().print(table)


def _checks() -> Iterator[tuple[str, bool, str, str]]:
    yield (
        "python",
        sys.version_info[:2] == (3, 12),
        platform.python_version(),
        "install Python 3.12 and run `make setup`",
    )
    for name, module in CORE.items():
        yield _try(name, lambda name=name, module=module: _package(name, module), "run `make setup`")  # type: ignore[misc]
    yield _try("GPU", _gpu, "a CPU is enough for the demo; for training install the driver that `nvidia-smi` needs")
    yield _try("rendering", _render, "install EGL (libegl1) or OSMesa (libosmesa6) and set MUJOCO_GL=egl or osmesa")
    yield _try("SAPIEN", _sapien, "pip install 'polyarm[sapien]'")
    yield _try("disk", _disk, "free some: checkpoints with optimizer state are large")
    yield "cores", True, f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()}", ""


def _try(name: str, check: Callable[[], str], remedy: str) -> tuple[str, bool, str, str]:
    try:
        return name, True, check(), ""
    except PackageNotFoundError:
        return name, False, "not installed", remedy
    except UserError as e:  # a sentence that has its own remedy
        found, _, told = str(e).rpartition(": ")
        return name, False, found, told
    except Exception as e:  # noqa: BLE001  a doctor reports every failure; it never falls over one
        return name, False, str(e).splitlines()[0] if str(e) else type(e).__name__, remedy


def _package(name: str, module: str) -> str:
    """Its version, if it can be imported."""
    found = version(name)
    import_module(module)
    return found


def _disk() -> str:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    if free < 5:
        raise RuntimeError(f"{free:.0f} GiB free here")
    return f"{free:.0f} GiB free here"


def _gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError("torch sees no CUDA device")
    return torch.cuda.get_device_name()


def _render() -> str:
    from polyarm.sim.world import make_world

    world = make_world("polyarm/PickPlace-v0", {})
    world.reset(seed=0)
    frame = world.render()
    world.close()
    if frame.std() < 1:
        raise RuntimeError("the rendered picture is empty")
    return f"MuJoCo draws {frame.shape[1]}x{frame.shape[0]} with {os.environ.get('MUJOCO_GL', 'the default')}"


def _sapien() -> str:
    found = f"SAPIEN {version('sapien')} and ManiSkill {version('mani-skill')}"
    from polyarm.sim.sapien.swiftshader import tried

    return f"{found} draw with {tried()}"


COMMAND = Command(
    run,
    "Say what this machine has and what is missing",
    "doctor [--station robot=NAME [robot.KEY=VALUE ...]] [--json]",
    "Imports each package that polyarm needs, looks for a GPU, draws a picture with each simulator, counts cores and free space.\n"
    "--station: an arm instead, before a motor moves: port, motors, firmware, supply, temperature, calibration, real-time priority,\n"
    "cameras; exit code 2 where one of them is not well.",
    order=70,
    groups=("robot",),
    takes=Takes(place="nothing", switches=(STATION,)),
    show=show,
    code=code,
)
