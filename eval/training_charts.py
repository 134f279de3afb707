"""Charts of a run's log, and what the held-out loss says in a sentence."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from polyarm.config import OFFLINE
from polyarm.eval import charts

COLOURS = 4
"""Of the curves of single losses; a fifth has the first's again."""
SMOOTH_FROM = 20
"""Rows of a log from which on a smoothed curve says more than the raw one."""
RISE = 0.01
"""Of the lowest held-out loss: what the last must lie above it to be called a rise."""


def training(
    log: Sequence[Mapping[str, Any]], measure: str, checkpoint: str | None = None
) -> dict[str, Any] | None:  # fmt: skip
    """Curves of a run's log: loss, success in rollouts between steps, learning rate. `checkpoint`: the one that is judged."""
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
        "held_out": any("val_loss" in r for r in log),
        "rise": rise(log, measure, step_of(checkpoint)),
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


def rise(log: Sequence[Mapping[str, Any]], measure: str, judged: int | None = None) -> str:
    """What to know about a held-out loss that was lower before the end, "" of one that was not. `judged`: the step of the
    checkpoint that the report is about, None where that is not known."""
    rows = [r for r in log if "val_loss" in r]
    if not rows:
        return ""
    best, last = min(rows, key=lambda r: r["val_loss"]), rows[-1]
    low, end = best["val_loss"], last["val_loss"]
    if not end - low > RISE * abs(low):
        return ""
    more = f", {100 * (end / low - 1):.0f} % higher," if low > 0 else ""
    follow = "" if measure == OFFLINE else f", which {measure} need not follow"
    here = "" if judged is None else f"; judged here is step {judged:,}"
    return (
        f"The held-out loss is lowest at step {best['step']:,} ({charts.short(low, 3)}) and {charts.short(end, 3)}{more} at step "
        f"{last['step']:,}: since then the policy fits episodes that it was not trained on worse{follow}{here}."
    )


def step_of(checkpoint: str | None) -> int | None:
    """../checkpoints/step_00000020 -> 20"""
    found = re.search(r"step_(\d+)$", checkpoint or "")
    return int(found[1]) if found else None


def column(rows: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    return np.array([r[key] for r in rows], float)
