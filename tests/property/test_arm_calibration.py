"""Angles and ticks of an arm, and the files that say how they stand to each other.

Mutations that turn this red: `sign` left out of `ticks` or of `angle`; rounding outwards in feetech.py; any one refusal of
calibration.py; a hash of some of the fields only.
"""

import math

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from polyarm.real_robot.calibration import Calibration, Joint, load, so101
from polyarm.real_robot.feetech import So101
from polyarm.real_robot.so101 import SPEC
from polyarm.spec import UserError

mountings = st.tuples(
    st.tuples(*[st.sampled_from((1, -1))] * 6),
    st.tuples(*[st.integers(2048 - 200, 2048 + 200)] * 5, st.integers(1000, 3000)),
    st.tuples(*[st.integers(-2047, 2047)] * 6),
)


@settings(max_examples=60, deadline=None)
@given(mountings, st.lists(st.floats(-5, 5), min_size=6, max_size=6))
def test_ticks_stay_within_the_limits_and_next_to_what_was_asked(mounted, q):
    mounted = so101(*mounted)
    arm = So101("nowhere", mounted)
    for joint, x, ticks, low, high in zip(arm.joints, q, arm._ticks(tuple(q)), SPEC.low, SPEC.high, strict=True):
        assert low <= joint.angle(ticks) <= high
        assert joint.range[0] <= ticks <= joint.range[1]
        inside = min(max(x, low), high)
        assert abs(joint.angle(ticks) - inside) <= 1 / joint.scale


@settings(max_examples=40, deadline=None)
@given(mountings, st.floats(-2, 2))
def test_angles_and_ticks_are_inverse(mounted, x):
    for joint in so101(*mounted).joints.values():
        assert joint.angle(joint.ticks(x)) == pytest.approx(x, abs=1e-9)


def test_a_turn_is_4096_ticks_in_the_direction_of_the_sign():
    joint = Joint(1, "rad", 2048, -1, 4096 / math.tau, 0, (0, 4095))
    assert joint.ticks(math.pi / 2) == pytest.approx(1024)
    assert joint.angle(3072) == pytest.approx(-math.pi / 2)


@settings(max_examples=20, deadline=None)
@given(mountings)
def test_files_come_back_as_they_were(tmp_path_factory, mounted):
    path = tmp_path_factory.mktemp("calibration") / "arm.yaml"
    mounted = so101(*mounted)
    mounted.save(path)
    assert load(path) == mounted and load(path).hash == mounted.hash
    assert [p.name for p in path.parent.iterdir()] == ["arm.yaml"]


@pytest.mark.parametrize(
    "key, value", [("id", 9), ("zero", 2049), ("sign", -1), ("scale", 652.0), ("homing", 1), ("range", (797, 3298))]
)
def test_the_hash_is_of_everything(key, value):
    joints = dict(so101().joints)
    joints["shoulder_pan"] = Joint(**vars(joints["shoulder_pan"]) | {key: value})
    assert Calibration(joints).hash != so101().hash


REFUSED = [
    ({"sign": 0}, "sign 0 is neither 1 nor -1"),
    ({"sign": True}, "sign True is no whole number"),
    ({"range": [2000, 2000]}, "range .* is empty"),
    ({"range": [3000, 1000]}, "lower end first"),
    ({"range": [0, 4096]}, "not within 0 to 4095"),
    ({"range": [0]}, r"range \[low, high\]"),
    ({"range": [0.5, 3.0]}, "two whole numbers"),
    ({"scale": 0}, "scale 0.0 is no number of ticks above 0"),
    ({"scale": -652.0}, "sign -1"),
    ({"scale": float("nan")}, "scale nan"),
    ({"scale": "much"}, "scale is a number"),
    ({"id": 2}, "id 2 stands twice"),
    ({"id": 254}, "id 254 is not from 0 to 253"),
    ({"id": "1"}, "id '1' is no whole number"),
    ({"homing": 2048}, "homing 2048"),
    ({"unit": "deg"}, "unit 'deg' is neither rad nor m"),
    ({"unit": "m"}, "counts shoulder_pan in m, so101 in rad"),
    ({"more": 1}, "must hold exactly"),
    ({"zero": None}, "zero None is no whole number"),
]


@pytest.mark.parametrize("changed, sentence", REFUSED, ids=lambda x: str(x))
def test_what_cannot_be_is_refused_in_a_sentence(tmp_path, changed, sentence):
    data = so101().data()
    data["joints"]["shoulder_pan"] |= changed
    path = tmp_path / "arm.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    with pytest.raises(UserError, match=sentence) as refused:
        load(path)
    assert "\n" not in str(refused.value) and "shoulder_pan" in str(refused.value)


def test_files_of_something_else_are_refused(tmp_path):
    path = tmp_path / "arm.yaml"
    with pytest.raises(UserError, match="cannot be read .*polyarm calibrate"):
        load(path)
    for text in ("a: [", "- 1", "joints: 3", ""):
        path.write_text(text)
        with pytest.raises(UserError, match="arm.yaml"):
            load(path)
    data = so101().data()
    data["joints"] = dict(reversed(data["joints"].items()))
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    with pytest.raises(UserError, match="so101 has shoulder_pan, .* in this order"):
        load(path)
