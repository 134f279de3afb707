"""Whether a gymnasium environment's spaces and arrays are what was said of them; if not, what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from polyarm.sim.world import kind
from polyarm.spec import Spec, Stream, UserError, unknown

WRAP = "wrap it, such as with gymnasium.wrappers.TransformObservation"


def require_shows(space: Any, keys: Mapping[str, Stream], name: str) -> None:
    """Refuse unless the environment's observations are what the streams say."""
    if not isinstance(space, spaces.Dict):
        if len(keys) != 1:
            raise UserError(
                f"{name} shows one array, {kind(space)}, and {len(keys)} streams are said: say one, or give a Dict"
            )
        space = spaces.Dict(dict.fromkeys(keys, space))
    for key, stream in keys.items():
        what = f"the observation {key!r} of {name}"
        if key not in space.spaces:
            raise unknown(f"observation of {name}", key, space.spaces)
        box = space.spaces[key]
        if not isinstance(box, spaces.Box):
            raise UserError(f"{what} is {kind(box)}: policies see arrays of numbers, so give a Box; {WRAP}")
        require_fits(box.shape, np.dtype(box.dtype), stream, what, float(box.high.max(initial=0)))


def require_fits(shape: tuple[int, ...], dtype: np.dtype, stream: Stream, what: str, high: float = 255) -> None:
    here, want = f"{dtype} {shape}", f"{stream.dtype} {stream.shape}"
    if dtype.kind not in "biuf":
        raise UserError(f"{what} is {here}, the stream was said to be {want}: give numbers")
    if shape != stream.shape:
        raise UserError(f"{what} is {here}, the stream was said to be {want}: {_reshaped(shape, stream)}")
    if not stream.low_dim and dtype != np.dtype(stream.dtype):
        scaled = "(x * 255).round().astype(np.uint8)" if high <= 1 else "x.round().astype(np.uint8)"
        remedy = f"give {scaled}" if stream.dtype == "uint8" else f"give x.astype(np.{stream.dtype})"
        raise UserError(f"{what} is {here}, the stream was said to be {want}: {remedy}; {WRAP}")
    if stream.kind == "image" and high <= 1:
        raise UserError(f"{what} is {here} with nothing above 1, which is black: scale it to 0 to 255; {WRAP}")


def _reshaped(shape: tuple[int, ...], stream: Stream) -> str:
    """What to do about an array of another shape."""
    if stream.low_dim:
        if len(shape) == 1:
            return f"name its {shape[0]} channels, {stream.names[0]} and so on"
        return "flatten it with gymnasium.wrappers.FlattenObservation, or " + WRAP.removeprefix("wrap it, ")
    if stream.kind != "image":
        return "say its shape"
    height, width, _ = stream.shape
    if shape == (3, height, width):
        return f"channels come last, give np.moveaxis(x, 0, -1); {WRAP}"
    if shape in ((height, width), (height, width, 1)):
        return f"it has no three channels, give np.repeat(x.reshape({height}, {width}, 1), 3, -1); {WRAP}"
    if shape == (height, width, 4):
        return f"it has a fourth channel, give x[..., :3]; {WRAP}"
    return "say its height and width, or use gymnasium.wrappers.ResizeObservation"


def action_row(space: Any, spec: Spec, name: str) -> spaces.Box:
    """The environment's actions as one row."""
    if not isinstance(space, spaces.Box) or space.dtype is None or space.dtype.kind != "f":
        raise UserError(
            f"{name} takes actions of {kind(space)}: policies give rows of real numbers; choose one with a Box of floats (some take "
            "continuous=True in task.env_kwargs), or wrap it with gymnasium.wrappers.TransformAction"
        )
    low, high = space.low.ravel().astype(np.float32), space.high.ravel().astype(np.float32)
    if len(low) != spec.action.width:
        raise UserError(
            f"{name} takes actions of {len(low)} numbers, {kind(space)}, and {spec.action.width} channels are said: name each, in order"
        )
    return spaces.Box(low, high, dtype=np.float32)
