"""Scales fitted on demonstrations (Diffusion Policy's normaliser). A channel that never varies is refused, not passed through."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from polyarm.datasets.demos import ACTION, Demos, Rows
from polyarm.rotation import CHANNELS
from polyarm.spec import ActionSpace, Scale, Spec, Stream, UserError, unknown
from polyarm.text import row_text

TINY = 1e-4
"""A channel whose range (limits) or standard deviation (gaussian) is below this is constant."""
BLOCK = 1 << 14
"""Rows read at a time."""
MOST_TEXTS = 100
"""Different texts of a stream; one with more is a language, and they are not listed."""


@dataclass(frozen=True)
class Moments:
    """Of each channel, float64 `[d]`; `std` divides by n - 1."""

    n: int
    low: np.ndarray
    high: np.ndarray
    mean: np.ndarray
    std: np.ndarray


def moments(blocks: Iterable[np.ndarray], names: Sequence[str], what: str) -> Moments:
    """One pass over blocks `[n, d]`, merged as Chan, Golub and LeVeque (1983): no loss far from zero.

    Raises `UserError` for a value that is not finite and where there is no row.
    """
    n, low, high = 0, np.full(len(names), np.inf), np.full(len(names), -np.inf)
    mean, square = np.zeros(len(names)), np.zeros(len(names))
    for rows in blocks:
        block = rows.astype(np.float64)
        if block.shape[1:] != (len(names),):
            raise UserError(f"{what} has rows of shape {block.shape[1:]} for {len(names)} names: name every channel")
        if not len(block):
            continue
        m, block_mean = len(block), block.mean(0)
        if not np.isfinite(block_mean).all():
            bad = names[int(np.argmin(np.isfinite(block_mean)))]
            raise UserError(f"{what} channel {bad!r} holds a number that is not finite: leave that episode out")
        low, high = np.minimum(low, block.min(0)), np.maximum(high, block.max(0))
        block -= block_mean
        apart = block_mean - mean
        square += np.einsum("nd,nd->d", block, block) + apart**2 * (n * m / (n + m))
        mean, n = mean + apart * (m / (n + m)), n + m
    if n == 0:
        raise UserError(f"{what} has no rows: give at least one episode to fit its scale on")
    return Moments(n, low, high, mean, np.sqrt(square / max(n - 1, 1)))


def fit(
    kind: str,
    rows: Any,
    names: Sequence[str],
    what: str,
    constant: str = "refuse",
    as_is: Collection[int] = (),
    setting: str = "another scale",
) -> Scale:
    """The scale of `rows` [N, ..., d] (anything that can be sliced), in float64, a block at a time.

    limits: [min, max] -> [-1, 1]; gaussian: mean 0, standard deviation 1; identity: as it is.
    constant: "refuse" raises `UserError` for a channel that does not vary; "centre" maps it to 0 with gain 1, the published
    rule. `what` names the rows in errors, `setting` what would leave them as they are; the channels `as_is` are left so.
    """
    if kind not in KINDS:
        raise unknown(f"scale of {what}", kind, KINDS)
    if constant not in ("refuse", "centre"):
        raise unknown("answer to a constant channel", constant, ("refuse", "centre"))
    found = moments(_blocks(rows), names, what)
    gain, offset, still = KINDS[kind](found)
    left = list(as_is)
    gain[left], offset[left], still[left] = 1, 0, False
    if still.any() and constant == "refuse":
        i = int(np.argmax(still))
        raise UserError(
            f"{what} channel {names[i]!r} stays at {found.mean[i]:g} in all {found.n} rows: leave the channel out, give "
            f"{setting}, or allow it with data.constant=centre"
        )
    reach = float(np.abs([found.low * gain + offset, found.high * gain + offset]).max())
    return Scale(tuple(gain.tolist()), tuple(offset.tolist()), reach)


def fit_spec(
    demos: Demos,
    spec: Spec,
    obs_kind: str,
    action_kind: str,
    episodes: Sequence[int] | np.ndarray,
    constant: str = "refuse",
    kinds: Mapping[str, str] | None = None,
    actions: Any = None,
) -> Spec:
    """`spec` with the scale of every low-dim stream, of named points and of the action, fitted on these episodes only, and with
    the texts that the demonstrations hold.

    kinds: {stream or "action": kind} where one differs from `obs_kind` and `action_kind`. Images are not fitted. Rotations
    of length 1 (quaternions, 6D) stay as they are, as published. `actions`: the rows that policies learn, where they are not
    the demonstrations' (`datasets.relative`).
    """
    kinds = kinds or {}
    for name in kinds:
        if name not in (scaled := [*(s.name for s in spec.obs.streams if s.scaled), ACTION]):
            raise unknown("stream to scale", name, scaled)
    ends = demos.episode_ends
    seen = np.zeros(int(ends[-1]) if len(ends) else 0, bool)
    for i in episodes:
        seen[ends[i - 1] if i else 0 : ends[i]] = True

    def fitted(name: str, names: Sequence[str], kind: str, what: str, as_is: Collection[int] = ()) -> Scale:
        rows = _Chosen(demos.stream(name), np.flatnonzero(seen)) if name != ACTION or actions is None else actions
        return fit(kinds.get(name, kind), rows, names, what, constant, as_is, f"+task.scales.{name}=identity")

    def known(s: Stream) -> Stream:
        if s.kind == "text":
            return replace(s, texts=texts(demos.stream(s.name)))
        return replace(s, scale=fitted(s.name, s.names, obs_kind, f"stream {s.name!r}")) if s.scaled else s

    streams = tuple(map(known, spec.obs.streams))
    scale = fitted(ACTION, spec.action.names, action_kind, "the action", unit_channels(spec.action))
    action = replace(spec.action, scale=scale)
    return replace(spec, obs=replace(spec.obs, streams=streams), action=action)


def texts(rows: Rows) -> tuple[str, ...]:
    """All that these rows hold, in order; () where they are more than `MOST_TEXTS`."""
    found: set[bytes] = set()
    for i in range(0, len(rows), BLOCK):
        found |= {row.tobytes() for row in np.unique(rows[i : i + BLOCK], axis=0)}
        if len(found) > MOST_TEXTS:
            return ()
    return tuple(sorted(row_text(np.frombuffer(row, np.uint8)) for row in found))


class _Chosen:
    """Some rows of a stream, read as they are asked for: clouds of all frames may not fit in memory."""

    def __init__(self, rows: Rows, chosen: np.ndarray) -> None:
        self._rows, self._chosen = rows, chosen
        self.shape = (len(chosen), *rows.shape[1:])

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, rows: slice) -> np.ndarray:
        return self._rows[self._chosen[rows]]


def _blocks(rows: Any) -> Iterator[np.ndarray]:
    """Blocks `[n, d]` of rows `[N, ..., d]`."""
    step = max(1, BLOCK // max(1, int(np.prod(rows.shape[1:-1]))))
    for i in range(0, len(rows), step):
        yield rows[i : i + step].reshape(-1, *rows.shape[-1:]) if len(rows.shape) > 2 else rows[i : i + step]


def unit_channels(space: ActionSpace) -> set[int]:
    """Channels of rotations whose numbers lie in [-1, 1] and mean nothing alone."""
    if space.rotation in ("none", "rotvec"):
        return set()
    width = len(CHANNELS[space.rotation])
    return {i for start in space.rotations for i in range(start, start + width)}


def check(spec: Spec) -> None:
    """Refuse a spec that has an action, or a stream that is scaled, without a scale."""
    spaces = [(f"stream {s.name!r}", s.scale) for s in spec.obs.streams if s.scaled]
    for what, scale in (*spaces, ("the action", spec.action.scale)):
        if scale is None:
            raise UserError(f"{what} has no scale: fit one on demonstrations with fit_spec, or train again")


Fitted = tuple[np.ndarray, np.ndarray, np.ndarray]
"""(gain, offset, which channels are constant), `[d]` each"""


def _limits(m: Moments) -> Fitted:
    still = m.high - m.low < TINY
    gain = 2 / np.where(still, 2, m.high - m.low)
    return gain, np.where(still, -m.low, -1 - gain * m.low), still


def _gaussian(m: Moments) -> Fitted:
    still = m.std < TINY
    gain = 1 / np.where(still, 1, m.std)
    return gain, -m.mean * gain, still


def _identity(m: Moments) -> Fitted:
    return np.ones_like(m.mean), np.zeros_like(m.mean), np.zeros(m.mean.shape, bool)


KINDS: Mapping[str, Callable[[Moments], Fitted]] = {"limits": _limits, "gaussian": _gaussian, "identity": _identity}
