"""What is said at the start of an episode, and which thing then counts."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import UInt8

from polyarm.spec import UserError, unknown
from polyarm.text import text_row

LENGTH = 32
"""Bytes of an instruction."""
SAY = ("right", "wrong", "nothing")


class Said:
    """`says` {thing: its instruction}. `which`: the thing that counts; None: each episode draws one. `say`: right; wrong, the
    instruction of another thing; nothing; or other words, with {} where the thing's name goes. A world without instructions has one
    where `say` is words."""

    def __init__(self, says: Mapping[str, str], which: str | None, say: str, world: str) -> None:
        if not says and (which is not None or say in SAY[1:]):
            raise UserError(
                f"{world} has no instruction: leave which out of task.env_kwargs, and give say as words, such as 'push the cube'"
            )
        if not says and say not in SAY:
            says, say = {"": str(say)}, "right"
        if which is not None and which not in says:
            raise unknown(f"thing of {world} in task.env_kwargs.which", str(which), says)
        if say not in SAY and "{}" not in str(say):
            raise unknown("way to say it, or words with {} for the thing, in task.env_kwargs.say", str(say), SAY)
        told = says if say in SAY else {thing: str(say).replace("{}", thing) for thing in says}
        self._rows = {thing: text_row(text, LENGTH) for thing, text in told.items()}
        self._which, self._say = which, say

    def __bool__(self) -> bool:
        """Whether there is anything to say."""
        return bool(self._rows)

    def draw(self, rng: np.random.Generator) -> tuple[str, UInt8[np.ndarray, "t"]]:
        """(the thing that counts, what is said)"""
        things = list(self._rows)
        drawn = things[int(rng.integers(len(things)))]
        thing = drawn if self._which is None else self._which
        if self._say == "nothing":
            return thing, text_row("", LENGTH)
        others = [x for x in things if x != thing]
        return thing, self._rows[others[int(rng.integers(len(others)))] if self._say == "wrong" else thing]
