"""polyarm: robot-manipulation policies trained, judged, mixed and run in one house.

From Python (docs/python.md): `polyarm.train`, `polyarm.evaluate`, `polyarm.load`. They are loaded when they are first used, so that
importing polyarm is instant.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polyarm.api import evaluate as evaluate
    from polyarm.api import load as load
    from polyarm.api import train as train
    from polyarm.spec import UserError as UserError

__version__ = "0.1.0"

_HOMES = {"evaluate": "polyarm.api", "load": "polyarm.api", "UserError": "polyarm.spec"}
"""Names of the Python interface, and where they are defined; `train` is the module of that name."""


class Verb(ModuleType):
    """The class of a module that is also what it is named for: `polyarm.train(...)` is `polyarm.api.train(...)`, while
    `polyarm.train.fit` stays the loop."""

    def __call__(self, *settings: Any, **more: Any) -> Any:
        """As `polyarm.api` says."""
        return self._verb(*settings, **more)

    @property
    def __signature__(self) -> Any:
        from inspect import signature

        return signature(self._verb)

    @property
    def _verb(self) -> Any:
        return getattr(import_module("polyarm.api"), self.__name__.rpartition(".")[2])


def __getattr__(name: str) -> Any:
    if name == "train":
        return import_module("polyarm.train")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'polyarm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, "train"})
