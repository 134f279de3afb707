"""The words of a command line, told apart: places, settings `key=value`, and options."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from polyarm.choices import adding
from polyarm.spec import UserError

SETTING = re.compile(r"(\+{1,2})?[A-Za-z_$][\w.$-]*(@[\w.$-]+)?=.*|~[A-Za-z_$][\w.$@-]*(=.*)?", re.ASCII | re.DOTALL)
"""What a setting looks like beside places: before its first `=` nothing but a dotted name."""


@dataclass(frozen=True)
class Takes:
    """What a command takes. `place`: what its words that are no settings are, "" for none."""

    place: str = ""
    settings: bool = True
    switches: tuple[str, ...] = ()
    weights: bool = False

    @property
    def options(self) -> tuple[str, ...]:
        return (*(("--configs", "--trust") if self.settings else ()), *(("--weights",) if self.weights else ()),
                *self.switches, "--json")  # fmt: skip


@dataclass
class Words:
    """`command`: the line itself, less `--json`. `trusted`: modules whose classes checkpoints may name."""

    command: str
    raw: tuple[str, ...] = ()
    places: list[str] = field(default_factory=list)
    settings: list[str] = field(default_factory=list)
    configs: list[Path] = field(default_factory=list)
    trusted: list[str] = field(default_factory=list)
    switches: set[str] = field(default_factory=set)
    weights: list[float] = field(default_factory=list)

    def gives(self, key: str) -> bool:
        """Whether a setting of this name is among the words."""
        return any(word.lstrip("+").partition("=")[0] == key for word in self.settings)

    def line(self, *more: str) -> str:
        """The command that was given, with more words, for a shell."""
        return shlex.join(["polyarm", self.command, *self.raw, *more])

    @property
    def mine(self) -> list[str]:
        """The words that name yaml and code of the user's own, for another command."""
        folders = (word for folder in self.configs for word in ("--configs", str(folder)))
        return [*folders, *(word for name in self.trusted for word in ("--trust", name))]

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Within it, yaml of `--configs` is found, and its modules and those of `--trust` are trusted."""
        from polyarm.trust import trusting

        with adding(self.configs), trusting(self.trusted, self.configs):
            yield


def parse(command: str, raw: Sequence[str], takes: Takes) -> Words:
    """An existing path is a place, whatever is in its name; then comes what looks like a setting."""
    words, rest, weighing = Words(command, tuple(raw)), list(raw), False
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if name in ("--configs", "--trust") and name in takes.options:
            _option(words, name, value if equals else rest.pop(0) if rest else "")
        elif word in takes.switches:
            words.switches.add(word)
        elif word == "--weights" and takes.weights:
            weighing = True
        elif weighing and _number(word) is not None:
            words.weights.append(_weight(word))
        elif word.startswith("-") and not os.path.lexists(word):
            raise UserError(
                f"polyarm {command} takes {'settings as key=value and ' if takes.settings else ''}{', '.join(takes.options)}, not "
                f"{word!r}: see `polyarm {command} --help`"
            )
        elif takes.place and (os.path.lexists(word) or not takes.settings or not SETTING.fullmatch(word)):
            if weighing and not os.path.lexists(word):
                raise UserError(f"weight {word!r} is no number: give one a policy, such as --weights 0.4 0.6")
            words.places.append(os.path.expanduser(word))
        elif takes.settings and ("=" in word or word.startswith("~")):
            words.settings.append(word)
        elif takes.settings:
            raise UserError(
                f"polyarm {command} takes settings as key=value, not {word!r}: see `polyarm {command} --help`"
            )
        else:
            raise UserError(f"polyarm {command} takes no settings, not {word!r}: leave it out")
    return words


def shares(weights: Any, n: int) -> list[float]:
    """One weight for each of n policies, as given, or equal where none are; they sum to one."""
    if weights is None:
        return [1 / n] * n
    try:
        found = [float(weight) for weight in weights]
    except (TypeError, ValueError):
        raise UserError(f"weights={weights!r}: give a number a policy, such as [0.4, 0.6]") from None
    if len(found) != n:
        raise UserError(f"{len(found)} weights for {n} policies: give one a policy")
    if not abs(sum(found) - 1) < 1e-6:
        raise UserError(f"weights {found} sum to {sum(found):g}, not to 1: divide each by their sum")
    return found


def _option(words: Words, name: str, value: str) -> None:
    if name == "--trust":
        if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", value):
            raise UserError(f"--trust {value}: give the dotted name of a module whose classes checkpoints may name")
        words.trusted.append(value)
        return
    folder = Path(value).expanduser()
    if not value or not folder.is_dir():
        raise UserError(
            f"--configs {value} is no folder: give one that holds policy/NAME.yaml, task/NAME.yaml or the like"
        )
    words.configs.append(folder.absolute())


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None


def _weight(word: str) -> float:
    weight = float(word)
    if not isfinite(weight):
        raise UserError(f"weight {word}: give a finite number, such as --weights 0.4 0.6")
    return weight
