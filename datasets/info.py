"""What is in a set of demonstrations: numbers a person should see before training. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from polyarm.datasets.demos import ACTION, TIME_S, Demos, Rows
from polyarm.datasets.replay_buffer import ReplayBuffer
from polyarm.datasets.scale import BLOCK, moments
from polyarm.datasets.store import Store, open_path
from polyarm.text import row_text


def info(source: str | Path | Demos) -> dict[str, Any]:
    """A summary that is plain data.

    path, bytes (on disk), versions, episodes, frames, length {min, median, max}, rate_hz (of the spec; None: unknown),
    measured_hz (median over steps; None where no time was kept), duration_s, seeds (different ones), successes, dropped_rows (past the last
    commit), channels [{stream, name, unit, min, max, mean, std, not_finite}] over finite values, images [{stream, shape}],
    texts [{stream, instructions}] (the different ones). A stream without named channels, such as points, is one line. Of a
    replay buffer also left_out {key: why} and absent {key: chunks that are not there, read as the fill value}.
    """
    demos = open_path(source) if isinstance(source, str | Path) else source
    ends, spec = demos.episode_ends, demos.spec
    lengths = np.diff(ends, prepend=0)
    path, timed = getattr(demos, "path", None), spec.action.kind == "trajectory"  # keyposes lie at no rate
    out: dict[str, Any] = {
        "path": None if path is None else str(path),
        "bytes": None if path is None else sum(f.stat().st_size for f in [path, *path.rglob("*")] if f.is_file()),
        "versions": dict(spec.versions),
        "episodes": len(ends),
        "frames": int(lengths.sum()),
        "length": dict(zip(("min", "median", "max"), np.quantile(lengths, (0, 0.5, 1)).tolist(), strict=True))
        if len(ends)
        else None,
        "rate_hz": spec.action.rate_hz or None,
        "measured_hz": None,
        "duration_s": float(lengths.sum() / spec.action.rate_hz) if spec.action.rate_hz and timed else None,
        "seeds": None,
        "successes": None,
        "dropped_rows": 0,
    }
    if isinstance(demos, Store):
        out |= {
            "seeds": len(np.unique(demos.seeds)),
            "successes": int(demos.successes.sum()),
            "dropped_rows": demos.dropped_rows,
        } | _time(demos.read(TIME_S), ends)
    if isinstance(demos, ReplayBuffer):
        out |= {"left_out": demos.left_out, "absent": demos.absent()}
    numbers = [s for s in spec.obs.streams if s.kind not in ("image", "text")]
    lines = [(s.name, s.names or (" x ".join(map(str, s.shape)),), s.units) for s in numbers]
    lines.append((ACTION, spec.action.names, spec.action.units))
    out["channels"] = [row for name, *what in lines for row in _channels(demos.stream(name), name, *what)]
    out["images"] = [{"stream": s.name, "shape": list(s.shape)} for s in spec.obs.streams if s.kind == "image"]
    out["texts"] = [
        {"stream": s.name, "instructions": [row_text(row) for row in np.unique(demos.stream(s.name)[:], axis=0)]}
        for s in spec.obs.streams
        if s.kind == "text"
    ]
    return out


def show(found: dict[str, Any]) -> None:
    """Prints what `info` found, as tables."""
    from rich.console import Console
    from rich.table import Table

    console, length = Console(), found["length"]
    console.print(f"[bold]{found['path'] or 'demonstrations'}[/bold]")
    facts = Table(show_header=False, box=None)
    measured = "" if found["measured_hz"] is None else f" (measured {found['measured_hz']:.4g})"
    for name, text in (
        ("episodes", f"{found['episodes']:,}"),
        ("frames", f"{found['frames']:,}"),
        ("length", "" if length is None else f"{length['min']:g} to {length['max']:g}, median {length['median']:g}"),
        ("rate", "" if found["rate_hz"] is None else f"{found['rate_hz']:g} Hz{measured}"),
        ("duration", "" if found["duration_s"] is None else f"{found['duration_s']:,.1f} s"),
        ("size", "" if found["bytes"] is None else f"{found['bytes'] / 1e6:,.1f} MB"),
        ("seeds", "" if found["seeds"] is None else f"{found['seeds']:,}, {found['successes']:,} successes"),
        ("dropped", f"{found['dropped_rows']:,} rows of an unfinished episode" if found["dropped_rows"] else ""),
        *((f"image {i['stream']}", " x ".join(map(str, i["shape"]))) for i in found["images"]),
        *((f"text {t['stream']}", "; ".join(t["instructions"])) for t in found["texts"]),
        *((f"not shown {key}", why) for key, why in found.get("left_out", {}).items()),
        *(
            (f"not there {key}", f"{len(c):,} chunks, {c[0]} first; taken for the fill value")
            for key, c in found.get("absent", {}).items()
        ),
        *(found["versions"].items()),
    ):
        if text:
            facts.add_row(name, text)
    console.print(facts)
    table = Table("stream", "channel", "unit")
    for head in ("min", "max", "mean", "std", "not finite"):
        table.add_column(head, justify="right")
    for c in found["channels"]:
        numbers = ("" if c[k] is None else f"{c[k]:.4g}" for k in ("min", "max", "mean", "std"))
        table.add_row(c["stream"], c["name"], c["unit"], *numbers, str(c["not_finite"] or ""))
    console.print(table)


def _channels(rows: Rows, stream: str, names: Sequence[str], units: Sequence[str]) -> Iterator[dict[str, Any]]:
    bad = np.zeros(len(names), np.int64)

    def blocks() -> Iterator[np.ndarray]:
        step = max(1, BLOCK * len(names) // max(1, int(np.prod(rows.shape[1:]))))
        for i in range(0, len(rows), step):
            block = rows[i : i + step].reshape(-1, len(names))
            lost = ~np.isfinite(block)
            bad[:] += lost.sum(0)
            yield block[~lost.any(1)] if lost.any() else block

    left = iter(blocks())
    first = next((block for block in left if len(block)), None)
    m = None if first is None else moments(chain([first], left), names, stream)
    for i, name in enumerate(names):
        numbers = {"min": m.low, "max": m.high, "mean": m.mean, "std": m.std} if m else dict.fromkeys(_NUMBERS)
        yield {
            "stream": stream,
            "name": name,
            "unit": units[i] if i < len(units) else "",
            **{k: None if x is None else float(x[i]) for k, x in numbers.items()},
            "not_finite": int(bad[i]),
        }


_NUMBERS = ("min", "max", "mean", "std")


def _time(time_s: np.ndarray, ends: np.ndarray) -> dict[str, Any]:
    """From measured time: the median rate, and the duration with one more step for each episode's last row."""
    if not len(ends):
        return {}
    step = np.delete(np.diff(time_s), ends[:-1] - 1)
    if not len(step):
        return {}
    median = float(np.median(step))
    return {"measured_hz": 1 / median, "duration_s": float(step.sum() + median * len(ends))}
