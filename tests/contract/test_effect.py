"""A word that changes nothing of what is judged is refused where a policy is judged or filmed, and one that does is taken.

Mutations that turn it red: any part left out of `taken`, or one more in it; streams that no policy sees taken for seen, or those
of a mixture's second part for unseen; keyposes that are found told apart from none that are moved between no more; the same
value refused.
"""

import pytest
from omegaconf import OmegaConf

from polyarm.config import compose, override
from polyarm.eval.effect import require_effect
from polyarm.spec import UserError


def settle(*words):
    """As a checkpoint holds it."""
    return OmegaConf.create(OmegaConf.to_container(compose(["task=pick_cube", *words]), resolve=True))


POINTS, SCENE = settle(), settle("task.see=scene")
KEYPOSES, OFFLINE = settle("task.action_kind=keypose"), settle("task.measure=action_error")
FILES = settle("task=pusht_image", "task.measure=action_error")

IDLE = [
    (POINTS, "task.see=state", "what a policy sees is part of it"),
    (POINTS, "task.sees.points=[tip]", "what a policy sees is part of it"),
    (POINTS, "task.cameras.points=[front,wrist]", "what a policy sees is part of it"),
    (POINTS, "task.streams=[tip,goal,cloud,cube]", "what a policy sees is part of it"),
    (POINTS, "task.streams=[tip,goal,cloud,front_points]", "what a policy sees is part of it"),
    (POINTS, "task.derive.front_points.camera=wrist", "the policy does not see front_points"),
    (POINTS, "~task.derive.front_points", "the policy does not see front_points"),
    (SCENE, "task.derive.cloud.points=64", "the policy does not see cloud"),
    (POINTS, "task.obs_scale=gaussian", "how its demonstrations were read is part of a policy"),
    (POINTS, "task.action_scale=gaussian", "how its demonstrations were read"),
    (POINTS, "+task.scales.tip=identity", "how its demonstrations were read"),
    (POINTS, "task.action_rotation=null", "how its demonstrations were read"),
    (POINTS, "task.action_relative=tip", "how its demonstrations were read"),
    (POINTS, "+task.val_ratio=0.5", "how its demonstrations were read"),
    (POINTS, "+task.anything=1", "how its demonstrations were read"),
    (POINTS, "task.expert=polyarm.sim.experts.maniskill.StackCube", "an expert plays only at `polyarm collect`"),
    (POINTS, "task.keyposes.most=3", "this policy is told no keyposes"),
    (KEYPOSES, "task.keyposes.line_m=0.1", "how its demonstrations were read"),
    (KEYPOSES, "task.keyposes.joints=null", "how its demonstrations were read"),
    (OFFLINE, "task.success=last", "no world is played with task.measure=action_error"),
    (OFFLINE, "+task.env_kwargs.front_orbit_deg=20", "no world is played"),
    (settle("task.measure=action_error", "task.action_kind=keypose"), "task.keyposes.most=3", "no world is played"),
]
ACTS = [
    (POINTS, "task.see=points"),
    (POINTS, "task.obs_scale=limits"),
    (POINTS, "task.streams=[tip,goal]"),
    (POINTS, "+task.env_kwargs.front_orbit_deg=20"),
    (POINTS, "task.env_kwargs.cameras=[wrist]"),
    (POINTS, "task.derive.cloud.points=64"),
    (POINTS, "task.success=last"),
    (POINTS, "task.measure=score"),
    (POINTS, "task.action_kind=keypose"),
    (POINTS, "task.demos.path=other.zarr"),
    (POINTS, "task.name=other"),
    (POINTS, "task=pusht_state"),
    (POINTS, "train.steps=3"),
    (KEYPOSES, "task.keyposes.most=3"),
    (KEYPOSES, "task.keyposes.stride_m=0.02"),
    (settle("task.measure=action_error", "task.action_kind=keypose"), "task.keyposes.line_m=0.1"),
    (FILES, "task.env_kwargs.legacy_reset=false"),
]


@pytest.mark.parametrize(("own", "word", "why"), IDLE, ids=[word for _, word, _ in IDLE])
def test_a_word_without_effect_is_refused(own, word, why):
    with pytest.raises(UserError) as e:
        require_effect([own], override(own, ["eval.episodes=2", word]), ["eval.episodes=2", word])
    said = str(e.value)
    assert said.startswith(f"{word} would change nothing, for {why}") and said.count("\n") == 0
    assert said.endswith("leave it out, or train another with it")


@pytest.mark.parametrize(("own", "word"), ACTS, ids=[word for _, word in ACTS])
def test_a_word_that_acts_or_says_what_is_so_already_is_taken(own, word):
    require_effect([own], override(own, [word]), [word])


def test_a_mixture_may_have_what_its_second_part_sees():
    word = ["task.streams=[tip,goal,cloud,front_points]"]
    require_effect([POINTS, SCENE], override(POINTS, word), word)
    with pytest.raises(UserError, match="would change nothing"):
        require_effect([POINTS, POINTS], override(POINTS, word), word)
