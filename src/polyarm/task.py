"""A `task` node of the configuration: its world and its demonstrations."""

from __future__ import annotations

import inspect
import re
import shlex
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from polyarm.choices import sources
from polyarm.config import CONFIGS, compose, cpus, make
from polyarm.datasets.demos import Demos
from polyarm.datasets.derived import Derived
from polyarm.datasets.keyposes import Keyposed
from polyarm.datasets.rotated import Rotated
from polyarm.datasets.store import open_store
from polyarm.derive import RESERVED, Derivation
from polyarm.keypose import KINDS, Keyposes
from polyarm.keypose import RESERVED as KEYPOSES
from polyarm.spec import Spec, UserError, unknown


def open_demos(task: DictConfig, derived: bool = True) -> Demos:
    """The task's demonstrations, at their keyposes where `action_kind` says so, with the actions' rotations as `action_rotation`
    says, and with the streams that are `derived`.

    `demos` names by `_target_` what opens them, any function of its other settings that gives a `Demos`. One that takes `spec`
    is given the world's, for files that do not say what their numbers mean.
    """
    node = _with_target(task.demos)
    opening = make(node)
    takes = inspect.signature(opening.partial.func).parameters
    try:
        demos = opening(**({"spec": world_spec(task)} if "spec" in takes else {}))
    except (UserError, OSError) as e:
        if isinstance(e, UserError) and has_demos(task):
            raise
        raise _missing(task, e) from e
    if not isinstance(demos, Demos):
        raise UserError(
            f"task.demos._target_={node._target_} gives {type(demos).__name__}: give what keeps polyarm.datasets.demos.Demos"
        )
    if (how := keyposes(task)) is not None and demos.spec.action.kind == "trajectory":
        demos = Keyposed(demos, how)
    if (layout := task.get("action_rotation")) is not None:
        demos = Rotated(demos, layout)
    made = derivations(task) if derived else {}
    return Derived(demos, made) if made else demos


def derivations(task: DictConfig) -> dict[str, Derivation]:
    """{stream: how it is made} of those of `task.derive` that the task sees."""
    made = {}
    for name, node in (task.get("derive") or {}).items():
        if task.streams is not None and name not in task.streams:
            continue
        if not isinstance(node, DictConfig) or not isinstance(node.get("_target_"), str):
            raise UserError(
                f"task.derive.{name}={node}: give what makes it, such as {{_target_: polyarm.cloud.PointMap, camera: front}}"
            )
        how = make(node)()
        if not isinstance(how, Derivation):
            raise UserError(
                f"task.derive.{name}._target_={node._target_} gives {type(how).__name__}: give what keeps polyarm.derive.Derivation"
            )
        made[str(name)] = how
    return made


def keyposes(task: DictConfig) -> Keyposes | None:
    """`task.keyposes` where `task.action_kind` is keypose."""
    kind, node = task.get("action_kind", "trajectory"), task.get("keyposes")
    if kind not in KINDS:
        raise unknown("kind in task.action_kind", str(kind), KINDS)
    if kind == "trajectory":
        return None
    if not isinstance(node, DictConfig) or not isinstance(node.get("_target_"), str):
        raise UserError(
            f"task.action_kind=keypose with task.keyposes={node}: say how keyposes are found and moved between, as in "
            "configs/world/maniskill.yaml"
        )
    how = make(node)()
    if not isinstance(how, Keyposes):
        raise UserError(f"task.keyposes._target_={node._target_}: give polyarm.keypose.Keyposes")
    return how


def fitting(settings: Sequence[str]) -> list[str]:
    """The words of a training, with `task=own` where they name a store but no task, and the store is of no world that the
    default task plays in: it holds other streams, or comes from people or a robot."""
    given = {word.lstrip("+~").partition("=")[0].partition("@")[0] for word in settings}
    path = next((word.partition("=")[2] for word in settings if word.startswith("task.demos.path=")), "").strip("'\"")
    if not path or given & {"task", "experiment", "task.env_id", "task.measure", "task.demos._target_"}:
        return list(settings)
    try:
        spec, default = open_store(Path(path).expanduser()).spec, compose([]).task
    except UserError:  # said where the demonstrations are opened
        return list(settings)
    if "env" in spec.versions and set(default.streams) <= set(spec.obs.names):
        return list(settings)
    print(
        f"{path} holds {', '.join(spec.obs.names)}, not of the world of {default.name}: training on all of it with task=own, which "
        "is judged offline, by the action error on held-out episodes",
        file=sys.stderr,
    )
    return ["task=own", *settings]


def has_demos(task: DictConfig) -> bool:
    """Whether there is something at `task.demos.path`; true for demonstrations that lie at no path."""
    path = task.demos.get("path")
    return path is None or Path(path).exists()


def _with_target(demos: DictConfig) -> DictConfig:
    """Checkpoints older than `_target_` told the two kinds of files by `fields`."""
    if "_target_" in demos:
        return demos
    if demos.get("fields") is None:
        return OmegaConf.create({"_target_": "polyarm.datasets.store.open_store", "path": demos.path})
    return OmegaConf.create({"_target_": "polyarm.datasets.replay_buffer.open_replay_buffer", **demos})


def _missing(task: DictConfig, error: Exception) -> UserError:
    path = task.demos.get("path")
    if has_demos(task):
        return UserError(
            f"the demonstrations {path or ''} cannot be opened ({error}): name others with task.demos.path=..."
        )
    if task.expert:
        mine = [word for folder in sources()[1:] for word in ("--configs", str(folder))]
        command = shlex.join(["polyarm", "collect", *mine, f"task={task.name}", f"task.demos.path={path}"])
        hint = f"make them with `{command}`"
    else:
        variable = _variable(task.name)
        how = "put them there" if task.env_id else "make them of your arrays with polyarm.datasets.arrays"
        hint = f"set ${variable} to where they are" if variable else how
        if task.get("source"):
            hint = f"have them from {task.source}, and {hint}"
    return UserError(
        f"the demonstrations {path} do not exist: {_near(path)}{hint}, or name others with task.demos.path=..."
    )


def _near(path: Any) -> str:
    """A store beside it with almost this name, for one that is mistyped."""
    there = Path(str(path))
    beside = [p.name for p in there.parent.glob("*.zarr")] if there.parent.is_dir() else []
    return next((f"did you mean {there.parent / name}? " for name in get_close_matches(there.name, beside, n=1)), "")


def _variable(task: str) -> str | None:
    """The environment variable that the task's file looks at for its demonstrations."""
    file = CONFIGS / "task" / f"{task}.yaml"
    text = file.read_text() if file.exists() else ""
    found = re.search(r"^  path: \$\{oc\.env:(\w+)", text, re.MULTILINE)
    return found[1] if found else None


def world_kwargs(task: DictConfig, derived: bool = True, moved: bool = True) -> dict[str, Any]:
    """The settings of the task's world and, among them, the streams that are `derived` of what it shows, and how it is `moved`
    between keyposes."""
    if not isinstance(task.env_kwargs, DictConfig):
        raise UserError(f"task.env_kwargs={task.env_kwargs}: give the world's settings by name, or {{}} for none")
    for name, what in ((RESERVED, "streams that are made of a world's"), (KEYPOSES, "keyposes")):
        if name in task.env_kwargs:
            raise UserError(f"task.env_kwargs.{name}: {what} are given as task.{name}")
    kwargs: dict[str, Any] = {**OmegaConf.to_container(task.env_kwargs)}  # type: ignore[dict-item]
    if derived and (made := derivations(task)):
        kwargs[RESERVED] = made
    if moved and (how := keyposes(task)) is not None:
        kwargs[KEYPOSES] = how
    return kwargs


def world_spec(task: DictConfig) -> Spec:
    """What the numbers mean that the world itself shows."""
    from polyarm.sim.world import make_world, spec_of

    world = make_world(task.env_id, world_kwargs(task, derived=False, moved=False))
    try:
        return spec_of(world, task.env_id)
    finally:
        world.close()


def count_workers(wanted: Any, most: int) -> int:
    """Processes for `most` pieces of work: one a core, or as told (0: in this process)."""
    if wanted == "auto":
        return min(most, cpus())
    if not isinstance(wanted, int) or wanted < 0:
        raise UserError(f"workers={wanted}: give a number of processes, 0 for none, or auto")
    return min(wanted, most)
