"""Scales follow Diffusion Policy's normaliser (section 2 of the published reference), except that they refuse what it lets by."""

from dataclasses import replace

import numpy as np
import pytest

from polyarm.datasets.scale import check, fit, fit_spec
from polyarm.spec import ActionSpace, ObsSpace, Spec, Stream, UserError

ROWS = np.array([(0, 5, 3), (10, 5, -1), (4, 5.00005, 1)])
NAMES = ("x", "y", "z")


def test_the_published_rows():
    scale = fit("limits", ROWS, NAMES, "rows", constant="centre")
    np.testing.assert_allclose(scale.gain, (0.2, 1, 0.5), rtol=1e-12)
    np.testing.assert_allclose(scale.offset, (-1, -5, -0.5), rtol=1e-12)
    np.testing.assert_allclose(scale.do(ROWS), [(-1, 0, 1), (1, 0, -1), (-0.2, 5.0e-5, 0)], atol=1e-9)


def test_gaussian_takes_the_unbiased_deviation():
    scale = fit("gaussian", ROWS, NAMES, "rows", constant="centre")
    std = ROWS.std(0, ddof=1)
    np.testing.assert_allclose(scale.gain, (1 / std[0], 1, 1 / std[2]), rtol=1e-12)
    np.testing.assert_allclose(scale.offset, -ROWS.mean(0) * scale.gain, rtol=1e-12)


def test_identity_leaves_all_channels():
    assert fit("identity", ROWS, NAMES, "rows").do(ROWS).tolist() == ROWS.tolist()


@pytest.mark.parametrize("kind", ["limits", "gaussian"])
def test_a_channel_that_stays_is_refused_by_name(kind):
    with pytest.raises(UserError, match="stream 'q' channel 'y' stays at 5.*constant=centre"):
        fit(kind, ROWS, NAMES, "stream 'q'")


def test_many_blocks_are_one(monkeypatch):
    """A mutation that turns this red: dropping the term between the means of the blocks. Far from zero, sums of squares fail."""
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.normal(1e6, 1e-2, (700, 1)), rng.normal(1e6 + 1, 3e-2, (323, 1))])
    monkeypatch.setattr("polyarm.datasets.scale.BLOCK", 100)
    scale = fit("gaussian", rows, ("t",), "rows")
    np.testing.assert_allclose(1 / scale.gain[0], rows.std(ddof=1), rtol=1e-9)


def test_nothing_that_is_not_a_number_is_fitted():
    with pytest.raises(UserError, match="channel 'z'.*not finite"):
        fit("limits", np.array([(0, 1, 2), (1, 2, np.nan)]), NAMES, "rows")
    with pytest.raises(UserError, match="no rows"):
        fit("limits", np.empty((0, 3)), NAMES, "rows")
    with pytest.raises(UserError, match="did you mean 'limits'"):
        fit("limit", ROWS, NAMES, "rows")


class Memory:
    def __init__(self, spec, ends, **rows):
        self.spec, self.episode_ends, self.rows = spec, np.array(ends), rows

    def stream(self, name):
        return self.rows[name]


SPEC = Spec(
    ObsSpace((Stream("q", "state", (1,), ("q",)), Stream("goal", "goal", (1,), ("g",)), Stream("top", "image", (2, 2, 3))), 10.0),
    ActionSpace(("a",), ("m",), "base", 10.0),
)  # fmt: skip


@pytest.fixture
def demos():
    """Three episodes of 2, 3 and 1 rows; the last one is far away."""
    x = np.array([0, 1, 2, 3, 4, 1000.0])[:, None]
    return Memory(SPEC, [2, 5, 6], q=x, goal=2 * x, action=-x)


def test_scales_are_fitted_on_the_training_episodes_alone(demos):
    """A mutation that turns this red: fitting on all rows."""
    spec = fit_spec(demos, SPEC, "limits", "limits", episodes=[0, 1])
    assert spec.obs["q"].scale.do(np.array([0.0, 4.0])).tolist() == [-1, 1]
    assert spec.obs["goal"].scale.do(np.array([0.0, 8.0])).tolist() == [-1, 1]
    assert spec.action.scale.do(np.array([-4.0, 0.0])).tolist() == [-1, 1]
    assert spec.obs["top"].scale is None
    middle = fit_spec(demos, SPEC, "limits", "limits", episodes=[1])
    assert middle.obs["q"].scale.do(np.array([2.0, 4.0])).tolist() == [-1, 1]


def test_one_stream_may_differ(demos):
    spec = fit_spec(demos, SPEC, "limits", "limits", [0, 1], kinds={"goal": "identity", "action": "gaussian"})
    assert spec.obs["goal"].scale.gain == (1.0,)
    np.testing.assert_allclose(spec.action.scale.gain, 1 / np.std([0, 1, 2, 3, 4], ddof=1))
    with pytest.raises(UserError, match="unknown stream to scale 'gaol': did you mean 'goal'"):
        fit_spec(demos, SPEC, "limits", "limits", [0, 1], kinds={"gaol": "identity"})


def test_a_spec_without_a_scale_is_refused(demos):
    spec = fit_spec(demos, SPEC, "limits", "limits", [0, 1])
    check(spec)
    with pytest.raises(UserError, match="the action has no scale"):
        check(replace(spec, action=replace(spec.action, scale=None)))
    with pytest.raises(UserError, match="stream 'goal' has no scale"):
        bare = tuple(replace(s, scale=None) if s.name == "goal" else s for s in spec.obs.streams)
        check(replace(spec, obs=replace(spec.obs, streams=bare)))
