"""From the log of an episode to rows of a store: the policy's grid of times, and on it what a policy would have seen and was sent.

Row k stands at t = t0 + k / rate_hz. An observation is the newest sample that could be had by then (its stamp plus its stream's
latency), never one between two. An action, and a label such as intervention, is the first that was sent within the row's
period, or else the one still in force. A sample that holds nan says nothing. Rows are made and written a piece at a time, so an
episode needs the memory of a piece.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from polyarm.datasets.demos import ACTION, TIME_S
from polyarm.datasets.store import Store
from polyarm.real_robot.camera import FRAME, fit
from polyarm.real_robot.episode_log import Logged, Samples, Survey, require_idle, survey
from polyarm.real_robot.recorder import decode
from polyarm.spec import Spec, Stream, UserError, require_actions, require_obs, unknown

PIECE_BYTES = 1 << 24
"""Of pictures that are decoded at a time."""
PERIODS = 3
"""Between samples, beyond which a gap is told where the stream says no other."""


@dataclass
class Closed:
    """What became of a log. `age_ms`: of each stream's samples at their rows, median, 99th percentile and largest."""

    log: str
    episode: int
    """Its number in the store."""
    rows: int
    age_ms: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)
    """A sentence for each thing that is not as it should be: gaps, losses, a recording cut off."""


@dataclass
class Column:
    """Where the rows of one array come from: samples of stream `of` of the log, and in numbers these columns."""

    name: str
    of: int
    logged: Logged
    t_ns: np.ndarray
    place: np.ndarray
    """Of each sample that says something: its number among the stream's."""
    values: np.ndarray | None
    """[samples, channels] of numbers; None for pictures, which stay on the disk."""
    sent: bool
    """An action or a label: the first from the row's time on, not the newest before."""

    @property
    def ready_ns(self) -> np.ndarray:
        return self.t_ns + (0 if self.sent else round(1e9 * self.logged.latency_s))


def close(logs: Iterable[str | Path], path: str | Path, spec: Spec | None = None) -> list[Closed]:
    """Put these logs into the store at `path`, made if it is not there; one that is in it already is left out.

    spec: what the store holds, by default what the first log's header says. The logs stay as they are. An episode is there
    whole or not at all, whenever this is killed.
    """
    found = [_survey(Path(log)) for log in logs]
    if not found:
        return []
    spec = spec or spec_of(found[0])
    store = Store.open(path, "a") if Path(path).exists() else Store.create(path, spec)
    with store:
        for a, b, who, where in ((spec, store.spec, "this recording", str(path)), (store.spec, spec, str(path), "this recording")):  # fmt: skip
            require_obs(a.obs, b.obs, who, where)
            require_actions(a.action, b.action, who, where)
        there = set(store.seeds.tolist())
        return [close_one(s, store) for s in found if _seed(s) not in there]


def close_one(found: Survey, store: Store, piece_bytes: int = PIECE_BYTES) -> Closed:
    spec = store.spec
    with open(found.path, "rb") as file:
        columns = [_column(found, stream, file) for stream in spec.obs.streams]
        columns.append(_column(found, _action(spec), file))
        grid = _grid(found, columns, spec.action.rate_hz)
        picks = {c.name: _pick(c, grid, round(1e9 / spec.action.rate_hz)) for c in columns}
        done = Closed(str(found.path), len(store), len(grid))
        row_bytes = sum(c.logged.stream.shape[0] * c.logged.stream.shape[1] * 3 for c in columns if c.values is None)
        step = max(1, piece_bytes // max(1, row_bytes))
        with store.episode(_seed(found), bool(found.footer and found.footer["success"])) as episode:
            for a in range(0, len(grid), step):
                rows = {c.name: _rows(c, picks[c.name][a : a + step], found, file, spec) for c in columns}
                episode.add(rows | {TIME_S: (grid[a : a + step] - grid[0]) / 1e9})
    for c in columns:
        age = (grid - c.t_ns[picks[c.name]]) / 1e6
        if not c.sent:
            done.age_ms[c.name] = (float(np.median(age)), float(np.percentile(age, 99)), float(age.max()))
    done.told = [*found.told(), *_gaps(columns, grid)]
    return done


def spec_of(found: Survey) -> Spec:
    if "spec" not in found.header:
        raise UserError(f"{found.path} does not say what a policy sees: give the spec of the store")
    return Spec.from_json(found.header["spec"], str(found.path))


def report(done: Closed) -> str:
    return json.dumps(asdict(done), indent=1)


def _survey(path: Path) -> Survey:
    found = survey(path)
    require_idle(path)
    return found


def _seed(found: Survey) -> int:
    """A number by which the store knows the recording; below that of any simulated episode."""
    return -2 - int(found.header["id"])


def _action(spec: Spec) -> Stream:
    a = spec.action
    return Stream(ACTION, "state", (a.width,), a.names, a.units)


def _column(found: Survey, wanted: Stream, file: BinaryIO) -> Column:
    """The stream of the log of that name, or the channels NAME.CHANNEL of one that holds many."""
    sent = wanted.hidden or wanted.name == ACTION
    for i, logged in enumerate(found.streams):
        stream, samples = logged.stream, found.samples[i]
        if stream.kind == "image" and stream.name == wanted.name and wanted.kind == "image":
            every = np.arange(len(samples.t_ns))
            return Column(wanted.name, i, logged, np.array(samples.t_ns, np.int64), every, None, sent)
        names = [n if stream.name == wanted.name else f"{wanted.name}.{n}" for n in wanted.names]
        if stream.kind != "image" and names and set(names) <= set(stream.names):
            values = _numbers(samples, stream.shape[0], file)[:, [stream.names.index(n) for n in names]]
            place = np.flatnonzero(~np.isnan(values).any(1))
            return Column(wanted.name, i, logged, np.array(samples.t_ns, np.int64)[place], place, values[place], sent)
    known = [s.stream.name for s in found.streams] + [n for s in found.streams for n in s.stream.names]
    raise unknown(f"stream of {found.path}", wanted.name, known)


def _numbers(samples: Samples, width: int, file: BinaryIO) -> np.ndarray:
    out = np.empty((len(samples.at), width))
    for i, (at, n) in enumerate(zip(samples.at, samples.length, strict=True)):
        file.seek(at)
        out[i] = np.frombuffer(file.read(n), "<f8")
    return out


def _grid(found: Survey, columns: list[Column], rate_hz: float) -> np.ndarray:
    """Times of the rows, ns: from when every stream had a sample, to when the first one fell silent."""
    for c in columns:
        if not len(c.t_ns):
            raise UserError(
                f"{found.path} holds no sample of {c.name!r}: check what should have sent it, or leave the episode out"
            )
        if (np.diff(c.t_ns) < 0).any():
            raise UserError(f"{found.path}: the stamps of {c.name!r} go back in time: check the clock of what sends it")
    begin = max(int(c.ready_ns[0]) for c in columns)
    end = min(int(c.ready_ns[-1]) for c in columns)
    rows = int((end - begin) * rate_hz / 1e9) + 1 if end >= begin else 0
    if not rows:
        raise UserError(
            f"{found.path}: the streams {', '.join(c.name for c in columns)} were never there together: leave it out"
        )
    return begin + np.round(np.arange(rows) * 1e9 / rate_hz).astype(np.int64)


def _pick(column: Column, grid: np.ndarray, period_ns: int) -> np.ndarray:
    """Which sample each row takes."""
    newest = np.searchsorted(column.ready_ns, grid, side="right") - 1
    if not column.sent:
        return newest
    first = np.minimum(np.searchsorted(column.ready_ns, grid, side="left"), len(column.t_ns) - 1)
    t = column.ready_ns[first]
    return np.where((t >= grid) & (t < grid + period_ns), first, newest)


def _rows(column: Column, picked: np.ndarray, found: Survey, file: BinaryIO, spec: Spec) -> np.ndarray:
    if column.values is not None:
        return column.values[picked].astype(np.float32)
    height, width, _ = spec.obs[column.name].shape
    out = np.empty((len(picked), height, width, 3), np.uint8)
    for i, k in enumerate(picked):
        out[i] = out[i - 1] if i and k == picked[i - 1] else fit(_picture(column, int(k), found, file), (height, width))
    return out


def _picture(column: Column, k: int, found: Survey, file: BinaryIO) -> np.ndarray:
    samples = found.samples[column.of]
    file.seek(samples.at[column.place[k]] + FRAME.size)
    return decode(file.read(samples.length[column.place[k]] - FRAME.size))


def _gaps(columns: list[Column], grid: np.ndarray) -> Iterator[str]:
    for c in columns:
        limit = round(1e9 * (c.logged.gap_s or PERIODS / c.logged.rate_hz))
        between = np.diff(c.t_ns)
        for i in np.flatnonzero((between > limit) & (c.t_ns[1:] > grid[0]) & (c.t_ns[:-1] < grid[-1])):
            at = (c.t_ns[i] - grid[0]) / 1e9
            yield f"{c.name} says nothing for {between[i] / 1e6:.0f} ms from {at:.2f} s on, more than {limit / 1e6:.0f} ms"
