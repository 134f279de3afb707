"""Configuration: hydra composes yaml, an unknown key is an error, and every error is one sentence."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra.errors import HydraException, InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from polyarm.spec import Spec, UserError, unknown

CONFIGS = Path(__file__).parent / "configs"
ROOT = "polyarm"
"""Name of the root file in configs/."""
PACKAGES = {"body": "policy.body", "encoder": "policy.encoder", "sampler": "policy.sampler"}
"""Where a group's settings go, if not under its own name."""
SECTIONS = ("data", "train", "eval", "collect")
"""Parts of the root file whose settings every configuration has."""
NESTED = {"sampler": "sampler@policy.sampler"}
"""Groups that a policy's own file chooses from, and hydra's name for them; a command line says plainly `sampler=ddpm`."""


def compose(overrides: Sequence[str]) -> DictConfig:
    """The whole configuration: configs/polyarm.yaml under the overrides of a command line."""
    try:
        with initialize_config_module("polyarm.configs", version_base="1.3"):
            config = hydra_compose(ROOT, overrides=[hydra_name(word) for word in overrides])
            plain = hydra_compose(ROOT) if overrides else config
            OmegaConf.resolve(config)  # ${now:} and friends become what they are now, once
    except (HydraException, OmegaConfBaseException) as e:
        raise explain(e, overrides) from e
    _require_types(config, plain)
    return config


def hydra_name(word: str) -> str:
    """An override of a command line as hydra wants it."""
    key, equals, value = word.partition("=")
    return NESTED.get(key, key) + equals + value


def override(config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """A checkpoint's own configuration under the overrides of a command line: keys as `a.b=1`, or a whole `task=NAME`."""
    config, plain = config.copy(), compose([])
    OmegaConf.set_struct(config, False)
    for section in SECTIONS:  # settings that are younger than the checkpoint have their defaults
        config[section] = OmegaConf.merge(plain[section], config[section])
    OmegaConf.set_struct(config, True)
    for text in overrides:
        key, found, value = text.partition("=")
        if not found:
            raise UserError(f"{text!r} is no override: write key=value")
        if key in groups():
            _place_option(config, key, value)
            continue
        try:
            if OmegaConf.select(config, key, throw_on_missing=False) is None and not _has(config, key):
                raise unknown("setting", key, keys(config, key))
            OmegaConf.update(config, key, OmegaConf.from_dotlist([f"x={value}"]).x)
        except OmegaConfBaseException as e:
            raise explain(e, overrides) from e
    _require_types(config, plain)
    return config


def build(node: DictConfig, spec: Spec) -> Any:
    """The policy that a `policy` node describes, on the spaces of `spec`."""
    return make(node)(obs_space=spec.obs, action_space=spec.action)


def make(node: DictConfig) -> Any:
    """What a node with `_target_` describes, as a partial: spaces and scales are arguments, never configuration."""
    try:
        return _Made(instantiate(node, _partial_=True, _convert_="all"))
    except InstantiationException as e:
        raise explain(e) from e


def _require_types(config: DictConfig, plain: DictConfig) -> None:
    """Numbers stay numbers and switches switches, as in the root file."""
    for section in SECTIONS:
        for name, default in plain[section].items():
            value = config[section][name]
            if value is None and name == "grad_clip":
                continue
            number = isinstance(default, int | float) and not isinstance(default, bool)
            if number and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise UserError(f"{section}.{name}={value}: give a number, such as {default}")
            if isinstance(default, int) and number and not isinstance(value, int):
                raise UserError(f"{section}.{name}={value}: give a whole number, such as {default}")
            if isinstance(default, bool) and not isinstance(value, bool):
                raise UserError(f"{section}.{name}={value}: give true or false")


def _place_option(config: DictConfig, group: str, name: str) -> None:
    """Put a group's file where hydra would, at the package its first line names."""
    if name not in options(group):
        raise unknown(group, name, options(group))
    node = OmegaConf.load(CONFIGS / group / f"{name}.yaml")
    if "defaults" in node:
        raise UserError(
            f"{group}={name} is made of several files: train with it, or change single settings such as {group}.key=value"
        )
    OmegaConf.set_struct(config, False)
    OmegaConf.update(config, PACKAGES.get(group, group), node, merge=False)
    OmegaConf.set_struct(config, True)


class _Made:
    def __init__(self, partial: Any):
        self.partial = partial

    def __call__(self, **arguments: Any) -> Any:
        try:
            return self.partial(**arguments)
        except TypeError as e:
            name = getattr(self.partial.func, "__name__", self.partial.func)
            raise UserError(f"{name} does not take these settings ({e}): see its docstring for those it takes") from e


def explain(error: Exception, overrides: Sequence[str] = ()) -> UserError:
    """An error of hydra or omegaconf as one sentence with the nearest name."""
    cause: BaseException | None = error
    while cause is not None:  # hydra wraps what a constructor raised
        if isinstance(cause, UserError):
            return cause
        cause = cause.__cause__
    text = str(error)
    if group := re.search(r"Could not find '([\w/]+)/([^']*)'", text):
        return unknown(group[1].partition("@")[0], group[2], options(group[1].partition("@")[0]))
    if target := re.search(r"Error locating target '([^']+)'", text):
        return _unknown_target(target[1])
    if (
        key := re.search(r"full_key: (\S+)", text)
        or re.search(r"Could not override '([^']+)'", text)
        or re.search(r"Key '([^']+)' is not in struct", text)
    ):
        return unknown("setting", key[1], [*keys(_root(), key[1]), *groups()])
    if missing := re.search(r"Missing mandatory value: (\S+)", text):
        return UserError(f"{missing[1]} has no value: give it as {missing[1]}=...")
    first = next(line.strip() for line in text.splitlines() if line.strip())
    return UserError(f"{first} (of the settings {' '.join(overrides)})" if overrides else first)


def _unknown_target(dotted: str) -> UserError:
    """For a `_target_` that does not exist: what its module has."""
    home, _, name = dotted.rpartition(".")
    try:
        module = import_module(home)
    except ImportError:
        return UserError(
            f"_target_ {dotted!r}: there is no module {home!r}; give the dotted name of a class that can be imported"
        )
    known = [
        n
        for n, x in vars(module).items()
        if getattr(x, "__module__", None) == module.__name__ and not n.startswith("_")
    ]
    return unknown(f"name in {home}", name, known)


def groups() -> list[str]:
    """Names of the config groups: task, policy, ..."""
    return sorted(p.name for p in CONFIGS.iterdir() if p.is_dir() and any(p.glob("*.yaml")))


def options(group: str) -> list[str]:
    """Names of a group's files."""
    return sorted(p.stem for p in (CONFIGS / group).glob("*.yaml"))


def keys(config: DictConfig, like: str) -> list[str]:
    """Settings on the level of the dotted key `like`, as far down as it exists."""
    parts = like.split(".")[:-1]
    while parts and not isinstance(OmegaConf.select(config, ".".join(parts)), DictConfig):
        parts.pop()
    node = OmegaConf.select(config, ".".join(parts)) if parts else config
    return [".".join([*parts, str(k)]) for k in node if not str(k).startswith("_")]


def read_yaml(path: Path) -> DictConfig:
    config = OmegaConf.load(path)
    if not isinstance(config, DictConfig):
        raise UserError(f"{path} is not a mapping of settings: restore the file")
    return config


def write_yaml(path: Path, config: DictConfig) -> None:
    path.write_text(OmegaConf.to_yaml(config, resolve=True))


def _root() -> DictConfig:
    try:
        return compose([])
    except UserError:
        return OmegaConf.create()


def _has(config: DictConfig, key: str) -> bool:
    parent, _, leaf = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    return isinstance(node, DictConfig) and leaf in node


def cpus() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
