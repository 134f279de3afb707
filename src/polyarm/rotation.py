"""Rotations in the layouts of `ActionSpace.rotation`, numpy or torch, last axes; and action rows from one to another.

    quat_wxyz      [w, x, y, z] of length 1; read with any length above 0, written with w >= 0
    rotvec         axis times angle, rad; written with an angle of at most pi
    rot6d_rows     the matrix' first two rows, one after the other: Diffusion Policy's (robomimic's absolute actions)
    rot6d_columns  its first two columns, one after the other: Zhou et al. (CVPR 2019), 3D Diffuser Actor's
    matrix         [3, 3]

The two 6D layouts are each other's inverse rotations: read as the other one, every turn goes backwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

from polyarm.spec import ActionSpace, UserError, unknown

TINY = 1e-4
"""Squared angle below which series replace quotients; what they leave out is below 1e-13."""

CHANNELS: Mapping[str, tuple[str, ...]] = {
    "quat_wxyz": ("qw", "qx", "qy", "qz"),
    "rotvec": ("rx", "ry", "rz"),
    "rot6d_rows": ("r00", "r01", "r02", "r10", "r11", "r12"),
    "rot6d_columns": ("r00", "r10", "r20", "r01", "r11", "r21"),
}
"""The layouts of action channels and what their channels are called."""


def convert(x: Any, source: str, target: str) -> Any:
    """`x` [..., width of source] in the layout `target`, as an array of the same library. Raises UserError for an unknown layout."""
    for layout in (source, target):
        if layout not in _TO:
            raise unknown("rotation layout", layout, _TO)
    return _FROM[target](_TO[source](x))


def space_as(space: ActionSpace, layout: str | None) -> ActionSpace:
    """`space` with its rotations in `layout` (None, "none": as they are): channels are renamed, units changed, and the scale,
    which was fitted on other numbers, is dropped. Raises UserError for a space without rotations."""
    if layout in (None, "none", space.rotation):
        return space
    if layout not in CHANNELS:
        raise unknown("rotation layout", layout, CHANNELS)
    _require_rotations(space, layout)
    unit = "rad" if layout == "rotvec" else "1"
    names, units, starts, relative = list[str](), list[str](), list[int](), list[str]()
    for turn, part in _pieces(space):
        if turn is None:
            names += space.names[part]
            units += space.units[part]
            relative += space.relative[part] if space.relative else ()
            continue
        starts.append(len(names))
        names += [f"{name}_{turn}" if len(space.rotations) > 1 else name for name in CHANNELS[layout]]
        units += [unit] * len(CHANNELS[layout])
        relative += [""] * len(CHANNELS[layout])  # no difference describes a rotation
    return replace(
        space, names=tuple(names), units=tuple(units), rotation=layout, rotations=tuple(starts), scale=None,
        relative=tuple(relative) if space.relative else None,
    )  # fmt: skip


def rows_as(rows: Any, space: ActionSpace, layout: str | None) -> Any:
    """Action rows [..., d] of `space` as rows of `space_as(space, layout)`."""
    if layout in (None, "none", space.rotation):
        return rows
    _require_rotations(space, layout)
    pieces = [
        rows[..., part] if turn is None else convert(rows[..., part], space.rotation, layout)
        for turn, part in _pieces(space)
    ]
    return namespace(rows).concatenate(pieces, -1)


def _pieces(space: ActionSpace) -> list[tuple[int | None, slice]]:
    """The row cut where rotations start and end: (which rotation or None, its channels), in order."""
    width = len(CHANNELS[space.rotation])
    turns = {start: turn for turn, start in enumerate(space.rotations)}
    cuts = sorted({0, space.width, *turns, *(start + width for start in turns)})
    return [(turns.get(a), slice(a, b)) for a, b in pairwise(cuts)]


def _require_rotations(space: ActionSpace, layout: str) -> None:
    if space.rotation not in CHANNELS or not space.rotations:
        raise UserError(
            f"the action's rotation layout is {space.rotation!r} at channels {list(space.rotations)}, so nothing can be turned "
            f"into {layout}: have its space say rotation and rotations, or give task.action_rotation=null"
        )


def namespace(x: Any) -> Any:
    """The module of an array: numpy or torch, which share the functions used here."""
    if type(x).__module__.startswith("torch"):
        import torch

        return torch
    import numpy

    return numpy


def _same(x: Any) -> Any:
    return x


def _matrix_of_quat(q: Any) -> Any:
    w, x, y, z = _parts(q / _norm(q))
    return _square(
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    )  # fmt: skip


def _quat_of_matrix(m: Any) -> Any:
    """4 q q^T is linear in the matrix; its row with the largest diagonal element is q without cancellation."""
    (a, b, c), (d, e, f), (g, h, i) = (_parts(row) for row in _parts(m, -2))
    xp = namespace(m)
    products = (
        (1 + a + e + i, h - f, c - g, d - b),
        (h - f, 1 + a - e - i, d + b, c + g),
        (c - g, d + b, 1 - a + e - i, f + h),
        (d - b, c + g, f + h, 1 - a - e + i),
    )
    rows = xp.stack([xp.stack(row, -1) for row in products], -2)
    largest = xp.stack([products[k][k] for k in range(4)], -1).argmax(-1)
    # a sum with one term: the libraries name the choice of a row differently
    q = sum(rows[..., k, :] * (largest == k)[..., None] for k in range(4))
    q = q / _norm(q)
    return xp.where(q[..., :1] < 0, -q, q)


def _quat_of_rotvec(v: Any) -> Any:
    xp = namespace(v)
    squared = (v * v).sum(-1)[..., None]
    near = squared < TINY
    angle = xp.where(near, xp.ones_like(squared), squared) ** 0.5
    real = xp.where(near, 1 - squared / 8 + squared**2 / 384, xp.cos(angle / 2))
    share = xp.where(near, 0.5 - squared / 48 + squared**2 / 3840, xp.sin(angle / 2) / angle)
    return xp.concatenate([real, share * v], -1)


def _rotvec_of_quat(q: Any) -> Any:
    """Of unit length and w >= 0: angle 2 atan2(|v|, w), along v."""
    xp = namespace(q)
    real, v = q[..., :1], q[..., 1:]
    squared = (v * v).sum(-1)[..., None]
    near = squared < TINY
    sine = xp.where(near, xp.ones_like(squared), squared) ** 0.5
    return v * xp.where(near, 2 + squared / 3 + 3 * squared**2 / 20, 2 * xp.arctan2(sine, real) / sine)


def _matrix_of_rows(x: Any) -> Any:
    """Gram and Schmidt; the third row is the cross product of the two."""
    a, b = x[..., :3], x[..., 3:]
    first = a / _norm(a)
    b = b - (first * b).sum(-1)[..., None] * first
    second = b / _norm(b)
    (p, q, r), (s, t, u) = _parts(first), _parts(second)
    xp = namespace(x)
    third = xp.stack([q * u - r * t, r * s - p * u, p * t - q * s], -1)
    return xp.stack([first, second, third], -2)


def _rows_of_matrix(m: Any) -> Any:
    return namespace(m).concatenate([m[..., 0, :], m[..., 1, :]], -1)


def _columns_of_matrix(m: Any) -> Any:
    return namespace(m).concatenate([m[..., :, 0], m[..., :, 1]], -1)


def _norm(x: Any) -> Any:
    return (x * x).sum(-1)[..., None] ** 0.5


def _parts(x: Any, axis: int = -1) -> tuple[Any, ...]:
    return tuple(x[..., i, :] if axis == -2 else x[..., i] for i in range(x.shape[axis]))


def _square(*entries: Any) -> Any:
    xp = namespace(entries[0])
    return xp.stack([xp.stack(entries[i : i + 3], -1) for i in (0, 3, 6)], -2)


_TO: Mapping[str, Callable[[Any], Any]] = {
    "matrix": _same,
    "quat_wxyz": _matrix_of_quat,
    "rotvec": lambda v: _matrix_of_quat(_quat_of_rotvec(v)),
    "rot6d_rows": _matrix_of_rows,
    "rot6d_columns": lambda x: _matrix_of_rows(x).swapaxes(-1, -2),
}
_FROM: Mapping[str, Callable[[Any], Any]] = {
    "matrix": _same,
    "quat_wxyz": _quat_of_matrix,
    "rotvec": lambda m: _rotvec_of_quat(_quat_of_matrix(m)),
    "rot6d_rows": _rows_of_matrix,
    "rot6d_columns": _columns_of_matrix,
}
