"""One HTML file that says how a policy did: opens anywhere, needs nothing beside it, asks no network."""

from __future__ import annotations

import base64
import mimetypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from polyarm.config import OFFLINE
from polyarm.eval import charts, turning
from polyarm.eval.page import script, write_page
from polyarm.eval.scene import Scene
from polyarm.eval.score import seeds_said
from polyarm.eval.seen import Seen
from polyarm.eval.training_charts import column, training
from polyarm.eval.video import encoded, last_frame
from polyarm.spec import UserError


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
    views: Sequence[Seen] = (),
    scenes: Sequence[Scene] = (),
    absent: Mapping[str, str] | None = None,
) -> None:
    """Write the report of an evaluation; makes the folder.

    `result`: what `polyarm eval` writes to result.json; `log`: rows of the run's log.jsonl; `data_card`: what
    `datasets.info.info` says of the demonstrations; `clips`: (mp4 or picture, caption); `offline`: charts of an action error
    (`eval.offline_charts`); `views`: what a policy of images saw; `scenes`: what cameras measured, to be turned; `absent`: of
    the parts "training" and "data" that should be there, why they are not. Other parts that are missing are left out. Everything is
    inlined; text is escaped.
    """
    write_page(
        path, "report.html", {"short": charts.short, "duration": duration, "size": size},
        title=title, r=result, head=headline(result), episodes=episodes(result), latency=latency(result), over=over_latency(result),
        energy=energy(energies),
        training=training(log or (), result["measure"], result.get("checkpoint")), card=data_card,
        clips=[embed(*c) for c in clips], config=config_yaml, picture=charts, offline=offline, absent=absent or {},
        views=[view(v) for v in views], several=len({v.policy for v in views}) > 1, date=date(result),
        terms=terms(result), scenes=[turning.view(s) for s in scenes], script=script("scene.js"),
    )  # fmt: skip


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


def date(result: Mapping[str, Any]) -> str | None:
    """2026-01-31T09:05:00+01:00 -> 2026-01-31 09:05 (UTC+01:00)"""
    if "date" not in result:
        return None
    when = datetime.fromisoformat(result["date"])
    return f"{when:%Y-%m-%d %H:%M} ({when.tzname()})"


def terms(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(word, half a sentence about it) of what the head of the page names."""
    if result["measure"] == OFFLINE:
        return [
            ("Held-out episodes", "demonstrations kept out of training"),
            ("standard deviation", "how far an action channel strays from its mean in training, so that all channels count alike"),
        ]  # fmt: skip
    lo, hi = result["interval"]
    level = result["interval_kind"].partition(" ")[2]
    what = "rate" if result["measure"] == "success" else "mean"
    said = [
        ("score", "the best reward that an episode reached, from 0 to 1", "score" in result),
        ("interval", f"where the {what} over all seeds there are lies, with {level} confidence", lo < hi),
        ("fresh seeds", "starts that are in none of the demonstrations", "fresh" in seeds_said(result)),
    ]
    return [(word, about) for word, about, named in said if named]


def episodes(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """The per-seed strip, the failed seeds, and how long episodes took."""
    rows = result.get("per_seed")
    if not rows:
        return None
    won, lost = [r for r in rows if r["success"]], [r for r in rows if not r["success"]]
    groups = [group for group in (("solved", "ok", won), ("failed", "bad", lost)) if group[2]]
    drawn = [_distribution(groups, "steps", "Episode length", "length, steps", integer=True)]
    if result["measure"] == "score":
        drawn.append(_distribution(groups, "score", "Score of each episode", "score, the best reward reached"))
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
    ms = np.array(result.get("chunk_ms") or (), float)
    if not len(ms):
        return None
    median, p95 = float(np.median(ms)), float(np.percentile(ms, 95))
    marks = [(f"median {median:.1f} ms", "median", median), (f"95th percentile {p95:.1f} ms", "tail", p95)]
    chart = charts.histogram("Time to plan one chunk", "time, ms", "chunks", [("", "ok", ms)], marks)
    return {"median": median, "p95": p95, "charts": [chart] if chart else [], "said": _measured(result, len(ms))}


def over_latency(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """What planning costs that takes its time: the headline over the latencies of `latencies`, and how long episodes took."""
    rows = result.get("latencies")
    if not rows:
        return None
    key, name = ("success_rate", "success rate") if result["measure"] == "success" else ("score", "mean score")
    ms, (lo, hi) = column(rows, "latency_ms"), np.array([r["interval"] for r in rows], float).T
    curves = [charts.Line(name, "ok", ms, column(rows, key), lo, hi, dots=True)]
    steps = [charts.Line("mean length", "c0", ms, column(rows, "mean_steps"), dots=True)]
    drawn = partial(charts.lines, x_label="time that planning takes, ms", at="{:g} ms")
    planned = ", ".join(f"{r['ahead']} at {r['latency_ms']:g} ms" for r in rows)
    return {
        "charts": [
            drawn(f"{name.capitalize()} over latency", y_label=name, curves=curves, rate=True),
            drawn("Length of episodes over latency", y_label="mean length, steps", curves=steps),
        ],
        "said": f"The same seeds at each latency, {rows[0]['interval_kind']} intervals. Rows of a chunk left when the next is planned, from "
        f"what is seen then: {planned}.",
    }


def _measured(result: Mapping[str, Any], n: int) -> str:
    """What the times of `chunk_ms` are times of, and on what."""
    machine, acting = result.get("machine") or {}, result.get("acting") or {}
    gpu, threads = machine.get("gpu"), acting.get("threads")
    where = gpu or machine.get("cpu") or ""
    if threads and not gpu:
        where += f"{', ' if where else ''}{threads} torch thread{'s' if threads > 1 else ''}"
    return (
        f"Planning is timed {n} times{f' on {where}' if where else ''}: from an observation to one chunk of actions, for one world "
        "(a batch of one), encoder and every denoising step included, the world's own step not; after a first one to warm up."
    )


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


def embed(path: Path, caption: str) -> dict[str, Any]:
    """A clip or picture as a data address; a clip with how it ends, to be shown before it plays."""
    kind = mimetypes.guess_type(str(path))[0] or ""
    if not kind.startswith(("video/", "image/")):
        raise UserError(f"clip {path} is no video or picture: give .mp4, .png or .jpg")
    clip = {"kind": kind.partition("/")[0], "src": address(Path(path).read_bytes(), kind), "caption": caption}
    if clip["kind"] == "image":
        return clip
    end = last_frame(path)
    height, width = end.shape[:2]
    return clip | {"poster": address(encoded(end, "jpeg"), "image/jpeg"), "height": height, "width": width}


def view(v: Seen) -> dict[str, Any]:
    """A camera's pictures as data addresses, and where the window of acting lies, in parts of the whole picture."""
    (height, width), (top, left, h, w) = v.whole.shape[:2], v.box
    png = lambda picture: address(encoded(picture, "png"), "image/png")
    a, b = v.acting.shape[:2]
    cropped = (h, w) != (height, width)
    takes = f"the central {h} \u00d7 {w} of {height} \u00d7 {width} pixels" if cropped else "the whole picture"
    takes += f", resized to {a} \u00d7 {b}" if (a, b) != (h, w) else ""
    trains = (
        "Training takes a window of this size at random, drawn anew each time."
        if v.training
        else "Training sees the same."
    )
    unknown = f"Its encoder names no crop, so the whole picture of {height} \u00d7 {width} pixels is shown."
    return {
        "stream": v.stream, "policy": v.policy, "whole": png(v.whole), "acting": png(v.acting), "height": height, "width": width,
        "training": [png(x) for x in v.training], "part": w / width, "cropped": cropped, "size": f"{a} \u00d7 {b}",
        "box": [100 * top / height, 100 * left / width, 100 * h / height, 100 * w / width],
        "said": f"Acting takes {takes}. {trains}" if v.said else unknown,
    }  # fmt: skip


def address(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


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
