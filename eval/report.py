"""One HTML file that says how a policy did: opens anywhere, needs nothing beside it, asks no network."""

from __future__ import annotations

import base64
import mimetypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from polyarm.config import OFFLINE
from polyarm.eval import charts
from polyarm.eval.score import seeds_said
from polyarm.spec import UserError

COLOURS = 4
"""Of the curves of single losses; a fifth has the first's again."""
SMOOTH_FROM = 20
"""Rows of a log from which on a smoothed curve says more than the raw one."""


def write_report(
    path: Path | str,
    *,
    title: str,
    result: Mapping[str, Any],
    log: Sequence[Mapping[str, Any]] | None = None,
    data_card: Mapping[str, Any] | None = None,
    clips: Sequence[tuple[Path, str]] = (),
    energies: Sequence[tuple[bool, np.ndarray]] = (),
    config_yaml: str | None = None,
    offline: Mapping[str, Any] | None = None,
) -> None:
    """Write the report of an evaluation; makes the folder.

    `result`: what `polyarm eval` writes to result.json; `log`: rows of the run's log.jsonl; `data_card`: what
    `datasets.info.info` says of the demonstrations; `clips`: (mp4 or picture, caption); `offline`: charts of an action error
    (`eval.offline_charts`). Parts that are missing are left
    out. Everything is inlined; text is escaped.
    """
    from jinja2 import Environment, StrictUndefined

    env = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    env.filters.update(short=charts.short, duration=duration, size=size)
    page = env.from_string(files("polyarm.eval").joinpath("report.html").read_text(encoding="utf-8")).render(
        title=title, r=result, head=headline(result), episodes=episodes(result), latency=latency(result),
        energy=energy(energies),
        training=training(log or (), result["measure"]), card=data_card, clips=[embed(*c) for c in clips],
        config=config_yaml, picture=charts, offline=offline,
    )  # fmt: skip
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    work = path.with_name(path.name + ".partial")
    work.write_text(page, encoding="utf-8")
    work.replace(path)


@dataclass(frozen=True)
class Headline:
    """The number that counts, with its interval: as text, and as a sentence."""

    name: str
    value: float
    lo: float
    hi: float
    digits: int
    sentence: str

    def text(self, value: float) -> str:
        return f"{value:.{self.digits}f}"


def headline(result: Mapping[str, Any]) -> Headline:
    if result["measure"] == OFFLINE:
        value = result["action_error"]
        return Headline("action error", value, value, value, 2, result["said"])
    n, (lo, hi) = result["n"], result["interval"]
    kind, _, level = result["interval_kind"].partition(" ")
    digits = 2 if n <= 100 else 3
    seeds = seeds_said(result)
    if result["measure"] == "success":
        name, value, what = "success rate", result["success_rate"], "rate"
        said = f"{round(value * n)} of {seeds} solved"
    else:
        name, value, what = "mean score", result["score"], "mean"
        said = f"Best reward of an episode, mean over {seeds}: {value:.{digits}f}"
    if lo == hi:
        bound = "every episode scored the same, so resampling cannot tell how far off the true mean is"
    else:
        bound = f"the true {what} lies between {lo:.{digits}f} and {hi:.{digits}f} with {level} confidence ({kind})"
    return Headline(name, value, lo, hi, digits, f"{said}; {bound}.")


def episodes(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """The per-seed strip, the failed seeds, and how long episodes took."""
    rows = result.get("per_seed")
    if not rows:
        return None
    won, lost = [r for r in rows if r["success"]], [r for r in rows if not r["success"]]
    groups = [group for group in (("solved", "ok", won), ("failed", "bad", lost)) if group[2]]
    drawn = [_distribution(groups, "steps", "Episode length", "length, steps", integer=True)]
    if result["measure"] == "score":
        drawn.append(_distribution(groups, "score", "Best score of each episode", "score"))
    seeds = sorted(r["seed"] for r in rows)
    run = seeds == list(range(seeds[0], seeds[0] + len(seeds))) and len(seeds) > 1
    return {
        "rows": rows,
        "lost": lost,
        "charts": [c for c in drawn if c],
        "seeds": f"{seeds[0]} to {seeds[-1]}" if run else ", ".join(map(str, seeds)),
        "median_steps": float(np.median([r["steps"] for r in rows])),
        "by_score": result["measure"] == "score",
    }


def _distribution(groups: list[Any], key: str, title: str, label: str, integer: bool = False) -> charts.Chart | None:
    values = [(name, css, column(rows, key)) for name, css, rows in groups]
    return charts.histogram(title, label, "episodes", values, integer=integer)


def latency(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """How long planning one chunk took."""
    ms = np.array(result.get("latency_ms") or (), float)
    if not len(ms):
        return None
    median, p95 = float(np.median(ms)), float(np.percentile(ms, 95))
    marks = [(f"median {median:.1f} ms", "median", median), (f"95th percentile {p95:.1f} ms", "tail", p95)]
    chart = charts.histogram("Time to plan one chunk", "time, ms", "chunks", [("", "ok", ms)], marks)
    return {"median": median, "p95": p95, "charts": [chart] if chart else []}


MOST_EPISODES = 12
"""Episodes whose energies are drawn: more are a thicket."""


def energy(energies: Sequence[tuple[bool, np.ndarray]]) -> charts.Chart | None:
    """Energy of the executed chunk over the steps of some episodes, failed ones first."""
    some = sorted(energies, key=lambda e: e[0])[:MOST_EPISODES]
    if not some:
        return None
    curves = [
        charts.Line("solved" if won else "failed", "ok" if won else "bad", np.arange(len(y), dtype=float), y)
        for won, y in some
    ]
    chart = charts.lines("Energy of the executed chunk", "step of the episode", "energy", curves)
    return replace(chart, legend=list(dict.fromkeys(chart.legend)))


def training(log: Sequence[Mapping[str, Any]], measure: str) -> dict[str, Any] | None:
    """Curves of a run's log: loss, success in rollouts between steps, learning rate."""
    drawn = []
    curves = _loss(log)
    if curves:
        drawn.append(charts.lines("Loss", "training step", "loss", curves))
    key, name = ("success_rate", "success rate") if measure == "success" else ("score", "mean score")
    judged = [r for r in log if r.get(key) is not None]
    if judged:
        x, y = column(judged, "step"), column(judged, key)
        known = all("interval" in r for r in judged)
        lo, hi = np.array([r["interval"] for r in judged], float).T if known else (None, None)
        curve = charts.Line(name, "ok", x, y, lo, hi, dots=True)
        drawn.append(charts.lines(f"{name.capitalize()} while training", "training step", name, [curve], rate=True))
    for key, title, label in (
        ("lr", "Learning rate", "learning rate"),
        ("samples_per_s", "Throughput", "samples a second"),
    ):
        rows = [r for r in log if key in r]
        if rows:
            curve = charts.Line(label, "ok", column(rows, "step"), column(rows, key))
            drawn.append(charts.lines(title, "training step", label, [curve]))
    if not drawn:
        return None
    speed = [r["samples_per_s"] for r in log if "samples_per_s" in r]
    return {
        "charts": drawn,
        "steps": max(r["step"] for r in log),
        "speed": float(np.median(speed)) if speed else None,
        "episodes": {r["n"] for r in judged if "interval" in r and "n" in r},
    }


def _loss(log: Sequence[Mapping[str, Any]]) -> list[charts.Line]:
    """The loss, and of a policy with several each by its name; of held-out episodes as dots."""
    curves = []
    for i, key in enumerate(["loss", *_named(log)]):
        name = key.partition(".")[2]
        css, held_css = (f"c{(i - 1) % COLOURS}",) * 2 if name else ("ok", "bad")
        rows, held_out = [r for r in log if key in r], [r for r in log if f"val_{key}" in r]
        if rows:
            x, y = column(rows, "step"), column(rows, key)
            smooth = len(rows) >= SMOOTH_FROM
            if smooth and not name:
                curves.append(charts.Line("training", "raw", x, y))
            curves.append(
                charts.Line(name or ("smoothed" if smooth else "training"), css, x, charts.smooth(y) if smooth else y)
            )
        if held_out:
            label = f"held-out episodes, {name}" if name else "held-out episodes"
            curves.append(
                charts.Line(label, held_css, column(held_out, "step"), column(held_out, f"val_{key}"), dots=True)
            )
    return curves


def _named(log: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys of a policy's several losses, in the order of the log."""
    keys = (key.removeprefix("val_") for row in log for key in row)
    return list(dict.fromkeys(key for key in keys if key.startswith("loss.")))


def column(rows: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    return np.array([r[key] for r in rows], float)


def embed(path: Path, caption: str) -> dict[str, str]:
    """A clip or picture as a data address."""
    kind = mimetypes.guess_type(str(path))[0] or ""
    if not kind.startswith(("video/", "image/")):
        raise UserError(f"clip {path} is no video or picture: give .mp4, .png or .jpg")
    data = base64.b64encode(Path(path).read_bytes()).decode()
    return {"kind": kind.partition("/")[0], "src": f"data:{kind};base64,{data}", "caption": caption}


def duration(seconds: charts.Number) -> str:
    """8.25 -> 8.2 s; 200 -> 3 min 20 s; 3900 -> 1 h 5 min."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, s = divmod(round(seconds), 60)
    return f"{minutes} min {s} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def size(count: charts.Number) -> str:
    """Bytes in decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
