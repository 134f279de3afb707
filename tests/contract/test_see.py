"""`task.see` chooses what a policy is given and which cameras are drawn for it; a name that is none lists those that are.

Mutations that turn it red: a `see` whose streams no world shows; cameras that do not follow; `_require_see` left out, or
without `str`.
"""

import pytest

from polyarm.choices import options
from polyarm.config import compose, override
from polyarm.spec import UserError
from polyarm.task import world_kwargs

SAPIEN = [name for name in options("task") if "ManiSkill" in str(compose([f"task={name}"]).task.env_id)]
VIEWS = {"points": {"cloud"}, "image": {"front"}, "scene": {"front", "front_points"}, "state": set(), "blind": set()}


def test_there_are_nine():
    assert len(SAPIEN) == 9


@pytest.mark.parametrize("name", SAPIEN)
def test_see_chooses_streams_and_cameras(name):
    given = {see: compose([f"task={name}", f"task.see={see}"]).task for see in VIEWS}
    assert compose([f"task={name}"]).task == given["points"]
    assert given["points"].demos.path == f"data/{name}.zarr"
    for see, task in given.items():
        assert set(task.streams) >= VIEWS[see] and "tip" in task.streams
        assert set(task.streams) - set(given["state"].streams) == VIEWS[see]
        assert world_kwargs(task)["cameras"] == (["front"] if VIEWS[see] else [])
    assert set(given["blind"].streams) < set(given["state"].streams), "blind: no object"


@pytest.mark.parametrize("bad", ["foo", "point", "null", "[points]", "3", "{a: 1}"])
def test_a_view_that_is_none_lists_the_known(bad):
    says = "known are blind, image, points, scene, state$"
    with pytest.raises(UserError, match=says):
        compose(["task=pick_cube", f"task.see={bad}"])
    with pytest.raises(UserError, match=says):
        override(compose(["task=pick_cube"]), [f"task.see={bad}"])


def test_a_view_of_ones_own():
    mine = ["task=pick_cube", "+task.sees.both=[tip,cube,cloud]", "task.see=both"]
    assert list(compose([*mine, "+task.cameras.both=[front,wrist]"]).task.env_kwargs.cameras) == ["front", "wrist"]
    with pytest.raises(UserError, match="unknown task.see 'both': known are blind, image"):
        compose(mine)
