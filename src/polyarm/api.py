"""polyarm for a notebook or a robot's script: `polyarm.train`, `polyarm.evaluate`, `polyarm.load`. See docs/python.md.

Settings are those of the command line, in whichever form is handy: text as it stands there ("train.steps=2000"), a mapping of
names to Python values ({"train.steps": 2000}), or keywords (policy="flow", train={"steps": 2000}). Of one that is given twice
the last holds: text and mappings in their order, then keywords.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from polyarm.choices import adding, groups, options
from polyarm.cli import sentence
from polyarm.config import PACKAGES, compose, override
from polyarm.derive import Derivation, derive
from polyarm.eval import agent, latency, run
from polyarm.eval.effect import require_effect
from polyarm.eval.machine import pick_device
from polyarm.grammar import PATHS, setting
from polyarm.log import read_log
from polyarm.policies import checkpoint
from polyarm.policies.policy import Policy
from polyarm.rotation import rows_as, space_as
from polyarm.spec import Stream, UserError
from polyarm.task import derivations, fitting
from polyarm.text import text_row
from polyarm.train import fit
from polyarm.trust import trusting
from polyarm.words import shares


def train(*settings: Any, trust: Any = (), configs: Any = (), **more: Any) -> dict[str, Any]:
    """Train as `polyarm train` does; with the same `output_dir` the same call goes on where it stopped.

    Returns `output_dir`, `checkpoint` (the newest), `policy`, `task`, and by its name the last of every number in log.jsonl:
    `step`, `loss`, `val_loss`, ... `trust` and `configs` are the options of these names.
    """
    with _in_force(trust, configs):
        config = compose(fitting(words(*settings, more)))
        out = fit(config)
        last = {name: value for row in read_log(out / "log.jsonl") for name, value in row.items()}
        about = {"policy": config.policy.name, "task": config.task.name}
        return {"output_dir": str(out), "checkpoint": str(checkpoint.find(out)), **about, **last}


def evaluate(
    path: Any, *settings: Any, weights: Any = None, trust: Any = (), configs: Any = (), **more: Any
) -> dict[str, Any]:  # fmt: skip
    """Judge as `polyarm eval` does; returns what result.json holds.

    `path`: a training run or a checkpoint, or several, which are mixed while they denoise, with `weights` (default: equal).
    """
    with _in_force(trust, configs):
        sources = _paths(path)
        return run.evaluate(sources, words(*settings, more), shares(weights, len(sources)))


def load(
    path: Any, *settings: Any, weights: Any = None, rotation: str | None = None, trust: Any = (), configs: Any = (),
    **more: Any,
) -> Agent:  # fmt: skip
    """The agent that `polyarm eval` of the same words would play with.

    `path`, `weights`: as of `evaluate`. `rotation`: the layout in which actions hold rotations (see `polyarm.rotation`), None
    for that of the policy. As in training and evaluation, torch takes `eval.threads` threads in this process.
    """
    with _in_force(trust, configs):
        folders = [checkpoint.find(source) for source in _paths(path)]
        mine, parts = words(*settings, more), shares(weights, len(folders))
        owns = [checkpoint.read_config(folder) for folder in folders]
        config = override(owns[0], mine)
        require_effect(owns, config, mine)
        torch.set_num_threads(int(config.eval.threads))
        device = pick_device(config.eval.device)
        policy = run.load_policy(folders, config, mine, parts, device)
        rows = latency.ahead(config, policy).rows
        return Agent(policy, config.eval.n_action_steps, rotation, device, derivations(config.task), rows)


class Agent:
    """A policy that acts in one world: `reset` at the start of an episode, then `act` at every step, `rate_hz` times a second.

    `obs_space` and `action_space` say what the numbers of observations and actions mean: shapes, channels, units. It plans a
    chunk every `n_action_steps` steps, and in between `act` returns at once. With `ahead` it plans in a thread, from what it sees
    when so many steps of the present chunk are left, and `act` waits only for a chunk that is late.
    """

    def __init__(
        self, policy: Policy, n_action_steps: int | None = None, rotation: str | None = None,
        device: str | torch.device = "cpu", made: Mapping[str, Derivation] | None = None, ahead: int = 0,
    ):  # fmt: skip
        self.policy, self.name, self.device = policy, policy.name, torch.device(device)
        self._made = {name: how for name, how in (made or {}).items() if name in policy.obs_space.names}
        self.n_action_steps, self.ahead = n_action_steps or policy.n_action_steps, ahead
        self.obs_space = replace(
            policy.obs_space, streams=tuple(replace(s, scale=None) for s in policy.obs_space.streams)
        )
        space = space_as(policy.action_space, rotation)
        self.action_space = replace(space, horizon=1, scale=None, relative=None)
        self.rate_hz = self.action_space.rate_hz
        self._rows: agent.Agent | None = None
        self._one()

    def reset(self, seed: Any = 0, goal: Any = None) -> None:
        """Begin an episode: the next observation is its first. The same seed and the same observations give the same actions.
        `goal`: for a policy that takes one, what is to be seen at the end, as an observation; None to act without."""
        if goal is not None and not self.policy.goal_steps:
            raise UserError(
                f"policy {self.name} takes no goal: leave it out, or train one that does, such as policy=beso"
            )
        seeds, goals = [_seed(seed)], None if goal is None else [self._seen(goal, "the goal")]
        rows = self._one()
        rows.restart(np.ones(1, bool), seeds, goals)
        self._rows = rows

    def act(self, obs: Any) -> Float[np.ndarray, "d"]:
        """The next action, float32 [d], in the units of `action_space`. `obs`: {stream: array of the stream's shape}, the newest
        observation; other streams may be there too. In place of a stream that training made of others it may hold those."""
        if self._rows is None:
            raise UserError("act before reset: call reset(seed=...) at the start of every episode")
        seen = {name: x[None] for name, x in self._seen(obs, "the observation").items()}
        return rows_as(self._rows.act(seen), self.policy.action_space, self.action_space.rotation)[0]

    @property
    def energy(self) -> float | None:
        """How unlike the demonstrations the policy holds the chunk that it executes; None for one without energies."""
        found = None if self._rows is None else self._rows.energy
        return None if found is None else float(found[0])

    def __repr__(self) -> str:
        a = self.action_space
        told = [f"{self.name} at {self.rate_hz:g} Hz, {self.n_action_steps} steps a chunk"]
        told += [f"  sees   {s.name}: {_about(s.dtype, s.shape, s.names, s.units)}" for s in self.obs_space.streams]
        return "\n".join([*told, f"  does   action: {_about('float32', (a.width,), a.names, a.units)}"])

    def _one(self) -> agent.Agent:
        """What remembers, for one episode in one world."""
        beside = self.ahead > 0
        return agent.Agent(self.policy, 1, self.n_action_steps, device=self.device, ahead=self.ahead, beside=beside)

    def _seen(self, obs: Any, what: str) -> dict[str, np.ndarray]:
        """The policy's streams of an observation, or the sentence about what does not fit."""
        names = ", ".join(self.obs_space.names)
        if not isinstance(obs, Mapping):
            raise UserError(f"{what} is of type {type(obs).__name__}: give a mapping with an array for each of {names}")
        wanted = {name: how for name, how in self._made.items() if name not in obs and obs.keys() >= {*how.needs()}}
        made = {name: derive(name, how, {n: np.asarray(obs[n]) for n in how.needs()}) for name, how in wanted.items()}
        obs = {**obs, **made}
        for name in self.obs_space.names:
            if name not in obs:
                there = ", ".join(map(str, obs)) or "nothing"
                parts = ", ".join(self._made[name].needs()) if name in self._made else ""
                hint = f", or of what {name!r} is made, {parts}" if parts else ""
                raise UserError(f"{what} holds {there}, policy {self.name} needs {name!r}: give all of {names}{hint}")
        return {
            s.name: _array(obs[s.name], s, f"{what}'s stream {s.name!r}", self.name) for s in self.obs_space.streams
        }


def words(*settings: Any) -> list[str]:
    """Settings as the words of a command line."""
    found: list[str] = []
    for given in settings:
        if isinstance(given, str):
            found.append(given)
        elif isinstance(given, Mapping):
            for key, value in given.items():
                found += _of_key(str(key), value)
        else:
            raise UserError(
                f"{given!r} is no setting: give text such as 'train.steps=2000', a mapping such as {{'train.steps': 2000}}, or keywords"
            )
    return found


def _of_key(key: str, value: Any) -> list[str]:
    """One word; for a mapping under a plain name, such as train={"steps": 2000}, one for each setting below it."""
    if isinstance(value, Mapping) and "." not in key:
        return [word for name, x in value.items() for word in _of_key(f"{PACKAGES.get(key, key)}.{name}", x)]
    if key in groups() and not isinstance(value, str):
        raise UserError(f"{key}={value!r}: give one of {', '.join(options(key))}, or leave it out")
    if key in PATHS and isinstance(value, str | os.PathLike):
        value = os.path.expanduser(value)
    return [setting(key, _plain(value, key))]


def _plain(value: Any, key: str) -> Any:
    """A Python value as a setting holds it; numpy's too."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(x, key) for name, x in value.items()}
    if isinstance(value, list | tuple | range):
        return [_plain(x, key) for x in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise UserError(
        f"{key} is of type {type(value).__name__}: give text, a number, True, False, None, or a list or mapping of these"
    )


def _array(value: Any, stream: Stream, what: str, policy: str) -> np.ndarray:
    """One step of a stream as the policy takes it."""
    if stream.kind == "text" and isinstance(value, str):
        return text_row(value, stream.shape[0])
    try:
        x = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as e:  # ragged lists, tensors that lie on a GPU or have a gradient
        raise UserError(f"{what} is no array ({str(e).splitlines()[0]}): give one of shape {stream.shape}") from e
    if stream.dtype == "uint8" and x.dtype != np.uint8:
        raise UserError(f"{what} is {x.dtype}: give uint8, 0 to 255, as in the demonstrations")
    if x.dtype.kind not in "biuf":
        raise UserError(f"{what} is {x.dtype}: give numbers of shape {stream.shape}")
    if x.shape != stream.shape:
        last = ", channels last" if stream.kind == "image" else ""
        raise UserError(
            f"{what} has shape {x.shape}: policy {policy} was trained on {stream.shape}{last}, one step: give that"
        )
    with np.errstate(over="ignore"):  # what does not fit float32 is inf, and refused as such
        x = x.astype(stream.dtype, copy=False)
    if not (np.isfinite(x) | (stream.gaps & np.isnan(x))).all():
        raise UserError(f"{what} holds {x[~np.isfinite(x)][0]}: give finite numbers, check the sensor")
    return x


def _seed(seed: Any) -> int:
    try:
        found = operator.index(seed)
    except TypeError:
        found = -1
    if isinstance(seed, bool) or not 0 <= found < 2**63:
        raise UserError(f"seed={seed!r}: give a whole number of at least 0")
    return found


def _paths(path: Any) -> list[Path]:
    """One path or several, as a list."""
    several = [path] if isinstance(path, str | os.PathLike) else path
    if (
        not isinstance(several, list | tuple)
        or not all(isinstance(p, str | os.PathLike) for p in several)
        or not several
    ):
        raise UserError(
            f"{path!r} is no path: give the output_dir of a training run, or one of its checkpoints, or a list of several"
        )
    return [Path(p).expanduser() for p in several]


def _about(dtype: str, shape: tuple[int, ...], names: Sequence[str], units: Sequence[str]) -> str:
    """float32 (2,) with x [m], y [m]"""
    units = units or [""] * len(names)
    told = ", ".join(f"{name} [{unit}]" if unit else name for name, unit in zip(names, units, strict=True))
    return f"{dtype} {shape}" + (f" with {told}" if told else "")


@contextmanager
def _in_force(trust: Any, configs: Any) -> Iterator[None]:
    """Within it yaml and code of the user's own are known as with `--configs` and `--trust`, and what bad input or a disk causes
    is the command line's sentence."""
    names = [trust] if isinstance(trust, str) else trust
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise UserError(
            f"trust={trust!r}: give the name of a module whose classes checkpoints may name, or a list of several"
        )
    folders = [] if isinstance(configs, list | tuple) and not configs else _paths(configs)
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"configs={folder} is no folder: give one that holds policy/NAME.yaml or the like")
    absolute = [folder.absolute() for folder in folders]
    try:
        with adding(absolute), trusting(names, absolute):
            yield
    except Exception as e:
        said = sentence(e)
        if said is None or isinstance(e, UserError):
            raise
        raise UserError(said) from e
