"""`polyarm twin`: an arm that is not there, on a port that is."""

from __future__ import annotations

import os
import signal
import tempfile
from math import isfinite
from pathlib import Path
from typing import Any

from polyarm.commands import Command, Takes, Words, say
from polyarm.progress import waiting
from polyarm.spec import UserError, unknown
from polyarm.words import SETTING

MODELS = ("so101",)
SETTINGS = ("calibration", "seed", "pace_baud", "usb_ms")


def run(words: Words) -> None:
    model, path, settings = _asked(words)
    kind = "unix" if "--unix" in words.switches else "pty"
    with waiting("loading the simulator", "mujoco"):
        from polyarm.real_robot.calibration import load
        from polyarm.real_robot.twin.server import Server
        from polyarm.real_robot.twin.twin import Twin

    mounted = load(settings["calibration"]) if "calibration" in settings else None
    seed = int(_number("seed", settings.get("seed", "0"), whole=True))
    bounds = {name: _number(name, settings[name]) for name in ("pace_baud", "usb_ms") if name in settings}
    twin = Twin(mounted, lockstep="--lockstep" in words.switches, seed=seed)
    twin.reset(seed)
    server = Server(twin, kind, path, **bounds)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, server.stop)
    also = f" (a link to {server.port})" if kind == "pty" else ""
    say(f"a twin of the {model} listens at {path}{also}; told what to suffer at {server.control}; Ctrl-C ends it")
    server.run()


def _asked(words: Words) -> tuple[str, str, dict[str, str]]:
    """(model, path, settings) that the words give."""
    settings = dict(word.split("=", 1) for word in words.places if SETTING.fullmatch(word))
    plain = [word for word in words.places if not SETTING.fullmatch(word)]
    for name in settings:
        if name not in SETTINGS:
            raise unknown("setting of a twin", name, SETTINGS)
    if not plain or plain[0] not in MODELS:
        raise unknown("arm to make a twin of", plain[0] if plain else "", MODELS)
    if {"--pty", "--unix"} <= words.switches or not words.switches & {"--pty", "--unix"}:
        raise UserError("a twin listens on a pty or a Unix socket: give one of --pty and --unix PATH")
    kind = "--unix" if "--unix" in words.switches else "--pty"
    if len(plain) > 2 or (len(plain) < 2 and "--unix" in words.switches):
        raise UserError(f"polyarm twin needs one path after {kind}: polyarm twin so101 --unix /tmp/so101")
    path = plain[1] if len(plain) > 1 else os.path.join(tempfile.gettempdir(), f"so101-{os.getpid()}")
    if not Path(path).absolute().parent.is_dir():
        raise UserError(f"{path} is in no folder that exists: give a path for the twin in one")
    return plain[0], path, settings


def _number(name: str, text: Any, whole: bool = False) -> float:
    try:
        value = int(text) if whole else float(text)
    except ValueError:
        value = -1
    if not (isfinite(value) and value >= 0):
        raise UserError(f"{name}={text}: give a {'whole ' if whole else ''}number from 0 up")
    return float(value)


COMMAND = Command(
    run,
    "Be an arm on a port: emulated motors on the simulator's model, for drivers and other people's programs",
    "twin so101 --pty [PATH] | --unix PATH [--lockstep] [key=value ...]",
    "--pty [PATH]   a serial port, and a link to it at PATH: lerobot, Feetech's SDK and polyarm open it as they open /dev/ttyACM0\n"
    "--unix PATH    a Unix socket: for timing, since the kernel moves a pty's bytes when it likes\n"
    "--lockstep     time passes only when the control socket is told to advance\n"
    "calibration=FILE  how its motors are mounted and what stands in them; its own otherwise\n"
    "seed=N            the scene that it begins with, and its chances\n"
    "pace_baud=1000000 usb_ms=1   replies take as long as on a wire; they come at once otherwise\n\n"
    'PATH.ctl is a Unix socket that takes a line of JSON, such as {"do": "heat", "motor": 2}, and answers with one:\n'
    "  reset seed, truth, pose q, log, counts, registers motor, advance dt_ns sent\n"
    "  trouble drop corrupt late (shares), drop_next corrupt_next late_next (how many), late_ms, mute\n"
    "  heat motor celsius, force motor bits, supply volts, freeze on, unplug, plug, remove motor, swap motor other,\n"
    "  become motor model firmware, write motor register value\n"
    "It was never held against hardware: it does what the motors' tables and data sheet say.\n",
    order=80,
    takes=Takes(place="an arm, a path and settings", settings=False, switches=("--pty", "--unix", "--lockstep")),
)
