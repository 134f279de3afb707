"""Charts of an action error: by row of the chunk, and what was predicted against what was recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from polyarm.eval import charts
from polyarm.eval.offline import Judged

CHANNELS, EPISODES, SAMPLES = 4, 3, 8
"""Drawn at most: the channels of the largest error, the best, the middle and the worst episode, chunks of each window."""
KINDS = (
    ("mean", "training mean", "raw"),
    ("repeat", "repeat last action", "bad"),
    ("best_of_samples", "best of samples", "c0"),
    ("policy", "policy", "ok"),
)


def drawn(result: Mapping[str, Any], judged: Sequence[Judged], rate_hz: float) -> dict[str, Any]:
    """{"rows": charts, "episodes": charts, "shown": how many of how many channels}."""
    channels = result["channels"]
    worst = sorted(range(len(channels)), key=lambda i: -channels[i]["policy"] / (channels[i]["std"] or 1))[:CHANNELS]
    order = np.argsort([e["policy"] for e in result["per_episode"]])
    some = dict.fromkeys(order[[0, len(order) // 2, -1]].tolist())
    return {
        "rows": [_rows(result["rows"], i, channels[i]) for i in sorted(worst)],
        "episodes": [
            _episode(judged[k], i, channels[i], result["executed_rows"], rate_hz) for k in some for i in sorted(worst)
        ],
        "shown": "" if len(worst) == len(channels) else f"the {len(worst)} of {len(channels)} channels it misses most",
    }


def _said(channel: Mapping[str, Any]) -> str:
    return f"{channel['name']}, {channel['unit']}" if channel["unit"] else channel["name"]


def _rows(rows: Sequence[Mapping[str, Any]], i: int, channel: Mapping[str, Any]) -> charts.Chart:
    x = np.array([row["row"] for row in rows], float)
    curves = [charts.Line(label, css, x, np.array([row[kind][i] for row in rows])) for kind, label, css in KINDS]
    return charts.lines(f"Error of {channel['name']}", "row of the chunk", f"error, {channel['unit'] or '1'}", curves)


def _episode(j: Judged, i: int, channel: Mapping[str, Any], steps: int, rate_hz: float) -> charts.Chart:
    there = j.there[:, :steps]
    recorded = j.recorded[:, :steps, i][there]
    at = (np.arange(len(j.there))[:, None] * steps + np.arange(there.shape[1])) / rate_hz
    curves = [
        charts.Line("predicted", "raw", at[w][there[w]], j.drawn[w, s, :steps, i][there[w]])
        for s in range(min(SAMPLES, j.drawn.shape[1]))
        for w in range(len(at))
        if there[w].any()
    ]
    curves.append(charts.Line("recorded", "ok", np.arange(len(recorded)) / rate_hz, recorded))
    chart = charts.lines(f"Episode {j.episode}: {channel['name']}", "time, s", _said(channel), curves, tight=True)
    return replace(chart, legend=list(dict.fromkeys(chart.legend)), dots=[])
