"""Arrays to a store: your own demonstrations, in a few lines.

    from polyarm.datasets.arrays import image, numbers, write_store

    write_store(
        "data/mine.zarr",
        [{"joints": q, "front": frames, "action": a} for q, frames, a in mine],   # [t, ...] each
        streams=[numbers("joints", {"shoulder": "rad", "elbow": "rad"}), image("front", 96, 96)],
        action={"shoulder": "rad", "elbow": "rad"},
        rate_hz=10,
    )

Nothing is guessed: units, rate, and what an image holds are said, and held against the arrays, before they are written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from polyarm.datasets.demos import ACTION, TIME_S, Demos
from polyarm.datasets.episode import checked_episode
from polyarm.datasets.store import Store
from polyarm.progress import Bar
from polyarm.spec import Spec, Stream, UserError
from polyarm.streams import CHANNELS, actions, camera, depth, image, numbers, points, spec_of

__all__ = ["actions", "camera", "depth", "image", "numbers", "points", "write_store"]

NO_SEED = -1
"""What the store keeps where no simulator was seeded."""
RATE_OFF = 0.05
"""Share by which the median step of measured times may differ from the rate."""
FAR_M = 20.0
"""Metres beyond which nothing lies that an arm's camera sees: such numbers are millimetres."""
GAP = 5
"""Steps of the rate from which on two rows do not follow each other."""


def write_store(
    path: str | Path,
    episodes: Any,
    *,
    streams: Sequence[Any],
    action: Any,
    rate_hz: Any = None,
) -> Path:
    """Write `episodes` to the store at `path`, which is returned; each is on the disk before the next is asked for.

    `episodes`: dicts of arrays, as a list or one after the other; `streams`: `numbers(...)`, `image(...)`, `depth(...)`,
    `camera(...)`, `points(...)` or any `Stream`; `action`: {channel: unit}, or `actions(...)`. An episode is {stream: [t, ...], "action": [t, d]}, with "time_s" [t] where time was measured (otherwise it is made from
    the rate) and "success" where some failed. A store of the same streams that holds the first of these episodes is gone on
    with; one that holds others is refused. Raises `UserError` for whatever does not fit what was said.
    """
    path, coming = Path(path), iter(_each(episodes))
    first = next(coming, None)
    if first is None:
        raise UserError(f"there are no episodes to write to {path}: give at least one")
    spec = _spec(streams, action, rate_hz, first)
    head = _taken(first, 0, spec)  # before anything is written
    total = len(episodes) if hasattr(episodes, "__len__") else 0
    with _open(path, spec) as store, Bar(f"write {path.name}", total) as bar:
        there = len(store)
        for i, episode in enumerate(chain([first], coming)):
            rows, success = _taken(episode, i, spec) if i else head
            if i < there:
                _require_same(store, i, rows)
            else:
                store.append(rows, NO_SEED, success)
            bar.at(i + 1)
    return path


def _each(episodes: Any) -> Iterable[Any]:
    if isinstance(episodes, Mapping) or not isinstance(episodes, Iterable):
        raise UserError(f"episodes is a {type(episodes).__name__}: give a list of dicts of arrays, one dict an episode")
    return episodes


def _spec(streams: Sequence[Any], action: Any, rate_hz: Any, first: Any) -> Spec:
    step = _median_step(first) if isinstance(first, Mapping) else None
    return spec_of(
        streams,
        action,
        rate_hz,
        f"; its time_s steps by {step:g} s, which would be rate_hz={1 / step:.4g}" if step else "",
    )


def _median_step(episode: Mapping[str, Any]) -> float | None:
    try:
        time_s = _array(TIME_S, episode.get(TIME_S, ()))
    except UserError:  # said where the episode is taken
        return None
    fits = time_s.dtype.kind in "iuf" and time_s.ndim == 1 and len(time_s) > 1
    step = float(np.median(np.diff(time_s))) if fits else 0.0
    return step if step > 0 else None


def _taken(episode: Any, i: int, spec: Spec) -> tuple[dict[str, np.ndarray], bool]:
    """(rows as the store keeps them, success) of episode `i`, or the sentence."""
    if not isinstance(episode, Mapping):
        raise UserError(f"episode {i} is a {type(episode).__name__}: give a dict of arrays, {{stream: [t, ...]}}")
    given = dict(episode)
    success = given.pop("success", True)
    try:
        if odd := [name for name in given if not isinstance(name, str)]:
            raise UserError(f"{odd[0]!r} is no name of a stream: give {', '.join((*spec.obs.names, ACTION))}")
        if not isinstance(success, bool | np.bool_):
            raise UserError(f"'success' is {success!r}: give True or False")
        for stream in spec.obs.streams:
            if stream.kind == "image" and stream.name in given:
                given[stream.name] = _pictures(stream, given[stream.name])
            if stream.kind == "depth" and stream.name in given:
                given[stream.name] = _depths(stream, given[stream.name])
            if stream.kind == "camera" and stream.name in given:
                given[stream.name] = _calibrations(stream, given[stream.name])
            if stream.kind == "points" and stream.name in given:
                given[stream.name] = _clouds(stream, given[stream.name])
        arrays = {name: _array(name, x) for name, x in given.items()}
        rate = spec.action.rate_hz
        if TIME_S not in arrays:
            arrays[TIME_S] = np.arange(len(arrays[ACTION]) if arrays.get(ACTION, np.array(0)).ndim else 0) / rate
        rows = checked_episode(arrays, spec)
        _require_rate(rows[TIME_S], rate)
        return rows, bool(success)
    except UserError as e:
        raise UserError(f"episode {i}: {e}") from None


def _array(name: str, x: Any) -> np.ndarray:
    try:
        x = np.asarray(x)
    except (ValueError, TypeError, RuntimeError) as e:  # lists of unequal lengths, tensors with a gradient or on a GPU
        raise UserError(f"{name!r} is no array ({e}): give rows of one shape") from None
    if name == TIME_S and x.dtype.kind == "f" and x.dtype.itemsize < 8:
        if x.ndim == 1 and len(x) > 1 and not np.diff(x).all():
            raise UserError(
                f"'time_s' is {x.dtype}, too coarse for the steps of times such as {x[0]:.10g} s: keep it in float64, or subtract the first"
            )
        return x.astype(np.float64)
    return x


def _pictures(stream: Stream, x: Any) -> np.ndarray:
    """`x` if it is uint8 `[t, height, width, 3]` from 0 to 255; what most likely is the matter, and how to convert it."""
    name, (height, width, _) = stream.name, stream.shape
    x, want = _array(name, x), f"uint8 [t, {height}, {width}, 3]"
    if x.dtype.kind not in "uifb":
        raise UserError(f"{name!r} is {x.dtype}: an image is {want}; read the files to arrays first")
    here = f"{x.dtype} {list(x.shape)}"
    if x.ndim == 4 and x.shape[1] == 3 and x.shape[3] != 3:
        raise UserError(f"{name!r} is {here}, channels first: an image is {want}; give np.moveaxis(x, 1, -1)")
    if x.shape == stream.shape:
        raise UserError(f"{name!r} is {here}, a single picture: an image is {want}, one a row; give all of the episode")
    if x.ndim == 3 or (x.ndim == 4 and x.shape[3] == 1):
        raise UserError(
            f"{name!r} is {here}, without three channels: an image is {want}; give np.repeat(x.reshape(*x.shape[:3], 1), 3, -1)"
        )
    if x.ndim == 4 and x.shape[3] == 4:
        raise UserError(f"{name!r} is {here}, with a fourth channel: an image is {want}; give x[..., :3]")
    if x.shape[1:] != stream.shape:
        raise UserError(f"{name!r} is {here}: it was said to be {want}; resize the pictures, or say their size")
    if not x.size:
        return x
    low, high = x.min(), x.max()
    if x.dtype != np.uint8:
        fits = "(x * 255).round().astype(np.uint8)" if 0 <= low and high <= 1 else "x.round().astype(np.uint8)"
        fits = "it scaled to 0 to 255, as np.uint8" if not (0 <= low and high <= 255) else fits
        raise UserError(
            f"{name!r} is {x.dtype} from {low:.3g} to {high:.3g}: an image is {want}, 0 to 255; give {fits}"
        )
    if high <= 1:
        raise UserError(
            f"{name!r} is uint8 with nothing above 1, which is black: scale it to 0 to 255 before it is cast"
        )
    return x


def _clouds(stream: Stream, x: Any) -> np.ndarray:
    """`x` if it is `[t, n, channels]` in metres, colours from 0 to 1; what most likely is the matter, and how to convert it."""
    name, (n, width) = stream.name, stream.shape
    x, want = _array(name, x), f"[t, {n}, {width}]"
    if x.dtype.kind not in "uif":
        raise UserError(f"{name!r} is {x.dtype}: points are numbers, {want}; read the files to arrays first")
    here = f"{x.dtype} {list(x.shape)}"
    if x.shape == stream.shape:
        raise UserError(
            f"{name!r} is {here}, a single cloud: points are {want}, one cloud a row; give all of the episode"
        )
    if x.ndim != 3 or x.shape[2] != width:
        cut = f"; give x[..., :{width}]" if x.ndim == 3 and x.shape[1] == n and x.shape[2] > width else ""
        raise UserError(f"{name!r} is {here}: it was said to be {want}{cut or ', x y z last'}")
    if x.shape[1] != n:
        raise UserError(f"{name!r} is {here}: it was said to be {want}; give {n} of each cloud, by polyarm.cloud.thin")
    if x.size and np.median(np.abs(x[..., :3]).max(-1)) > FAR_M:
        raise UserError(f"half of the points of {name!r} lie beyond {FAR_M:g} m: give metres, so millimetres / 1000")
    if stream.names[3:] == CHANNELS[3:] and x.size and not 0 <= x[..., 3:].min() <= x[..., 3:].max() <= 1:
        raise UserError(
            f"the colours of {name!r} go from {x[..., 3:].min():.3g} to {x[..., 3:].max():.3g}: give 0 to 1, so bytes / 255"
        )
    return x


def _depths(stream: Stream, x: Any) -> np.ndarray:
    """`x` if it is uint16 `[t, height, width]`; what most likely is the matter, and how to convert it."""
    name, (height, width) = stream.name, stream.shape
    x = _array(name, x)
    want, here = f"uint16 [t, {height}, {width}], mm", f"{x.dtype} {list(x.shape)}"
    if x.ndim == 4 and 1 in (x.shape[1], x.shape[3]):
        cut = "x[..., 0]" if x.shape[3] == 1 else "x[:, 0]"
        raise UserError(f"{name!r} is {here}: depth is {want}; give {cut}")
    if x.shape[1:] != stream.shape:
        raise UserError(f"{name!r} is {here}: it was said to be {want}; give that, or say its size")
    if x.dtype == np.uint16 or not x.size:
        return x
    if x.dtype.kind not in "fiu":
        raise UserError(f"{name!r} is {here}: depth is {want}; read the files to arrays first")
    known = x[np.isfinite(x) & (x > 0)] if x.dtype.kind == "f" else x[x > 0]
    metric = x.dtype.kind == "f" and np.median(known if known.size else [0.0]) <= FAR_M
    fits = "np.nan_to_num(x * 1000, posinf=0).round().astype(np.uint16)" if metric else "x.round().astype(np.uint16)"
    fits = fits if x.dtype.kind == "f" else "x.astype(np.uint16)"
    raise UserError(
        f"{name!r} is {here} up to {known.max(initial=0):.4g}, {'metres' if metric else 'as if millimetres'}: depth is {want}, 0 where "
        f"nothing was measured; give {fits}"
    )


def _calibrations(stream: Stream, x: Any) -> np.ndarray:
    """`x` if it has a row of 16 numbers a step."""
    x = _array(stream.name, x)
    if x.shape[1:] == stream.shape or x.ndim == 0:
        return x
    hint = (
        "np.tile(row, (t, 1)), one a step" if x.shape == stream.shape else "polyarm.camera.to_row(K, camera_from_base)"
    )
    raise UserError(f"{stream.name!r} has shape {list(x.shape)}: a calibration is [t, {stream.shape[0]}]; give {hint}")


def _require_rate(time_s: np.ndarray, rate: float) -> None:
    if len(time_s) < 2:
        return
    step = np.diff(time_s)
    median = float(np.median(step))
    if abs(median * rate - 1) > RATE_OFF:
        raise UserError(
            f"'time_s' steps by {median:.4g} s in the median, which is {1 / median:.4g} Hz, and rate_hz={rate:g}: give seconds and the "
            "rate they have, or resample"
        )
    if (late := np.flatnonzero(step * rate > GAP)).size:
        raise UserError(
            f"'time_s' has a gap of {step[late[0]]:.3g} s before row {late[0] + 1}, {step[late[0]] * rate:.0f} steps of rate_hz={rate:g}: make "
            "two episodes of it, for these rows do not follow each other"
        )


def require_rate(demos: Demos) -> None:
    """Refuse demonstrations that say no rate, or another than the times that were measured have."""
    rate, where = demos.spec.action.rate_hz, getattr(demos, "path", "the demonstrations")
    if not rate > 0:
        raise UserError(
            f"{where} says rate_hz={rate:g}: write it again with the rows a second, as polyarm.datasets.arrays does"
        )
    if isinstance(demos, Store):
        step = np.delete(np.diff(demos.read(TIME_S)), demos.episode_ends[:-1] - 1)
        median = float(np.median(step)) if len(step) else 1 / rate
        if abs(median * rate - 1) > RATE_OFF:
            raise UserError(
                f"{where} says rate_hz={rate:g}, and its times step by {median:.4g} s, which is {1 / median:.4g} Hz: write it again with "
                "seconds and the rate they have, as polyarm.datasets.arrays does"
            )


def _open(path: Path, spec: Spec) -> Store:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        return Store.create(path, spec)
    store = Store.open(path, "a")
    if store.spec != spec:
        store.close()
        raise UserError(f"{path} holds demonstrations of other streams, units or rate: give another path, or remove it")
    return store


def _require_same(store: Store, i: int, rows: Mapping[str, np.ndarray]) -> None:
    """Refuse unless episode `i` of the store is this one."""
    end = int(store.episode_ends[i])
    mine = slice(end - int(store.lengths[i]), end)
    for name, x in rows.items():
        if not np.array_equal(store.stream(name)[mine], x):
            raise UserError(
                f"{store.path} holds another episode {i} (its {name!r} differs): give the episodes it was begun with and more, "
                "another path, or remove it"
            )
