"""Whose code a checkpoint may run.

A configuration calls what it names by `_target_`, so to read a stranger's is to run what they chose. A checkpoint's may name

- what polyarm offers to configurations: public classes and functions that are *defined* in the rooms of `OFFERED`. It is a rule
  by room and not a list, so that a new policy, net or form is one file as ever; and these rooms compute, they neither write nor
  start nor fetch anything (`policies.checkpoint`, which does, has only functions, and of policies and encoders only classes
  are offered). In its task also what polyarm's own yaml of tasks names, the experts, and of
  polyarm.cloud what makes streams, of polyarm.keypose what says how keyposes are found;
- what the user trusts by name in this process: `trust` and `trusting`.

Everything else is blocked, at any depth, whatever a value is for. A name counts where it leads: `polyarm.config.os.system` leads
to os. What is not allowed is not imported to look at it, for importing runs code. An interpolation (`${oc.env:...}`) would put
what this machine knows into results, and polyarm writes none: refused. What the user gives on the command line is their own.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from polyarm.spec import UserError

OFFERED: dict[str, tuple[type, ...]] = {
    "polyarm.policies": (type,),
    "polyarm.policies.nets": (type, FunctionType),
    "polyarm.policies.generate": (type, FunctionType),
    "polyarm.encoders": (type,),
}
"""Rooms, and what of them a configuration may name."""
EXPERTS = {"polyarm.sim.experts": (type,)}
DERIVED = {"polyarm.cloud": (type,)}
KEYPOSES = {"polyarm.keypose": (type,)}
FINDERS = ("hydra.utils.get_method", "hydra.utils.get_class", "hydra.utils.get_object", "hydra.utils.get_static_method")
"""Targets that give what their `path` names; older checkpoints hold one."""

_trusted: set[str] = set()


def trust(*names: str) -> None:
    """Let checkpoints name, in this process, what these modules define; a name covers what lies below it."""
    for name in names:
        if not _is_name(name):
            raise UserError(f"--trust {name}: give the name of a module as Python imports it, such as my_policies")
        if name.partition(".")[0] == "polyarm":
            raise UserError(f"--trust {name}: what checkpoints may name of polyarm they may already; leave it out")
    _trusted.update(names)


@contextmanager
def trusting(names: Sequence[str], folders: Sequence[Path]) -> Iterator[None]:
    """Within it also these modules are trusted, and one by one what the yaml of these folders of the user's own names."""
    before = set(_trusted)
    trust(*names, *(name for folder in folders for name in named(folder)))
    try:
        yield
    finally:
        _trusted.intersection_update(before)


def named(folder: Path) -> list[str]:
    """What the yaml of a folder names that is not polyarm's: targets, experts, and modules of worlds."""
    found: set[Any] = set()
    for file in sorted(Path(folder).rglob("*.yaml")):
        try:
            node = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
        except (OSError, ValueError, YAMLError, OmegaConfBaseException):
            continue  # said where the file is used
        found |= {name for _, name in _targets(node) if isinstance(name, str)}
        task = node.get("task", node) if isinstance(node, dict) else None
        if isinstance(task, dict):
            found |= {str(task.get("expert")), str(task.get("env_id")).rpartition(":")[0]}
    return sorted(
        n for n in found if _is_name(n) and n not in FINDERS and n.partition(".")[0] not in ("polyarm", "None")
    )


def trusted() -> tuple[str, ...]:
    """What was trusted so far, for a process that this one starts."""
    return tuple(sorted(_trusted))


def require_trusted(config: DictConfig, where: str, own: DictConfig | None = None) -> None:
    """Refuse the configuration of the checkpoint `where` if it names what it may not. `own`: the user's, who may name
    anything there and so here too."""
    plain = OmegaConf.to_container(config, resolve=False)
    for key, text in _texts(plain):
        if "${" in text:
            raise UserError(
                f"{where} has {text!r} at {key}, to be filled in on this machine: a checkpoint holds values only; write the value there"
            )
    mine = [name for _, name in _targets(OmegaConf.to_container(own, resolve=False))] if own is not None else []
    for key, name in _targets(plain):
        of_task = {"task.expert": EXPERTS, "task.keyposes._target_": KEYPOSES}.get(key, {})
        of_task = DERIVED if key.startswith("task.derive.") else of_task
        rooms = OFFERED | of_task
        if not (name in mine or (key.startswith("task.") and name in _of_tasks())):
            _require(name, key, where, rooms)
    task = plain.get("task") if isinstance(plain, dict) else None
    if isinstance(task, dict):
        _require_world(task.get("env_id"), where, own)


def _require(name: Any, key: str, where: str, rooms: dict[str, tuple[type, ...]]) -> None:
    """Refuse a name that leads outside the rooms and outside what is trusted."""
    if not isinstance(name, str) or not _is_name(name):
        raise _blocked(where, key, name, "")
    module = name.rpartition(".")[0]
    if name in _trusted:
        return
    room = max((r for r in rooms if _below(name, r)), key=len, default=None)
    own = any(_below(name, t) for t in _trusted)
    if room is None and not own:
        raise _blocked(where, key, name, module)
    found = _follow(name, [room] if room is not None else sorted(_trusted), where)
    if found is None:
        raise _blocked(where, key, name, module)
    leads = f"{getattr(found, '__module__', '')}.{getattr(found, '__qualname__', '')}"
    if own and any(_below(leads, t) for t in _trusted):
        return
    room = max((r for r in rooms if _below(leads, r)), key=len, default=None)
    of_module = leads.removeprefix(f"{found.__module__}.")
    if room is None or not of_module.isidentifier() or of_module[0] == "_" or not isinstance(found, rooms[room]):
        raise _blocked(where, key, name, module)


def _follow(name: str, homes: list[str], where: str) -> Any:
    """What a dotted name leads to, as hydra finds it; None as soon as it leaves `homes`. Only homes, what is above and what is
    below them is imported."""
    inside = lambda module: any(_below(module, home) or _below(home, module) for home in homes)
    found: Any = None
    for at, part in enumerate(name.split(".")):
        path = ".".join(name.split(".")[: at + 1])
        if found is None or (isinstance(found, ModuleType) and not hasattr(found, part) and inside(path)):
            found = _import(path, name, where)
        elif hasattr(found, part):
            found = getattr(found, part)
        else:
            raise UserError(f"{where} names {name}, but {path} does not exist: use the version of it that trained this")
        if not inside(found.__name__ if isinstance(found, ModuleType) else str(getattr(found, "__module__", ""))):
            return None
    return None if isinstance(found, ModuleType) or not callable(found) else found


def _import(module: str, name: str, where: str) -> ModuleType:
    try:
        return import_module(module)
    except Exception as e:  # whatever a module does
        raise UserError(
            f"{where} names {name}, and {module} cannot be imported ({type(e).__name__}: {e}): install it, or put its folder "
            "on PYTHONPATH"
        ) from e


def _require_world(env_id: Any, where: str, own: DictConfig | None) -> None:
    """polyarm's worlds; `module:Name-v0` of a trusted module; and one that the user's own code has registered in this process.
    gymnasium's own are not meant: some of them make whatever their settings name."""
    if env_id is None or (own is not None and own.task.get("env_id") == env_id):
        return
    module = env_id.rpartition(":")[0] if isinstance(env_id, str) else ""
    if isinstance(env_id, str) and not module:
        module = _registered(env_id)
        if env_id.startswith("polyarm/") or (module in sys.modules and not module.startswith(("gym", "shimmy"))):
            return
    if not any(_below(module, t) for t in _trusted):
        raise _blocked(where, "task.env_id", env_id, module)


def _registered(world: str) -> str:
    """The module that a world's class lies in, as gymnasium has it."""
    from gymnasium import registry

    entry: Any = registry[world].entry_point if world in registry else ""
    return str(entry.partition(":")[0] if isinstance(entry, str) else getattr(entry, "__module__", ""))


def _blocked(where: str, key: str, name: Any, module: str) -> UserError:
    hint = "restore the file, or train again"
    if _is_name(module) and module.partition(".")[0] != "polyarm":
        hint = (
            f"if you know and trust that code, give --configs and the folder it lies in, or --trust {module} with that folder on "
            "PYTHONPATH"
        )
    return UserError(
        f"{where} names {name} at {key}, which is blocked: a checkpoint may only name polyarm's own policies, networks, encoders "
        f"and worlds, and modules that you trust; {hint}"
    )


def _targets(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """(where, name) of everything in a tree that names code."""
    if isinstance(node, dict):
        if "_target_" in node:
            name = node["_target_"]
            if name in FINDERS:
                name = node.get("path") if set(node) <= {"_target_", "path"} else None
            yield f"{key}_target_", name
        if key == "task." and node.get("expert") is not None:
            yield "task.expert", node["expert"]
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list | tuple) else ()
    for name, value in items:
        yield from _targets(value, f"{key}{name}.")


def _texts(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(where, text) of every text in a tree, keys included."""
    if isinstance(node, str | bytes):
        yield key.rstrip("."), node if isinstance(node, str) else node.decode(errors="replace")
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list | tuple) else ()
    for name, value in items:
        if isinstance(name, str):
            yield f"{key}{name}", name
        yield from _texts(value, f"{key}{name}.")


@cache
def _of_tasks() -> frozenset[str]:
    """What polyarm's own yaml of tasks names, such as how demonstrations are opened."""
    files = (Path(__file__).parent / "configs" / "task").glob("*.yaml")
    trees = [OmegaConf.to_container(OmegaConf.load(file), resolve=False) for file in files]
    return frozenset(name for tree in trees for _, name in _targets(tree))


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and all(part.isidentifier() for part in name.split("."))


def _below(name: str, home: str) -> bool:
    return name == home or name.startswith(home + ".")
