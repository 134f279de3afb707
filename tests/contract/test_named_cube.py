"""The instruction says which cube counts, and nothing else does.

Mutations that turn these red: `which` that draws another scene; `say=wrong` that changes what counts, or names it; another
cube's lift that does not end the episode, or is a success; cubes that may lie side by side; a cloud without colours.
"""

from functools import cache

import numpy as np
import pytest

import polyarm.sim  # noqa: F401  registers the worlds
from polyarm.config import compose
from polyarm.sim.experts.maniskill import LiftNamedCube
from polyarm.sim.sapien.said import LENGTH, Said
from polyarm.sim.sapien.tasks import COLOURS, TASKS
from polyarm.sim.world import make_world
from polyarm.spec import UserError
from polyarm.task import world_kwargs
from polyarm.text import row_text

NAME, SAYS = "polyarm/ManiSkill-v0", TASKS["LiftNamedCube-v1"].says
needs_sapien = pytest.mark.usefixtures("needs_sapien")


@cache
def world(**kwargs):
    return make_world(NAME, {"task": "LiftNamedCube-v1", **kwargs})


def lifted(env, seed):
    """(the first observation, the expert's actions, how it ended)"""
    obs, expert, actions, ended = env.reset(seed=seed)[0], LiftNamedCube(env), [], False
    while not ended:
        actions.append(expert.act())
        _, _, terminated, truncated, info = env.step(actions[-1])
        ended = terminated or truncated
    return obs, actions, (terminated, info)


@needs_sapien
@pytest.mark.parametrize("which", COLOURS)
def test_its_expert_lifts_the_one_that_is_named(which):
    for seed in range(3):
        obs, _, end = lifted(world(which=which), seed)
        assert row_text(obs["instruction"]) == f"lift the {which} cube"
        assert end == (True, {"is_success": True, "is_failure": False}), seed
        at = [obs[f"{c}_cube"][:2] for c in COLOURS]
        assert min(np.linalg.norm(at[i] - at[j]) for i in range(3) for j in range(i)) > 0.0999


@needs_sapien
def test_to_lift_another_is_a_failure():
    """The same scene and actions, and another that counts."""
    red, green = world(which="red"), world(which="green")
    first, actions, _ = lifted(red, 5)
    obs, info = green.reset(seed=5)
    assert info == {"is_success": False, "is_failure": False}
    assert all(np.array_equal(obs[name], first[name]) == (name != "instruction") for name in obs)
    ends = [green.step(a)[1:] for a in actions]
    assert not any(terminated or info["is_failure"] for *_, terminated, _, info in ends[:-1])
    assert ends[-1] == (0.0, True, False, {"is_success": False, "is_failure": True})


@needs_sapien
def test_a_wrong_instruction_changes_the_words_alone():
    right, wrong = world(), world(say="wrong")
    a, actions, (_, info) = lifted(right, 3)
    b, again, (_, other) = lifted(wrong, 3)
    assert info == other and np.array_equal(actions, again), "the same cube counts"
    assert all(np.array_equal(a[name], b[name]) == (name != "instruction") for name in a)
    assert {row_text(x["instruction"]) for x in (a, b)} < {*SAYS.values()}


@needs_sapien
def test_the_coloured_cloud_shows_three_cubes_where_they_are():
    task = compose(["task=lift_named_cube"]).task
    env = make_world(NAME, world_kwargs(task))
    obs = env.reset(seed=1)[0]
    xyz, rgb = obs["cloud"][:, :3], obs["cloud"][:, 3:]
    for i, colour in enumerate(COLOURS):
        mine = rgb[:, i] > 2 * np.delete(rgb, i, 1).max(1)
        assert mine.sum() >= 10, colour
        assert np.linalg.norm(xyz[mine] - obs[f"{colour}_cube"][:3], axis=1).max() < 0.04, colour
    env.close()


def draws(n=200, **kwargs):
    said = Said(SAYS, kwargs.pop("which", None), kwargs.pop("say", "right"), "it")
    drawn = [said.draw(np.random.default_rng(seed)) for seed in range(n)]
    assert all(row.shape == (LENGTH,) for _, row in drawn)
    return [(thing, row_text(row)) for thing, row in drawn]


def test_what_counts_is_drawn_by_the_seed_and_said_as_told():
    things = [thing for thing, _ in draws()]
    assert all(things.count(colour) > 40 for colour in COLOURS)
    assert draws() == draws() == [(thing, SAYS[thing]) for thing in things]
    assert draws(say="nothing") == [(thing, "") for thing in things]
    assert draws(say="raise {} now") == [(thing, f"raise {thing} now") for thing in things]
    assert {*draws(which="red")} == {("red", SAYS["red"])}
    wrong = draws(say="wrong")
    assert [thing for thing, _ in wrong] == things and not any(thing in text for thing, text in wrong)
    assert len({*wrong}) == 6, "each of the other two"


def test_a_world_without_instructions_has_one_where_words_are_given():
    """For one policy that is to do several of them."""
    assert not Said({}, None, "right", "it")
    said = Said({}, None, "push the cube", "it")
    thing, row = said.draw(np.random.default_rng(0))
    assert said and (thing, row_text(row)) == ("", "push the cube")


@pytest.mark.parametrize(
    ("says", "which", "say", "sentence"),
    [
        (SAYS, "rde", "right", "unknown thing of it in task.env_kwargs.which 'rde': did you mean 'red'.*blue, green, red"),
        (SAYS, None, "wrnog", "unknown way to say it, .*say 'wrnog': did you mean 'wrong'.*nothing, right, wrong"),
        (SAYS, None, "please, would you kindly lift the {} cube", "has 42 bytes for a stream of 32: shorten it"),
        ({}, "red", "right", "it has no instruction: leave which out .*give say as words"),
        ({}, None, "wrong", "it has no instruction: leave which out .*give say as words"),
    ],
)  # fmt: skip
def test_bad_input_is_a_sentence(says, which, say, sentence):
    with pytest.raises(UserError, match=sentence):
        Said(says, which, say, "it")
