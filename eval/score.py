"""What a set of played episodes says: rates with intervals, never a bare number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from polyarm.spec import UserError, unknown

MEASURES = ("success", "score")
HEADLINE = {"success": "success_rate", "score": "score"}
"""Which number of a summary each measure is headed by."""
RESAMPLES = 10_000


@dataclass(frozen=True)
class Outcome:
    """One episode. `score`: its best reward, 0 to 1; `steps`: actions taken; `told`: its instruction, None in a world without."""

    seed: int
    success: bool
    score: float
    steps: int
    told: str | None = None


def summary(outcomes: Sequence[Outcome], measure: str, level: float = 0.95, stages: int = 0) -> dict[str, Any]:
    """Success rate, mean score and the interval of the headline `measure` ("success" or "score") at `level`.

    `stages`: of a world whose score is the share done of so many subtasks; adds how often at least 1, 2, ... were done. Where episodes have
    instructions, the headline of each different one is added.

    Plain data, ready for JSON. Refuses no episodes and repeated seeds: a seed played twice is one draw, not two.
    """
    if measure not in MEASURES:
        raise unknown("measure", measure, MEASURES)
    if not outcomes:
        raise UserError("0 episodes cannot be summarised: play at least 1")
    if not 0 < level < 1:
        raise UserError(f"level={level}: give a confidence between 0 and 1, such as 0.95")
    seeds = [o.seed for o in outcomes]
    if len(set(seeds)) < len(seeds):
        twice = next(s for s in seeds if seeds.count(s) > 1)
        raise UserError(f"seed {twice} was played {seeds.count(twice)} times: give every episode its own seed")
    scores = np.array([o.score for o in outcomes], float)
    told = sorted({o.told for o in outcomes if o.told is not None})
    wins, n = sum(o.success for o in outcomes), len(outcomes)
    lo, hi = _interval(outcomes, measure, level)
    return {
        "measure": measure,
        "success_rate": wins / n,
        "score": float(scores.mean()),
        **({"stages": at_least(scores, stages)} if stages else {}),
        **(
            {"instructions": {x: _headline([o for o in outcomes if o.told == x], measure, level) for x in told}}
            if told
            else {}
        ),
        "n": n,
        "interval": [lo, hi],
        "interval_kind": f"{'Wilson' if measure == 'success' else 'bootstrap'} {100 * level:g} %",
        "seeds": seeds,
        "per_seed": [{k: v for k, v in asdict(o).items() if v is not None} for o in outcomes],
    }


def _interval(outcomes: Sequence[Outcome], measure: str, level: float) -> tuple[float, float]:
    if measure == "success":
        return wilson(sum(o.success for o in outcomes), len(outcomes), level)
    return bootstrap(np.array([o.score for o in outcomes], float), level)


def _headline(outcomes: Sequence[Outcome], measure: str, level: float) -> dict[str, Any]:
    values = [o.success if measure == "success" else o.score for o in outcomes]
    lo, hi = _interval(outcomes, measure, level)
    return {HEADLINE[measure]: float(np.mean(values)), "n": len(values), "interval": [lo, hi]}


def seeds_said(result: Mapping[str, Any]) -> str:
    """What the seeds of a result may be called: fresh only if none is in the demonstrations, `demonstrated` of a result; None
    there where that is not known. In a world that a seed does not decide they are episodes."""
    n, known = result["n"], result.get("demonstrated", [])
    if not result.get("replays", True):
        return "1 episode" if n == 1 else f"{n} episodes"
    seeds = "seed" if n == 1 else "seeds"
    if known is None:
        return f"{n} {seeds} (whether they were demonstrated is not known)"
    return f"{n} {seeds} ({len(known)} of them demonstrated)" if known else f"{n} fresh {seeds}"


def at_least(scores: Float[np.ndarray, "n"], stages: int) -> dict[str, float]:
    """{"p1": share of episodes with one subtask or more, "p2": ...}, from scores that are multiples of 1 / stages."""
    return {f"p{k}": float(np.mean(scores * stages > k - 0.5)) for k in range(1, stages + 1)}


def wilson(wins: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Score interval of a success rate (Wilson 1927). Holds its level for few episodes and for rates near 0 and 1."""
    from scipy.stats import binomtest

    found = binomtest(wins, n).proportion_ci(level, method="wilson")
    return float(found.low), float(found.high)


def bootstrap(scores: Float[np.ndarray, "n"], level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Bias-corrected and accelerated interval of the mean (Efron 1987), from 10,000 resamples of a fixed seed.

    Equal scores (one episode among them) cannot be resampled into others: the interval is then [s, s], which says that
    nothing is known about the spread, not that the mean is certain.
    """
    if np.ptp(scores) == 0:
        return float(scores[0]), float(scores[0])
    from scipy.stats import bootstrap as resample

    found = resample(
        (scores,), np.mean, n_resamples=RESAMPLES, batch=1000, confidence_level=level, method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return float(found.low), float(found.high)
