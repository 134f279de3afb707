"""`polyarm demo`: demonstrations collected, a policy trained, an honest success rate, a report. Minutes, no GPU."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from polyarm.collect import collect_task
from polyarm.config import compose


def demo(overrides: Sequence[str]) -> dict[str, Any]:
    """Runs the line from nothing to a report in output_dir (default outputs/demo); returns result.json's content.

    A second run goes on with what the first has saved; another set of settings wants another output_dir.
    """
    given = [word.partition("=")[0] for word in overrides]
    words = [*overrides] if "experiment" in given else ["experiment=demo", *overrides]
    config = compose(words)
    out = Path(config.output_dir)
    seconds: dict[str, float] = {}

    began = time.perf_counter()
    collected = collect_task(config)
    seconds["collect"] = round(time.perf_counter() - began, 2)
    print(
        f"collected {collected['episodes']} demonstrations ({collected['frames']} frames) in {seconds['collect']:.0f} s",
        file=sys.stderr,
    )

    began = time.perf_counter()
    from polyarm.train import fit

    run = fit(config)
    seconds["train"] = round(time.perf_counter() - began, 2)

    from polyarm.eval.run import evaluate

    judged = [
        word for word in overrides if word.startswith("eval.")
    ]  # a run that is finished holds those it began with
    return evaluate([run], judged, seconds=seconds, prefer=out)
