"""Relative actions: a chunk is learnt as what it adds to the newest observation (as UMI does; Chi et al., RSS 2024).

Row h of a chunk is `action_h - base`, the base being channels of low-dim streams at the newest observation; in all rows of a
chunk the same, so that what the arm does wrong in one row is not carried into the next. Channels without a base stay absolute.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from polyarm.rotation import CHANNELS, namespace
from polyarm.spec import ActionSpace, ObsSpace, UserError, unknown


def base(action: ActionSpace, obs: ObsSpace, newest: Mapping[str, Any]) -> Any:
    """What each channel of a chunk is relative to, [... d]; 0 where it is absolute; None for a space that is absolute.

    newest: {stream: [... width]} raw units, numpy or torch, of the newest observation.
    """
    if action.relative is None:
        return None
    found = [_place(where, obs) for where in action.relative]
    some = next(newest[place[0]][..., place[1]] for place in found if place)
    xp = namespace(some)
    return xp.stack([newest[p[0]][..., p[1]] if p else xp.zeros_like(some) for p in found], -1)


def choose(setting: str | Mapping[str, str] | None, action: ActionSpace, obs: ObsSpace) -> tuple[str, ...] | None:
    """`ActionSpace.relative` for a setting: None; a stream, to whose channels of the same name the action is relative; or
    {action channel: "stream.channel"}.

    Raises UserError for a name that does not exist, for other units, for rotations, and where nothing would be relative.
    """
    if setting is None:
        return None
    if isinstance(setting, str):
        shared = [name for name in action.names if name in obs[setting].names]
        setting = {name: f"{setting}.{name}" for name in shared}
    for name in setting:
        if name not in action.names:
            raise unknown("action channel", name, action.names)
    if not setting:
        raise UserError(
            f"task.action_relative names no channel of the action, which are {', '.join(action.names)}: give "
            "{channel: stream.channel}, or null"
        )
    for name, where in setting.items():
        _require_fit(action, action.names.index(name), obs, where)
    return tuple(setting.get(name, "") for name in action.names)


def describe(where: str) -> str:
    return f"relative to {where}" if where else "as it is"


def _require_fit(action: ActionSpace, channel: int, obs: ObsSpace, where: str) -> None:
    name = action.names[channel]
    place = _place(where, obs)
    if place is None:
        raise UserError(f"action channel {name!r} relative to nothing: give it a stream.channel, or leave it out")
    width = len(CHANNELS.get(action.rotation, ()))
    if any(start <= channel < start + width for start in action.rotations):
        raise UserError(
            f"action channel {name!r} is part of a rotation, which no difference describes: leave it out of task.action_relative"
        )
    units = obs[place[0]].units
    theirs, ours = (units[place[1]] if units else ""), (action.units[channel] if action.units else "")
    if theirs != ours:
        raise UserError(
            f"action channel {name!r} is in {ours or 'no unit'}, {where} in {theirs or 'no unit'}: "
            "name a channel of the same unit in task.action_relative"
        )


def _place(where: str, obs: ObsSpace) -> tuple[str, int] | None:
    """(stream, index of the channel) of "stream.channel"; None for ""."""
    if not where:
        return None
    stream, _, channel = where.partition(".")
    names = obs[stream].names
    if channel not in names:
        raise unknown(f"channel of stream {stream!r}", channel, names)
    return stream, names.index(channel)
