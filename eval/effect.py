"""What an evaluation still takes from a task. The rest went into the policy when it was trained, and a word that changes nothing is
refused."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from polyarm.config import OFFLINE, make
from polyarm.eval.place import key_of
from polyarm.spec import UserError

FINDS = ("joints", "marks", "slow_rad_s", "line_m")
"""Settings of `task.keyposes` that only demonstrations are read by."""
MOVES = ("stride_m", "stride_rad", "near_m", "near_rad", "move_s", "grip_s", "most")
"""Those that only a world goes by."""
LEARNT = "how its demonstrations were read is part of a policy"
SEES = "what a policy sees is part of it"


def require_effect(owns: Sequence[DictConfig], config: DictConfig, overrides: Sequence[str]) -> None:
    """Refuse a word of `overrides` that changes the task, and nothing of what is judged. `owns`: the configurations of the
    checkpoints that act; `config`: the first one's under the overrides."""
    own = owns[0]
    for word in overrides:
        key = key_of(word)
        if not key.startswith("task."):
            continue
        then, now = OmegaConf.select(own, key, default=None), OmegaConf.select(config, key, default=None)
        if then == now:
            continue
        without = config.copy()
        OmegaConf.update(without, key, then, merge=False, force_add=True)
        if taken(without, owns) == taken(config, owns):
            raise UserError(
                f"{word} would change nothing, for {_why(key, config)}: leave it out, or train another with it"
            )


def taken(config: DictConfig, owns: Sequence[DictConfig]) -> dict[str, Any]:
    """The part of `config.task` that can tell in an evaluation of policies that were trained with `owns`."""
    task: dict[str, Any] = OmegaConf.to_container(config.task, resolve=True)  # type: ignore[assignment]
    names = ["name", "demos", "measure", "action_kind"]
    if task["measure"] != OFFLINE:
        names += ["env_id", "env_kwargs", "success"]
    elif "spec" in inspect.signature(make(config.task.demos).partial.func).parameters:
        names += ["env_id", "env_kwargs"]  # the world says what the demonstrations mean
    part = {name: task.get(name) for name in names}
    part["derive"] = {name: node for name, node in (task.get("derive") or {}).items() if _seen(name, config, owns)}
    if task.get("action_kind") == "keypose":
        idle = MOVES if task["measure"] == OFFLINE else FINDS
        part["keyposes"] = {name: value for name, value in (task.get("keyposes") or {}).items() if name not in idle}
    return part


def _seen(stream: str, config: DictConfig, owns: Sequence[DictConfig]) -> bool:
    """Whether it is made, and a policy looks at it."""
    sees = [own.task.streams for own in owns]
    return any(s is None or stream in s for s in sees) and (
        config.task.streams is None or stream in config.task.streams
    )


def _why(key: str, config: DictConfig) -> str:
    _, first, *rest = key.split(".")
    if first in ("see", "sees", "streams", "cameras"):
        return SEES
    if first == "derive":
        return f"the policy does not see {rest[0]}" if rest else SEES
    world = first in ("env_id", "env_kwargs", "success") or first == "keyposes" and rest and rest[0] in MOVES
    if world and config.task.measure == OFFLINE:
        return f"no world is played with task.measure={OFFLINE}"
    if first == "keyposes" and config.task.get("action_kind") != "keypose":
        return "this policy is told no keyposes (task.action_kind=trajectory)"
    return "an expert plays only at `polyarm collect`" if first == "expert" else LEARNT
