"""What a user says of their own numbers, in arrays or in a world: streams, channels with units, the rate. Nothing is guessed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from polyarm.spec import KINDS, ActionSpace, ObsSpace, Spec, Stream, UserError

UNKNOWN = ("", "?", "-", "unknown", "none", "null", "nan", "n/a", "na", "tbd", "todo", "unit", "units", "arbitrary", "a.u.")  # fmt: skip
CHANNELS, UNITS = ("x", "y", "z", "red", "green", "blue"), ("m", "m", "m", "1", "1", "1")
"""Of points."""
NUMBERS = 16
"""Of a camera's row."""
TAKEN = ("action", "time_s", "success")
"""What an episode holds beside its streams."""


def numbers(name: str, units: Any, kind: str = "state", frame: str = "") -> Stream:
    """A low-dim stream, `[t, channels]`. `units`: {channel: unit}, in the order of the columns; "1" is a bare number."""
    names, said = _channels(f"stream {name!r}", units)
    if kind in KINDS and not KINDS[kind].low_dim:
        raise UserError(
            f"stream {name!r} is said to be numbers of kind {kind}: give image(...) for pictures, points(...) for clouds, Stream(...) for another"
        )
    return Stream(name, kind, (len(names),), names, said, frame)


def image(name: str, height: Any, width: Any) -> Stream:
    """Pictures, uint8 `[t, height, width, 3]`, RGB from 0 to 255."""
    return Stream(name, "image", _size(name, (height, width, 3)))


def points(name: str, n: Any, colours: bool = False, frame: str = "") -> Stream:
    """Clouds of n points, float32 `[t, n, 3]`, x y z in m of `frame`; with `colours` `[t, n, 6]`, then red green blue from 0 to 1.
    `polyarm.cloud.cloud` makes them of depth."""
    width = 6 if colours else 3
    return Stream(name, "points", _cloud(name, (n, width)), CHANNELS[:width], UNITS[:width], frame)


def depth(name: str, height: Any, width: Any) -> Stream:
    """Depth along the camera's axis, uint16 `[t, height, width]`, mm, 0 where nothing was measured. Of a camera c it is called
    `c_depth`, its pictures `c` and its calibration `c_camera`."""
    return Stream(name, "depth", _pixels(name, (height, width)))


def camera(name: str, frame: str = "base") -> Stream:
    """A calibration a row, float32 `[t, 16]`: fx fy cx cy, px, and the camera's pose in `frame`; `polyarm.camera.to_row` writes it."""
    return Stream(name, "camera", (NUMBERS,), frame=frame)


def actions(units: Any, rate_hz: Any, **more: Any) -> ActionSpace:
    """What one row of actions means; `more` is `ActionSpace`'s: frame, rotation, rotations."""
    names, said = _channels("the action", units)
    return ActionSpace(names, said, more.pop("frame", ""), _rate(rate_hz), **more)


def spec_of(streams: Any, action: Any, rate_hz: Any, hint: str = "") -> Spec:
    """The spec of what was said; what is missing or cannot be is a `UserError`. `action`: {channel: unit}, or `actions(...)`.
    `hint`: for who gives no rate."""
    if not isinstance(streams, Sequence) or not streams or not all(isinstance(s, Stream) for s in streams):
        raise UserError(
            "streams says nothing of some stream: give a list of numbers(...), image(...), depth(...), camera(...) and points(...), one a stream"
        )
    names = [s.name for s in streams]
    for name in names:
        if not re.fullmatch(r"\w[\w-]*", name):
            raise UserError(f"a stream is called {name!r}: give a name of letters, digits, _ and -")
        if names.count(name) > 1:
            raise UserError(f"two streams are called {name!r}: give each a name of its own")
        if name in TAKEN:
            raise UserError(f"a stream is called {name!r}: that name is taken, choose another")
    for stream in streams:
        if stream.kind == "image":
            _size(stream.name, stream.shape)
        if stream.kind == "depth":
            _pixels(stream.name, stream.shape)
        if stream.kind == "camera" and stream.shape != (NUMBERS,):
            raise UserError(f"camera {stream.name!r} is said to be {list(stream.shape)}: give camera({stream.name!r})")
        if stream.kind == "points":
            _cloud(stream.name, stream.shape)
        if stream.low_dim:
            _channels(f"stream {stream.name!r}", dict(zip(stream.names, stream.units, strict=False)), stream.shape[0])
    if isinstance(action, ActionSpace):
        rate = _rate(action.rate_hz if rate_hz is None else rate_hz)
        if rate != action.rate_hz:
            raise UserError(f"rate_hz={rate:g}, the action says {action.rate_hz:g}: give one rate")
        _channels("the action", dict(zip(action.names, action.units, strict=False)), action.width)
        return Spec(ObsSpace(tuple(streams), rate), action)
    space = actions(action, _rate(rate_hz, hint))
    return Spec(ObsSpace(tuple(streams), space.rate_hz), space)


def _size(name: str, shape: Sequence[Any]) -> tuple[int, ...]:
    """`shape` if it is a picture's."""
    whole = all(isinstance(n, Integral) and not isinstance(n, bool) and int(n) > 0 for n in shape)
    if not whole or len(shape) != 3 or shape[2] != 3:
        raise UserError(
            f"image {name!r} is said to be {list(shape)}: give its height and width in pixels, as in image({name!r}, 96, 128)"
        )
    return tuple(int(n) for n in shape)


def _pixels(name: str, shape: Sequence[Any]) -> tuple[int, ...]:
    """`shape` if it is a depth map's."""
    whole = all(isinstance(n, Integral) and not isinstance(n, bool) and int(n) > 0 for n in shape)
    if not whole or len(shape) != 2:
        raise UserError(
            f"depth {name!r} is said to be {list(shape)}: give its height and width in pixels, as in depth({name!r}, 96, 128)"
        )
    return tuple(int(n) for n in shape)


def _cloud(name: str, shape: Sequence[Any]) -> tuple[int, ...]:
    """`shape` if it is a cloud's."""
    whole = all(isinstance(n, Integral) and not isinstance(n, bool) and int(n) > 0 for n in shape)
    if not whole or len(shape) != 2 or shape[1] < 3:
        raise UserError(
            f"points {name!r} are said to be {list(shape)}: give how many there are, as in points({name!r}, 512)"
        )
    return tuple(int(n) for n in shape)


def _channels(what: str, units: Any, width: int | None = None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(names, units); every channel has both."""
    if not isinstance(units, Mapping) or not units or width not in (None, len(units)):
        raise UserError(
            f'{what} has channels without a name or a unit: give {{channel: unit}}, such as {{"elbow": "rad"}}; "1" is the unit '
            "of a bare number"
        )
    for name, unit in units.items():
        if not isinstance(name, str) or not name.strip():
            raise UserError(f"{what} has a channel {name!r}: give names, such as elbow")
        if not isinstance(unit, str) or unit.strip().lower() in UNKNOWN:
            raise UserError(
                f'channel {name!r} of {what} has unit {unit!r}: find out and give it, such as "rad" or "m"; "1" for a bare number'
            )
    return tuple(units), tuple(units.values())


def _rate(rate_hz: Any, hint: str = "") -> float:
    if rate_hz is None:
        raise UserError(f"rate_hz has no value: give the rows a second{hint}")
    if isinstance(rate_hz, bool) or not isinstance(rate_hz, Real) or not 0 < float(rate_hz) < 1e5:
        raise UserError(f"rate_hz={rate_hz!r}: give the rows a second, a number above 0")
    return float(rate_hz)
