"""Intervals against their closed form, and against what an interval promises."""

import json
from math import sqrt
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyarm.eval.score import Outcome, bootstrap, summary, wilson
from polyarm.spec import UserError


def outcomes(successes, scores=None):
    scores = successes if scores is None else scores
    return [Outcome(100 + i, bool(s), float(x), 10 + i) for i, (s, x) in enumerate(zip(successes, scores, strict=True))]


def closed_form(wins, n, level):
    """Wilson, "Probable inference, the law of succession, and statistical inference", 1927."""
    z, p = NormalDist().inv_cdf((1 + level) / 2), wins / n
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return middle - half, middle + half


@given(n=st.integers(1, 2000), share=st.floats(0, 1), level=st.sampled_from([0.5, 0.9, 0.95, 0.99]))
@settings(deadline=None)
def test_wilson_is_its_closed_form(n, share, level):
    wins = round(share * n)
    assert wilson(wins, n, level) == pytest.approx(closed_form(wins, n, level), abs=1e-9)


def test_wilson_covers_the_true_rate_as_often_as_it_says():
    rng = np.random.default_rng(0)
    for p in (0.5, 0.8, 0.95):
        wins = rng.binomial(100, p, size=2000)
        found = {int(w): wilson(int(w), 100) for w in np.unique(wins)}
        covered = np.mean([found[int(w)][0] <= p <= found[int(w)][1] for w in wins])
        assert 0.93 <= covered <= 0.975, p


def test_bootstrap_covers_the_true_mean_of_skewed_scores():
    """300 experiments of 50 episodes: the share is known to about 1.3 points, and small samples cost two."""
    rng = np.random.default_rng(1)
    draws = rng.beta(4, 1, size=(300, 50))  # many near 1, a tail of bad episodes: mean 0.8
    covered = np.mean([lo <= 0.8 <= hi for lo, hi in map(bootstrap, draws)])
    assert 0.90 <= covered <= 0.98


def test_bootstrap_repeats_and_is_not_the_normal_interval():
    scores = np.random.default_rng(2).beta(8, 1, size=40)
    lo, hi = bootstrap(scores)
    assert (lo, hi) == bootstrap(scores)
    assert scores.mean() - lo > hi - scores.mean() > 0, "a tail to the left makes the interval longer there"
    narrow = bootstrap(scores, level=0.5)
    assert lo < narrow[0] < scores.mean() < narrow[1] < hi


def test_headline_interval_follows_the_measure():
    played = outcomes([1, 1, 1, 0], [1.0, 0.97, 0.96, 0.4])
    by_success, by_score = summary(played, "success"), summary(played, "score")
    for found in (by_success, by_score):
        assert found["success_rate"] == 0.75
        assert found["score"] == pytest.approx(0.8325)
        assert found["n"] == 4 and found["seeds"] == [100, 101, 102, 103]
        assert found["per_seed"][3] == {"seed": 103, "success": False, "score": 0.4, "steps": 13}
        assert json.loads(json.dumps(found)) == found
    assert by_success["interval_kind"] == "Wilson 95 %" and by_score["interval_kind"] == "bootstrap 95 %"
    assert by_success["interval"] == pytest.approx(closed_form(3, 4, 0.95))
    assert by_score["interval"] == list(bootstrap(np.array([1.0, 0.97, 0.96, 0.4])))
    assert summary(played, "success", level=0.9)["interval"] == pytest.approx(closed_form(3, 4, 0.9))
    assert summary(played, "success", level=0.9)["interval_kind"] == "Wilson 90 %"


def test_all_and_none_keep_an_honest_interval():
    all_of_them, none = summary(outcomes([1] * 20), "success"), summary(outcomes([0] * 20), "success")
    z2 = NormalDist().inv_cdf(0.975) ** 2
    assert all_of_them["success_rate"] == 1 and all_of_them["interval"] == pytest.approx([20 / (20 + z2), 1])
    assert none["success_rate"] == 0 and none["interval"] == pytest.approx([0, z2 / (20 + z2)])


def test_stages_count_episodes_that_did_at_least_so_many():
    """Red when a share is of exactly k, or sums of thirds round down."""
    thirds = [0.0, 1 / 3, 1 / 3 + 1 / 3, 2 / 3, 1.0]
    found = summary(outcomes([0, 0, 0, 0, 1], thirds), "score", stages=3)
    assert found["stages"] == {"p1": 0.8, "p2": 0.6, "p3": 0.2}
    assert json.loads(json.dumps(found)) == found
    assert "stages" not in summary(outcomes([1]), "score")


@pytest.mark.parametrize("n", [1, 7, 100])
def test_equal_scores_give_a_point(n):
    assert summary(outcomes([0] * n, [0.1] * n), "score")["interval"] == [0.1, 0.1]


@pytest.mark.parametrize(
    ("played", "measure", "level", "words"),
    [
        ([], "success", 0.95, "0 episodes"),
        (outcomes([1]), "sucess", 0.95, "did you mean 'success'"),
        (outcomes([1]), "success", 95.0, "level=95"),
        (outcomes([1, 0]) + outcomes([1]), "success", 0.95, "seed 100 was played 2 times"),
    ],
)
def test_what_is_refused(played, measure, level, words):
    with pytest.raises(UserError, match=words):
        summary(played, measure, level)
