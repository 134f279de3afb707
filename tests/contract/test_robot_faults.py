"""The promises of docs about dying and damaged parts, by the wall clock on the twin: marked `timing`, for a quiet machine.

`python -m polyarm.real_robot.faults` prints the same as a table, and the figures.
"""

import pytest

from polyarm.real_robot import faults
from polyarm.real_robot.rig import beyond
from polyarm.real_robot.so101 import SPEC
from polyarm.spec import UserError


@pytest.mark.timing
@pytest.mark.timeout(3600)
def test_every_promise_is_kept():
    rows = list(faults.measure(faults.SETTINGS))
    assert len(rows) > 15
    broken = [row for row in rows if not row[-1]]
    assert not broken


def test_a_setting_that_is_unknown_is_told():
    with pytest.raises(UserError, match="did you mean 'kills'"):
        faults.main(["kill=3"])


def test_what_is_beyond_the_limits_on_the_wire_is_seen():
    """Of commands 10 ms apart: the farthest beyond, and the largest share of the velocity. Red where only one side is looked at."""
    still = (0.0,) * 6
    pan = SPEC.low[0] - 0.1
    out, fast = beyond([(0, still), (1, (0.06, *still[1:]))])
    assert out <= 0 and fast == pytest.approx(2.0)
    assert beyond([(0, (pan, *still[1:])), (1, (pan, *still[1:]))]) == (pytest.approx(0.1), 0.0)
