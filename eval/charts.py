"""Numbers to the geometry of small SVG charts. Pure functions; report.html draws what they return, and CSS colours it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import log10, sqrt

import numpy as np
from jaxtyping import Float, Int

WIDTH, HEIGHT = 440.0, 250.0
LEFT, RIGHT, TOP, BOTTOM = 72.0, 14.0, 12.0, 44.0
MOST_POINTS = 600
"""Points of a drawn line: about three a screen pixel column, so that a long log does not weigh on the page."""

Number = int | float


@dataclass(frozen=True)
class Line:
    """A curve, and its interval where `lo` and `hi` are given. `css` names its look."""

    label: str
    css: str
    x: Float[np.ndarray, "n"]
    y: Float[np.ndarray, "n"]
    lo: Float[np.ndarray, "n"] | None = None
    hi: Float[np.ndarray, "n"] | None = None
    dots: bool = False


@dataclass(frozen=True)
class Chart:
    """What is drawn, in the pixels of a WIDTH x HEIGHT picture: x to the right, y down."""

    title: str
    x_label: str
    y_label: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    legend: list[tuple[str, str]]  # (css, label)
    paths: list[tuple[str, str]] = field(default_factory=list)  # (css, d)
    dots: list[tuple[str, float, float, str]] = field(default_factory=list)  # (css, x, y, hover)
    bars: list[tuple[str, float, float, float, float, str]] = field(default_factory=list)  # (css, x, y, w, h, hover)
    marks: list[tuple[str, float]] = field(default_factory=list)  # (css, x)


@dataclass(frozen=True)
class Axis:
    """A straight or logarithmic map from values to pixels."""

    lo: float
    hi: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        a, b, v = (log10(x) for x in (self.lo, self.hi, value)) if self.log else (self.lo, self.hi, value)
        return round(float(self.start + (self.end - self.start) * (v - a) / (b - a)), 1)

    def rounded(self, most: int = 6, integer: bool = False) -> Axis:
        """The same axis, ending at round numbers."""
        from matplotlib.ticker import MaxNLocator

        if self.log:
            return self
        values = MaxNLocator(most, steps=[1, 2, 5, 10], integer=integer).tick_values(self.lo, self.hi)
        return replace(self, lo=float(values[0]), hi=float(values[-1]))

    def ticks(self, most: int = 6, integer: bool = False) -> list[tuple[float, str]]:
        from matplotlib.ticker import LogLocator, MaxNLocator

        if self.log:
            subs = (1.0,) if log10(self.hi / self.lo) > 2.5 else (1.0, 2.0, 5.0)
            values = LogLocator(subs=subs, numticks=12).tick_values(self.lo, self.hi)
        else:
            values = MaxNLocator(most, steps=[1, 2, 5, 10], integer=integer).tick_values(self.lo, self.hi)
        low, high = sorted((self.start, self.end))
        return [(self.at(v), short(v)) for v in values if low <= self.at(v) <= high]


def short(value: Number, digits: int = 4) -> str:
    """A few significant digits: 20,000; 0.05; 1e-4."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if 0 < abs(value) < 1e-3:
        mantissa, _, power = f"{value:.{digits - 1}e}".partition("e")
        return f"{float(mantissa):g}e{int(power)}"
    return f"{value:.{digits}g}"


def lines(
    title: str, x_label: str, y_label: str, curves: Sequence[Line], rate: bool = False, tight: bool = False,
    at: str = "step {:,.0f}",
) -> Chart:  # fmt: skip
    """Curves over one x axis; `at`: an x in words. `rate`: y runs from 0 to 1; `tight`: over the values alone. Otherwise from 0, and a y that spans more than ten times is logarithmic."""
    ys = np.concatenate([v for c in curves for v in (c.y, c.lo, c.hi) if v is not None])
    xs = np.concatenate([c.x for c in curves])
    lo, hi = float(ys.min()), float(ys.max())
    log = not rate and not tight and 0 < 10 * lo < hi
    x_axis = Axis(float(min(0, xs.min())), float(xs.max() or 1), LEFT, WIDTH - RIGHT)
    if tight and lo == hi:
        lo, hi = lo - 1, hi + 1
    elif not log and not tight:
        lo, hi = min(0.0, lo), max(0.0, hi) or float(lo >= 0)
    y_axis = Axis(lo, max(hi, 1.0) if rate else hi, HEIGHT - BOTTOM, TOP, log).rounded()
    chart = Chart(title, x_label, y_label, x_axis.ticks(), y_axis.ticks(), [(c.css, c.label) for c in curves])
    for c in curves:
        if c.lo is not None and c.hi is not None:
            whiskers = zip(c.x, c.lo, c.hi, strict=True)
            d = "".join(f"M{x_axis.at(x):g} {y_axis.at(a):g}V{y_axis.at(b):g}" for x, a, b in whiskers)
            chart.paths.append((f"{c.css} whisker", d))
        keep = thin(c.y)
        points = [(x_axis.at(x), y_axis.at(y)) for x, y in zip(c.x[keep], c.y[keep], strict=True)]
        chart.paths.append((c.css, "M" + "L".join(f"{x:g} {y:g}" for x, y in points)))
        if c.dots or len(points) == 1:
            hover = [f"{c.label} {short(y)} at {at.format(x)}" for x, y in zip(c.x[keep], c.y[keep], strict=True)]
            chart.dots.extend((c.css, x, y, words) for (x, y), words in zip(points, hover, strict=True))
    return chart


def histogram(
    title: str, x_label: str, what: str, groups: Sequence[tuple[str, str, Float[np.ndarray, "_"]]],
    marks: Sequence[tuple[str, str, float]] = (), integer: bool = False,
) -> Chart | None:  # fmt: skip
    """Stacked counts of `groups` (label, css, values) of `what`; `marks` (label, css, value) stand as upright lines.

    None where all values are equal but for rounding: one bar is no distribution.
    """
    values = np.concatenate([v for _, _, v in groups])
    if np.allclose(values, values[0], rtol=1e-9, atol=0):
        return None
    edges = bins(values, integer)
    counts = [np.histogram(v, edges)[0] for _, _, v in groups]
    x_axis = Axis(float(edges[0]), float(edges[-1]), LEFT, WIDTH - RIGHT)
    y_axis = Axis(0.0, float(np.sum(counts, axis=0).max()), HEIGHT - BOTTOM, TOP).rounded(4, True)
    legend = [(css, label) for label, css, _ in groups if label] + [(f"{css} mark", label) for label, css, _ in marks]
    chart = Chart(title, x_label, what, x_axis.ticks(), y_axis.ticks(4, True), legend)
    below = np.zeros(len(edges) - 1)
    for (label, css, _), count in zip(groups, counts, strict=True):
        for i in np.flatnonzero(count):
            left, right = x_axis.at(edges[i]), x_axis.at(edges[i + 1])
            top, bottom = y_axis.at(below[i] + count[i]), y_axis.at(below[i])
            hover = (
                f"{count[i]} {what}, {short(edges[i])} to {short(edges[i + 1])} {x_label.partition(', ')[2]} {label}"
            )
            width = round(max(right - left - 1, 0.5), 1)
            chart.bars.append((css, left, top, width, round(bottom - top, 1), hover.strip()))
        below += count
    chart.marks.extend((css, x_axis.at(value)) for _, css, value in marks)
    return chart


def bins(values: Float[np.ndarray, "n"], integer: bool) -> Float[np.ndarray, "m"]:
    """Edges at round numbers, at most 30 bins and fewer for few values."""
    from matplotlib.ticker import MaxNLocator

    most = int(np.clip(2 * sqrt(len(values)), 5, 30))
    locator = MaxNLocator(most, steps=[1, 2, 2.5, 5, 10], integer=integer)
    return np.asarray(locator.tick_values(float(values.min()), float(values.max())), float)


def smooth(y: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """Mean of the nearest 1/25 of the rows on either side together; near the ends, of those that exist."""
    window = np.ones(min(len(y), max(1, len(y) // 25) | 1))
    return np.convolve(y, window, "same") / np.convolve(np.ones(len(y)), window, "same")


def thin(y: Float[np.ndarray, "n"]) -> Int[np.ndarray, "m"]:
    """Indices of at most MOST_POINTS points that keep every bucket's lowest and highest, so that no spike is lost."""
    if len(y) <= MOST_POINTS:
        return np.arange(len(y))
    parts = np.array_split(np.arange(len(y)), MOST_POINTS // 2)
    return np.unique([i for p in parts for i in (p[np.argmin(y[p])], p[np.argmax(y[p])])])
