"""Keyposes: the few poses of a hand that tell a whole episode, where it grips, lets go or stops. How demonstrations become
rows of them, and how a world moves from one to the next: `task.action_kind=keypose` does what `task.keyposes` says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from polyarm.rotation import CHANNELS, convert
from polyarm.spec import Spec, Stream, UserError

RESERVED = "keyposes"
"""Under which `sim.world.build_world` takes `Keyposes` beside a world's own settings."""
KINDS = ("trajectory", "keypose")
MARKED = "keypose"
"""What demonstrations are marked by whose expert says where its keyposes are: `task.keyposes.marks=keypose`."""
WAIT = 4
"""Frames after a stop in which there is no other."""


@dataclass(frozen=True)
class Keyposes:
    """`tip` is the stream that says where the hand is. A frame is a keypose where the opening changes, where no joint of the
    stream `joints` (null: not looked at) is faster than `slow_rad_s`, and at the end (`found`); or where the stream `marks`, if there
    is one, is above 1/2. Between them are as many more as straight lines need to stay `line_m` near the way that was
    gone (null: none).

    A world brings the tip along straight lines, told to be at most `stride_m` and `stride_rad` ahead of where it is, until it
    is `near_m` and `near_rad` or goes no further, `move_s` at most, and then gives the fingers `grip_s`. An episode has at
    most `most` keyposes.
    """

    tip: Any
    joints: Any
    marks: Any
    slow_rad_s: Any
    line_m: Any
    stride_m: Any
    stride_rad: Any
    near_m: Any
    near_rad: Any
    move_s: Any
    grip_s: Any
    most: Any

    def __post_init__(self) -> None:
        for field in fields(self):
            value, name = getattr(self, field.name), field.name
            if name in ("tip", "joints", "marks"):
                if not isinstance(value, str) and (value is not None or name == "tip"):
                    raise UserError(f"task.keyposes.{name}={value}: give the name of a stream")
            elif name == "line_m" and value is None:
                continue
            elif isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < np.inf:
                raise UserError(f"task.keyposes.{name}={value}: give a number above 0")


class Layout(NamedTuple):
    """Where a pose stands in a row."""

    xyz: tuple[int, ...]
    turn: tuple[int, ...]
    rotation: str

    def pose(self, row: Float[np.ndarray, "d"]) -> Float[np.ndarray, "4 4"]:
        """base_from_hand."""
        pose = np.eye(4)
        pose[:3, :3] = convert(row[list(self.turn)].astype(np.float64), self.rotation, "matrix")
        pose[:3, 3] = row[list(self.xyz)]
        return pose

    def write(self, pose: Float[np.ndarray, "4 4"], row: Float[np.ndarray, "d"]) -> None:
        row[list(self.xyz)] = pose[:3, 3]
        row[list(self.turn)] = convert(pose[:3, :3], "matrix", self.rotation)


class Hand(NamedTuple):
    """Where a hand stands in rows of its stream and of an action. `opening`: the action's channel, if it has one."""

    shown: Layout
    told: Layout
    opening: tuple[int, ...]


def hand(spec: Spec, tip: str, giver: str) -> Hand:
    """Raises UserError for actions that are not one absolute pose and an opening, and for a stream that is not where that hand is."""
    space, stream = spec.action, spec.obs[tip]
    xyz = tuple(space.names.index(name) for name in "xyz" if name in space.names)
    width = len(CHANNELS.get(space.rotation, ()))
    turn = tuple(i for first in space.rotations for i in range(first, first + width))
    opening = tuple(i for i in range(space.width) if i not in xyz + turn)
    if len(xyz) != 3 or len(space.rotations) != 1 or len(opening) > 1 or space.relative:
        raise UserError(
            f"the actions of {giver} are {', '.join(space.names)}: keyposes are absolute poses, x, y, z and a rotation, and at most one "
            "opening; choose such a world, or give task.action_kind=trajectory"
        )
    if stream.frame != space.frame:
        raise UserError(
            f"stream {tip!r} of {giver} is in frame {stream.frame!r}, its action in {space.frame!r}: name the stream that says where the "
            "commanded hand is as task.keyposes.tip"
        )
    return Hand(_shown(stream, giver), Layout(xyz, turn, space.rotation), opening)


def _shown(stream: Stream, giver: str) -> Layout:
    for rotation, channels in CHANNELS.items():
        if {*"xyz", *channels} <= {*stream.names}:
            at = stream.names.index
            return Layout(tuple(map(at, "xyz")), tuple(map(at, channels)), rotation)
    raise UserError(
        f"stream {stream.name!r} of {giver} has the channels {', '.join(stream.names) or 'none'}: task.keyposes.tip names one with x, "
        f"y, z and a rotation, such as {', '.join(CHANNELS['rot6d_columns'])}"
    )


def found(speed: Float[np.ndarray, "t q"], open_: Bool[np.ndarray, "t"], slow: float, wait: int = WAIT) -> list[int]:
    """The keyposes of an episode by the rule published for RLBench (James and Davison, "Q-attention", 2022): a frame at which the
    gripper changes, the last one, and one at which no joint is faster than `slow` while the gripper stays as it is from two
    frames before to one after. Of the last two, if they are neighbours, the last. `speed`, of no joints: nothing stops."""
    n, after, frames = len(open_), 0, list[int]()
    for i in range(n):
        # as published, the frames before the first are the last ones
        steady = i < n - 2 and open_[i - 2] == open_[i - 1] == open_[i] == open_[i + 1]
        stops = bool(after <= 0 and steady and speed.shape[1] and (np.abs(speed[i]) <= slow).all())
        after = wait if stops else after - 1
        if i and (stops or open_[i] != open_[i - 1] or i == n - 1):
            frames.append(i)
    if len(frames) > 1 and frames[-2] == frames[-1] - 1:
        del frames[-2]
    return frames


def lined(xyz: Float[np.ndarray, "t 3"], frames: Sequence[int], m: float) -> list[int]:
    """`frames` and those between them that straight lines must pass for no position to be farther than `m` from its line, each
    time the farthest (Douglas and Peucker, 1973; keyposes by this error: Shi et al., "Waypoint-Based Imitation Learning for
    Robotic Manipulation", CoRL 2023)."""
    out = [*frames[:1]]
    for a, b in pairwise(frames):
        way = xyz[b] - xyz[a]
        share = np.clip((xyz[a : b + 1] - xyz[a]) @ way / max(float(way @ way), 1e-12), 0, 1)
        off = np.linalg.norm(xyz[a : b + 1] - xyz[a] - share[:, None] * way, axis=-1)
        far = int(np.argmax(off))
        out += lined(xyz, [a, a + far, b], m)[1:] if off[far] > m else [b]
    return out
