"""`polyarm doctor`: what this machine has, what is missing, and what to do about it."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

CORE = (
    "torch",
    "torchvision",
    "numpy",
    "zarr",
    "hydra-core",
    "diffusers",
    "accelerate",
    "gymnasium",
    "mujoco",
    "gym-pusht",
    "av",
)


def doctor() -> dict[str, Any]:
    """Prints one line a check; returns {check: {ok, found, remedy}}."""
    from rich.console import Console
    from rich.table import Table

    rows = {name: {"ok": ok, "found": found, "remedy": "" if ok else remedy} for name, ok, found, remedy in _checks()}
    if "--json" not in sys.argv:
        table = Table("", "check", "found", "what to do", box=None)
        for name, row in rows.items():
            table.add_row("[green]ok[/]" if row["ok"] else "[red]no[/]", name, str(row["found"]), str(row["remedy"]))
        Console().print(table)
    return rows


def _checks() -> Iterator[tuple[str, bool, str, str]]:
    yield (
        "python",
        sys.version_info[:2] == (3, 12),
        platform.python_version(),
        "install Python 3.12 and run `make setup`",
    )
    for name in CORE:
        try:
            yield name, True, version(name), ""
        except PackageNotFoundError:
            yield name, False, "not installed", "run `make setup`"
    yield _try("GPU", _gpu, "a CPU is enough for the demo; for training install the driver that `nvidia-smi` needs")
    yield _try("rendering", _render, "install EGL (libegl1) or OSMesa (libosmesa6) and set MUJOCO_GL=egl or osmesa")
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    yield "disk", free > 5, f"{free:.0f} GiB free here", "free some: checkpoints with optimizer state are large"
    yield "cores", True, f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()}", ""


def _try(name: str, check: Callable[[], str], remedy: str) -> tuple[str, bool, str, str]:
    try:
        return name, True, check(), ""
    except Exception as e:  # noqa: BLE001  a doctor reports every failure; it never falls over one
        return name, False, str(e).splitlines()[0] if str(e) else type(e).__name__, remedy


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
