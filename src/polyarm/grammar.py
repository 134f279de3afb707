"""A word of a command line, `key=value`, in hydra's grammar. The shell's word is the value: what hydra would choke on, or read
as a list or a sweep where a path is meant, is quoted for it."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString, Sweep
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from polyarm.choices import groups, options
from polyarm.ranges import RANGES
from polyarm.spec import UserError

PATHS = (
    "output_dir",
    "task.demos.path",
    "collect.path",
    "record.path",
    "record.policy",
    "policy.teacher",
    "hydra.sweep.dir",
    "hydra.run.dir",
)
"""Settings whose value is a place, whatever it looks like: a,b or [x] too."""
NESTED = {"sampler": "sampler@policy.sampler"}
"""Groups that a policy's own file chooses from, and hydra's name for them; a command line says plainly `sampler=ddpm`."""


def hydra_word(word: str, config: DictConfig, sweep: bool = False) -> str:
    """`word` as hydra takes it. `config`: what it would change; `sweep`: commas separate the values of several jobs."""
    mark, key, equals, value = _split(word)
    key = NESTED.get(key, key)
    if equals and not mark.startswith("~"):
        group = key.partition("@")[0] in groups()
        if key in PATHS and not (sweep and _reads(f"x={value}")):
            value = ",".join(map(_place, value.split(","))) if sweep else _place(value)
        elif not _reads(f"x={value}"):
            value = _structure(value) or (quoted(value) if group or _takes_text(config, key) else value)
        elif group and not sweep and not isinstance(_parse(f"{key}={value}", word).value(), str | list | Sweep):
            if value.strip() == "null":
                raise UserError(f"{word}: give {_one(key)}, or leave it out with ~{key}")
            value = quoted(value)
        elif not sweep and _parse(f"{key}={value}", word).is_sweep_override():
            if group or not _takes_text(config, key):
                raise UserError(f"{word} names several values: add --multirun to train with each, or give {_one(key)}")
            value = quoted(value)
    made = f"{mark}{key}{equals}{value}"
    _parse(made, word)
    return made


def parse(words: Sequence[str], config: DictConfig) -> list[Override]:
    """Words over a configuration that is there: one value each."""
    return [_parse(hydra_word(word, config), word) for word in words]


def setting(key: str, value: Any) -> str:
    """The word that gives a setting this value, whatever it holds: text, a path, a number, true or false, None, and lists and
    mappings of these."""
    if not isinstance(value, str | os.PathLike):
        return f"{key}={_literal(value)}"
    value = os.fspath(value)
    taken = _reads(hydra_word(f"{key}={value}", OmegaConf.create()))
    return f"{key}={value}" if taken is not None and taken.value() == value else f"{key}={quoted(value)}"


def quoted(value: str) -> str:
    return QuotedString(value, Quote.single).with_quotes()


def _split(word: str) -> tuple[str, str, str, str]:
    mark, key, equals, value = re.fullmatch(r"(\+{1,2}|~)?([^=]*)(=?)(.*)", word, re.DOTALL).groups()  # type: ignore[union-attr]
    return mark or "", key, equals, value


def _reads(word: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(word)
    except (HydraException, AssertionError, ValueError):
        return None


def _parse(made: str, word: str) -> Override:
    found, key = _reads(made), _split(word)[1]
    if found is None or not key:
        like = f", {RANGES[key].expect}" if key in RANGES else ""
        raise UserError(
            f"{word!r} cannot be read as a setting: write key=value{like}, with brackets closed, or put the value in quotes"
        )
    return found


def _place(value: str) -> str:
    """A path as hydra takes it; in quotes of its own, or with ${...} in it, it is hydra's already."""
    if (
        re.fullmatch(r"[+-]?[\d.]+(e[+-]?\d+)?|null|true|false", value, re.IGNORECASE)
        or "${" in value
        or re.fullmatch(r"'.*'|\".*\"", value, re.DOTALL)
    ):
        return value if _reads(f"x={value}") else quoted(value)
    return quoted(os.path.expanduser(value))


def _structure(value: str) -> str | None:
    """A list or mapping that yaml reads and hydra's grammar does not, such as [a=1, b=2], for hydra."""
    try:
        found = OmegaConf.to_container(OmegaConf.from_dotlist([f"x={value}"]))
    except (YAMLError, OmegaConfBaseException):
        return None
    made = _literal(found["x"]) if isinstance(found, dict) and isinstance(found.get("x"), list | dict) else ""
    return made if made and _reads(f"x={made}") else None


def _literal(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ",".join(f"{k}:{_literal(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_literal, value)) + "]"
    if isinstance(value, str | os.PathLike):
        return quoted(os.fspath(value))
    return "null" if value is None else str(value).lower()


def _takes_text(config: DictConfig, key: str) -> bool:
    """Any text: as the setting's rule says, or where text stands now, or nothing."""
    if key in RANGES:
        return RANGES[key].free
    try:
        now = OmegaConf.select(config, key)
    except OmegaConfBaseException:
        return False
    return now is None or isinstance(now, str)


def _one(key: str) -> str:
    if (group := key.partition("@")[0]) in groups():
        return f"one of {', '.join(options(group))}"
    return RANGES[key].expect if key in RANGES else "one, with lists in brackets as [a,b]"
