"""The table and the figure of a bench."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown, one line a point."""
    lines = [
        "| task | policy | setting | network evaluations | ms a chunk | measure | value (95 %) | n | training steps |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        setting = ", ".join(_short(s) for s in r["settings"])
        if len(r["runs"]) > 1:
            setting = " / ".join(f"{w:g}" for w in r["weights"])
        if r.get("x") is not None:
            setting = f"{r['x']:g}" + (f", {setting}" if setting else "")
        low, high = r["interval"]
        ms = f"{r['ms']:.1f}" if "ms" in r else ""
        ms += f" ({r['bookkeeping']:+.1%} over its parts)" if "bookkeeping" in r else ""
        lines.append(
            f"| {r['task']} | {r['name']} | {setting} | {r.get('evaluations', '')} | {ms} | {r['measure']} | "
            f"{r['value']:.2f} ({low:.2f} to {high:.2f}) | {r['n']} | {r['steps']:,} |"
        )
    return "\n".join(lines) + "\n"


def _short(setting: str) -> str:
    """policy.sampler.angles.steps=4 -> steps 4"""
    key, _, value = setting.partition("=")
    return f"{key.rpartition('.')[2].replace('act_steps', 'steps')} {value}"


def figure(rows: Sequence[dict[str, Any]], path: Path, x_label: str | None = None) -> None:
    """Value with its interval, a row of panels a task: over network evaluations and milliseconds a chunk; over the entries'
    x where it has a label."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    single = [r for r in rows if len(r["runs"]) == 1]
    if not single:
        return
    tasks, names = list(dict.fromkeys(r["task"] for r in single)), list(dict.fromkeys(r["name"] for r in single))
    axes_of = [("evaluations", "network evaluations a chunk"), ("ms", "milliseconds a chunk")]
    axes_of = axes_of if x_label is None else [("x", x_label)]
    fig, axes = plt.subplots(
        len(tasks),
        len(axes_of),
        figsize=(4.6 * len(axes_of), 3.0 * len(tasks)),
        squeeze=False,
        sharey="row",
        layout="constrained",
    )
    colours = plt.get_cmap("tab10")
    for task, row in zip(tasks, axes, strict=True):
        for (key, label), ax in zip(axes_of, row, strict=True):
            for i, name in enumerate(names):
                mine = sorted(
                    (r for r in single if (r["task"], r["name"]) == (task, name) and r.get(key) is not None),
                    key=lambda r: r[key],
                )
                if not mine:
                    continue
                x, y = [r[key] for r in mine], [r["value"] for r in mine]
                low, high = zip(*(r["interval"] for r in mine), strict=True)
                ax.plot(x, y, color=colours(i % 10), marker="o", ms=4, lw=1.5, label=name)
                ax.vlines(x, low, high, color=colours(i % 10), lw=0.7)
            ax.set_xscale("log")
            if x_label is not None:
                ax.set_xticks(sorted({r[key] for r in single if r.get(key) is not None}))
            ax.xaxis.set_major_formatter("{x:g}")
            ax.xaxis.set_minor_formatter("")
            ax.set_ylim(-0.03, 1.03)
            ax.set_xlabel(label)
            ax.grid(alpha=0.3)
            ax.spines[["top", "right"]].set_visible(False)
        measure = next(r["measure"] for r in single if r["task"] == task)
        row[0].set_ylabel(f"{task}\n{measure}")
    handles = {h.get_label(): h for ax in axes.flat for h in ax.get_legend_handles_labels()[0]}
    fig.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(5, len(handles)), frameon=False)
    fig.savefig(path, dpi=150)
    plt.close(fig)
