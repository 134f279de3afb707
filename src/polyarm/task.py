"""A `task` node of the configuration: its world and its demonstrations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from polyarm.config import cpus
from polyarm.datasets.demos import Demos
from polyarm.datasets.field import Field, FieldStore
from polyarm.datasets.store import Store
from polyarm.datasets.turned import Turned
from polyarm.spec import Spec, UserError


def open_demos(task: DictConfig) -> Demos:
    """The task's demonstrations, with the actions' rotations as `action_rotation` says. A store of polyarm's own says what its
    numbers mean; for the field's files the world does."""
    demos = _open_demos(task)
    layout = task.get("action_rotation")
    return demos if layout is None else Turned(demos, layout)


def _open_demos(task: DictConfig) -> Demos:
    path = Path(task.demos.path)
    if not path.exists():
        hint = f"make them with `polyarm collect task={task.name}`" if task.expert else "put them there"
        raise UserError(f"the demonstrations {path} do not exist: {hint}, or name others with task.demos.path=...")
    if task.demos.fields is None:
        return Store.open(path)
    fields = OmegaConf.to_container(task.demos.fields)
    return FieldStore(path, world_spec(task), {name: Field.of(name, where) for name, where in fields.items()})


def world_kwargs(task: DictConfig) -> dict[str, Any]:
    if not isinstance(task.env_kwargs, DictConfig):
        raise UserError(f"task.env_kwargs={task.env_kwargs}: give the world's settings by name, or {{}} for none")
    return dict(OmegaConf.to_container(task.env_kwargs))


def world_spec(task: DictConfig) -> Spec:
    """What the world's numbers mean."""
    from polyarm.sim.world import make_world, spec_of

    world = make_world(task.env_id, world_kwargs(task))
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
