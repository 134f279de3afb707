"""Configuration: hydra composes yaml, an unknown key is an error, and every error is one sentence."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException
from yaml import YAMLError, safe_load

from polyarm.choices import CONFIGS as CONFIGS  # noqa: PLC0414  known by this name elsewhere
from polyarm.choices import find, groups, options, sources
from polyarm.grammar import hydra_word, parse, quoted
from polyarm.ranges import RANGES, policy_rules, require
from polyarm.spec import Spec, UserError, unknown

ROOT = "polyarm"
"""Name of the root file in configs/."""
PACKAGES = {"body": "policy.body", "encoder": "policy.encoder", "sampler": "policy.sampler"}
"""Where a group's settings go, if not under its own name."""
SECTIONS = ("data", "train", "eval", "collect", "deploy", "record", "replay")
"""Parts of the root file whose settings every configuration has."""
YOUNG = ("deploy", "record", "replay")
"""Those that older runs and checkpoints do not hold."""
RUN_FILE = "config.yaml"
"""Name of the file in which a run or a checkpoint holds its whole configuration."""
NEEDED = ("task.name", "task.env_id", "task.streams", "task.measure", "policy.name")
"""Settings of a task and a policy that nothing works without."""


OFFLINE = "action_error"
"""The `task.measure` that needs no world."""


def compose(overrides: Sequence[str]) -> DictConfig:
    """The whole configuration: configs/polyarm.yaml under the overrides of a command line."""
    with hydra() as h:
        plain = h.plain()
        config = h.compose([hydra_word(word, plain) for word in overrides]) if overrides else h.plain()
    return settle(config, plain)


def settle(config: DictConfig, plain: DictConfig, dropped: Sequence[str] = ()) -> DictConfig:
    """A composed configuration with every value as it is now (${now:} and friends, once) and in its range; without `dropped`,
    settings or groups."""
    for key in dropped:
        if not _has(config, PACKAGES.get(key, key)):
            raise unknown("setting", key, keys(config, key))
    drop(config, *(PACKAGES.get(key, key) for key in dropped))
    try:
        check(config, plain)
        OmegaConf.resolve(config)
        if config.task.measure == OFFLINE and config.train.rollout_every:
            raise UserError(
                f"train.rollout_every={config.train.rollout_every}: {OFFLINE} plays no episodes; give 0, or another task.measure"
            )
    except OmegaConfBaseException as e:
        raise explain(e) from e
    for section in SECTIONS:
        for name in _settings(config, section):
            if name not in plain[section]:
                raise unknown("setting", f"{section}.{name}", keys(plain, f"{section}.{name}"))
    return config


@contextmanager
def hydra() -> Iterator[Hydra]:
    """Hydra on polyarm's yaml and that of `--configs`; within another such block, and within a job of hydra's own, too."""
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().hydra = None
    try:
        with initialize_config_module("polyarm.configs", version_base="1.3"):
            yield Hydra()
    finally:
        GlobalHydra.instance().hydra = outer


_PLAIN: list[DictConfig] = []


class Hydra:
    def compose(self, words: Sequence[str]) -> DictConfig:
        """Of words in hydra's grammar, not resolved."""
        try:
            return hydra_compose(ROOT, overrides=[*words, *self.searchpath()])
        except (HydraException, OmegaConfBaseException) as e:
            raise explain(e, words) from e

    def plain(self) -> DictConfig:
        """The root file as it is."""
        if not _PLAIN:
            _PLAIN.append(self.compose([]))
        return _PLAIN[0].copy()

    def searchpath(self) -> list[str]:
        more = [quoted(f"file://{folder.absolute()}") for folder in sources()[1:]]
        return [f"hydra.searchpath=[{','.join(more)}]"] if more else []


def override(config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """A checkpoint's own configuration under the overrides of a command line: keys as `a.b=1`, or a whole `task=NAME`."""
    config, plain = config.copy(), compose([])
    OmegaConf.set_struct(config, False)
    for section in SECTIONS:  # settings that are younger than the checkpoint have their defaults
        config[section] = OmegaConf.merge(plain[section], _settings(config, section))
    OmegaConf.set_struct(config, True)
    try:
        for word in parse(overrides, config):
            _apply(config, word, plain)
        return check(config, plain)
    except OmegaConfBaseException as e:
        raise explain(e, overrides) from e


def part(group: str, words: Sequence[str]) -> DictConfig:
    """The file that `group=NAME` among `words` names, under those that begin with `group.`, without the rest of a configuration."""
    mine = [word for word in words if word.lstrip("+~").partition("=")[0].partition(".")[0] == group]
    names = [word for word in mine if word.partition("=")[0] == group]
    if len(names) != 1:
        raise UserError(
            f"{' '.join(names) or f'there is no {group}'}: give one {group}=NAME of {', '.join(options(group))}"
        )
    name = names[0].partition("=")[2]
    find(group, name)
    with hydra() as h:
        config, plain = h.compose([f"+{group}={quoted(name)}"]), h.plain()
    for word in parse([word for word in mine if word not in names], config):
        try:
            if isinstance(value := word.value(), dict) and OmegaConf.is_dict(
                OmegaConf.select(config, word.key_or_group)
            ):
                OmegaConf.update(config, word.key_or_group, value, merge=False, force_add=True)  # whole, as it is given
            else:
                _apply(config, word, plain)
        except OmegaConfBaseException as e:
            there = OmegaConf.select(config, word.key_or_group, default=None)
            raise UserError(f"{word.input_line}: {group}={name} has {there} there; give the like of it") from e
    try:
        OmegaConf.resolve(config[group])
    except OmegaConfBaseException as e:
        raise explain(e, words) from e
    return config[group]


def _apply(config: DictConfig, word: Override, plain: DictConfig) -> None:
    key, value = word.key_or_group, word.value()
    if key in groups():
        _place_option(config, key, value if not word.is_delete() else None)
        return
    there = _has(config, key)
    if word.is_add() or word.is_force_add():
        section, _, name = key.partition(".")
        if section in SECTIONS and name not in plain[section]:
            raise unknown("setting", key, keys(plain, key))
        if there and word.is_add():
            raise UserError(f"{word.input_line}: {key} is there already: write it without the +")
    elif not there:
        raise unknown("setting", key, keys(config, key))
    if word.is_delete():
        drop(config, key)
    else:
        OmegaConf.update(config, key, value, force_add=word.is_add() or word.is_force_add())


def build(node: DictConfig, spec: Spec) -> Any:
    """The policy that a `policy` node describes, on the spaces of `spec`."""
    return make(node)(obs_space=spec.obs, action_space=spec.action)


def make(node: DictConfig) -> Any:
    """What a node with `_target_` describes, as a partial: spaces and scales are arguments, never configuration."""
    try:
        return _Made(instantiate(node, _partial_=True, _convert_="all"))
    except (HydraException, OmegaConfBaseException) as e:
        raise explain(e, node=node) from e


def check(config: DictConfig, plain: DictConfig) -> DictConfig:
    """The configuration with every setting that `ranges` knows in its range and of its type; or the sentence."""
    for part in ("task", "policy"):
        if not _settings(config, part) or part == "policy" and not isinstance(config.policy.get("_target_"), str):
            raise UserError(f"there is no {part}: give {part}=NAME, one of {', '.join(options(part))}")
    _require_see(config.task)
    for key in RANGES:
        if key in NEEDED and not _has(config, key):
            raise UserError(f"{key} has no value: give {RANGES[key].expect}")
        if key.startswith(("task.", "policy.")) and _has(config, key):
            _require(config, key, None)
    _require_judge(config.task)
    _require(config, "output_dir", None)
    for section in SECTIONS:
        for name, default in plain[section].items():
            if name not in _settings(config, section):
                raise UserError(f"{section}.{name} has no value: give it one, such as {section}.{name}={default}")
            _require(config, f"{section}.{name}", default)
    for key, value, rule in policy_rules(OmegaConf.to_container(config.policy, resolve=True)):  # type: ignore[arg-type]
        taken = require(key, value, rule)
        if taken != value or type(taken) is not type(value):
            OmegaConf.update(config, key, taken)
    return config


def _require_judge(task: DictConfig) -> None:
    """A task without a world is judged by what needs none."""
    if task.env_id is None and task.measure != OFFLINE:
        raise UserError(
            f"task.env_id=null: give the id of a world, or task.measure={OFFLINE} to judge on held-out episodes without one"
        )


def _require_see(task: DictConfig) -> None:
    """A task that offers several views, `sees` {name: streams} and maybe `cameras` {name: cameras}, has the one that `see` names."""
    sees = task.get("sees")
    if isinstance(sees, DictConfig) and "see" in task:
        known = [name for name in sees if name in task.get("cameras", sees)]
        if task.see not in known:
            raise unknown("task.see", str(task.see), known)


def _require(config: DictConfig, key: str, default: Any) -> None:
    value = OmegaConf.select(config, key, default=None)
    taken = require(
        key, OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value, RANGES[key], default
    )
    if not OmegaConf.is_config(value) and (taken != value or type(taken) is not type(value)):
        OmegaConf.update(config, key, taken)


def _settings(config: DictConfig, section: str) -> DictConfig:
    """A part of the configuration that holds single settings; empty if it is not there."""
    node = config.get(section)
    if node is not None and not isinstance(node, DictConfig):
        raise UserError(f"{section}={node}: give single settings, such as {section}.NAME=...")
    return OmegaConf.create() if node is None else node


def _place_option(config: DictConfig, group: str, name: Any) -> None:
    """Put a group's file where hydra would, at the package its first line names."""
    node = read_yaml(find(group, str(name)))
    if "defaults" in node:
        raise UserError(
            f"{group}={name} is made of several files: train with it, or change single settings such as {group}.key=value"
        )
    OmegaConf.set_struct(config, False)
    OmegaConf.update(config, PACKAGES.get(group, group), node, merge=False)
    OmegaConf.set_struct(config, True)


class _Made:
    """A partial of a class; whatever its constructor raises is one sentence with the settings that it was given."""

    def __init__(self, partial: Any):
        self.partial = partial

    def __call__(self, **arguments: Any) -> Any:
        try:
            return self.partial(**arguments)
        except (UserError, HydraException, OmegaConfBaseException) as e:
            raise explain(e) from e
        except Exception as e:
            raise _refused(
                getattr(self.partial.func, "__name__", str(self.partial.func)), e, self.partial.keywords
            ) from e


def _refused(name: str, error: BaseException, settings: dict[str, Any]) -> UserError:
    plain = {
        k: v for k, v in settings.items() if k != "_target_" and (isinstance(v, int | float | str | list) or v is None)
    }
    given = " " + ", ".join(f"{k}={v}" for k, v in plain.items()) if plain else ""
    why = f"{type(error).__name__}: {_first_line(error)}"
    return UserError(f"{name} does not take these settings{given} ({why}): see its docstring for those it takes")


def explain(error: Exception, overrides: Sequence[str] = (), node: DictConfig | None = None) -> UserError:
    """An error of hydra or omegaconf as one sentence with the nearest name. `node`: what was made when it came."""
    cause: BaseException | None = error
    deepest: BaseException = error
    while cause is not None:  # hydra wraps what a constructor raised
        if isinstance(cause, UserError):
            return cause
        deepest, cause = cause, cause.__cause__
    text = str(error)
    if group := re.search(r"Could not find '([\w/]+)/([^']*)'", text):
        return unknown(group[1].partition("@")[0], group[2], options(group[1].partition("@")[0]))
    if target := re.search(r"Error locating target '([^']+)'", text):
        return _unknown_target(target[1])
    if called := re.search(r"Error in (?:call to target |creating partial\()'?([\w.]+)", text):
        part = re.search(r"full_key: (\S+)", text)
        given = None if node is None else OmegaConf.select(node._get_root(), part[1]) if part else node
        return _refused(called[1].rpartition(".")[2], deepest, dict(given or {}))
    if blocked := re.search(r"[Tt]arget '([^']+)' is block", text):
        return UserError(
            f"_target_ {blocked[1]!r} is blocked, for it could do anything: name a class that makes a part of a policy"
        )
    if isinstance(error, InterpolationKeyError) and (name := re.search(r"'([^']+)'", text)):
        return UserError(
            f"these settings take {name[1]} from elsewhere, where it is not: choose parts, such as a sampler, that fit the policy"
        )
    if not isinstance(error, InstantiationException) and (
        key := re.search(r"full_key: (\S+)", text)
        or re.search(r"Could not override '([^']+)'", text)
        or re.search(r"Key '([^']+)' is not in struct", text)
    ):
        known = [*keys(_root(), key[1]), *groups()]
        if key[1] not in known:
            return unknown("setting", key[1], known)
    if missing := re.search(r"Missing mandatory value: (\S+)", text):
        return UserError(f"{missing[1]} has no value: give it as {missing[1]}=...")
    return UserError(
        f"{_first_line(error)} (of the settings {' '.join(overrides)})" if overrides else _first_line(error)
    )


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _unknown_target(dotted: str) -> UserError:
    """For a `_target_` that does not exist: what its module has."""
    home, _, name = dotted.rpartition(".")
    if not home:
        return UserError(
            f"_target_ {dotted!r} is no dotted name of a class, such as polyarm.policies.nets.ResidualMlp: give one"
        )
    try:
        module = import_module(home)
    except (ImportError, ValueError):
        return UserError(
            f"_target_ {dotted!r}: there is no module {home!r}; give the dotted name of a class that can be imported"
        )
    known = [
        n
        for n, x in vars(module).items()
        if getattr(x, "__module__", None) == module.__name__ and not n.startswith("_")
    ]
    return unknown(f"name in {home}", name, known)


def keys(config: DictConfig, like: str) -> list[str]:
    """Settings on the level of the dotted key `like`, as far down as it exists."""
    parts = like.split(".")[:-1]
    while parts and not isinstance(OmegaConf.select(config, ".".join(parts)), DictConfig):
        parts.pop()
    node = OmegaConf.select(config, ".".join(parts)) if parts else config
    return [".".join([*parts, str(k)]) for k in node if not str(k).startswith("_")]


def read_yaml(path: Path) -> DictConfig:
    """A file of settings; one that is cut off, empty or no mapping raises `UserError` with its name. A run's config.yaml holds
    every part of a configuration."""
    try:
        text = path.read_text(encoding="utf-8")
        config = OmegaConf.create(text) if isinstance(safe_load(text), dict) else None
    except (YAMLError, UnicodeDecodeError, OmegaConfBaseException) as e:
        raise UserError(f"{path} is no yaml ({_first_line(e)}): restore the file") from e
    except OSError as e:
        raise UserError(f"{path} cannot be read ({e.strerror}): restore the file, or give another folder") from e
    if not isinstance(config, DictConfig) or not config:
        raise UserError(f"{path} is not a mapping of settings: restore the file")
    if path.name == RUN_FILE:
        for name in YOUNG:
            config.setdefault(name, {})
        missing = [name for name in ("task", "policy", "output_dir", *SECTIONS) if config.get(name) is None]
        if missing:
            raise UserError(f"{path} has no {missing[0]}: it was cut off; restore the file")
    return config


def write_yaml(path: Path, config: DictConfig) -> None:
    """Beside its place, flushed, then renamed: a file of this name is whole."""
    work = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with work.open("w", encoding="utf-8") as f:
        f.write(OmegaConf.to_yaml(config, resolve=True))
        f.flush()
        os.fsync(f.fileno())
    work.replace(path)


def _root() -> DictConfig:
    try:
        return compose([])
    except UserError:
        return OmegaConf.create()


def drop(config: DictConfig, *keys: str) -> None:
    """Take settings out, where they are there."""
    OmegaConf.set_struct(config, False)
    for key in keys:
        parent, _, leaf = key.rpartition(".")
        node = OmegaConf.select(config, parent) if parent else config
        if isinstance(node, DictConfig):
            node.pop(leaf, None)
    OmegaConf.set_struct(config, True)


def _has(config: DictConfig, key: str) -> bool:
    parent, _, leaf = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    return isinstance(node, DictConfig) and leaf in node


def cpus() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
