"""An arm moved by hand: what teleoperators say, who has the arm, and that nothing a person does leaves the limits.

Mutations that turn these red stand at the tests.
"""

import os
import termios

import numpy as np
import pytest

from polyarm.cli import main
from polyarm.real_robot.arm import PortLost, Stop
from polyarm.real_robot.body import so101_body
from polyarm.real_robot.keyboard import Keyboard
from polyarm.real_robot.keys import Keys, named
from polyarm.real_robot.limits import Limits
from polyarm.real_robot.link import ArmStopped, Inline
from polyarm.real_robot.loop import Loop
from polyarm.real_robot.manned import Manned
from polyarm.real_robot.plan import Chunk, Plan
from polyarm.real_robot.safety import Filter, Through
from polyarm.real_robot.so101 import SPEC as SO101
from polyarm.real_robot.teleop import Leader, Said, Scripted
from polyarm.spec import UserError
from tests.fake_arm import SPEC, FakeArm

MS = 1_000_000
TICK = 10 * MS
HOME = (0.0, -0.3, 0.4, 1.2, 0.0, 0.015)


class Typed(Keys):
    """Keys that a test presses."""

    def __init__(self):
        self.now = []

    def open(self):
        pass

    close = open

    def take(self, now_ns):
        pressed, self.now = self.now, []
        return pressed


# keys


@pytest.mark.parametrize(
    "data, over, names, rest",
    [
        (b"q", False, ["q"], b""),
        (b" x", False, ["space", "x"], b""),
        (b"\x1b[C\x1b[D\x1bOA", False, ["right", "left", "up"], b""),
        (b"\x1b", False, [], b"\x1b"),
        (b"\x1b", True, ["escape"], b""),
        (b"\x1b[", False, [], b"\x1b["),
        (b"a\x1b[3~b", False, ["a", "b"], b""),
        (b"\x1b\x1b[C", False, ["escape", "right"], b""),
        (b"\x1bq", False, ["escape", "q"], b""),
    ],
)
def test_keys_have_names_and_half_an_arrow_is_no_escape(data, over, names, rest):
    """A mutation: every escape is the key."""
    assert named(data, over) == (names, rest)


def test_a_terminal_gives_its_keys_at_once_and_is_left_as_it_was():
    """Mutations: `close` that does not set it back; an escape that waits for ever."""
    ours, theirs = os.openpty()
    before = termios.tcgetattr(theirs)
    keys = Keys(theirs)
    keys.open()
    os.write(ours, b"q\x1b[C\x1b")
    assert keys.take(0) == ["q", "right"] and keys.take(40 * MS) == [] and keys.take(60 * MS) == ["escape"]
    keys.close(), keys.close()
    assert termios.tcgetattr(theirs) == before
    os.close(ours), os.close(theirs)
    with open(os.devnull) as file, pytest.raises(UserError, match="read from a terminal, and this is none"):
        Keys(file.fileno()).open()


# the keyboard


def keyboard(keys, **more):
    board = Keyboard(keys, so101_body(Limits.of(SO101)), **more)
    board.open(SO101)
    return board


def held(board, keys, key, seconds=1.0, q=HOME, begin=0):
    """What it asks for while a key repeats itself every 30 ms."""
    said = []
    for k in range(round(seconds * 100)):
        keys.now = [*key] if k % 3 == 0 else []
        said.append(board.read(q, begin + k * TICK))
    return said


@pytest.mark.parametrize(
    "key, axis, sign", [("i", 0, 1), ("k", 0, -1), ("j", 1, 1), ("l", 1, -1), ("h", 2, 1), ("n", 2, -1)]
)
def test_a_tip_key_moves_the_tip_along_its_axis_alone(key, axis, sign):
    """Mutations: an axis or a sign that is another's; the Jacobian of the pose before."""
    keys = Typed()
    board, body = keyboard(keys), so101_body(Limits.of(SO101))
    rows = [said.row for said in held(board, keys, key, 0.3)]
    way = np.subtract(body.tip(rows[-1]), body.tip(HOME))
    assert sign * way[axis] > 0.015 and np.abs(np.delete(way, axis)).max() < 0.15 * abs(way[axis])


def test_a_joint_key_moves_its_joint_alone_no_faster_than_its_share_and_never_out_of_its_limits():
    """Mutations: a share of another joint; no clip at the limits; the most that a joint moves at not kept where keys add up."""
    keys = Typed()
    board = keyboard(keys, share=0.3)
    top = np.multiply(0.3, SO101.velocity) * 0.01 + 1e-12
    for joint, pair in enumerate(("1q", "2w", "3e", "4r", "5t", "6y")):
        for key, sign in zip(pair, (1, -1), strict=True):
            board.start()
            rows = np.array([HOME, *(s.row for s in held(board, keys, key, 4.0))])
            assert (np.abs(np.diff(rows, axis=0)) <= top).all()
            assert np.abs(np.delete(rows[-1] - HOME, joint)).max() == 0 and sign * (rows[-1] - HOME)[joint] > 0
            assert (rows >= SO101.low).all() and (rows <= SO101.high).all()
    board.start()
    rows = np.array([HOME, *(s.row for s in held(board, keys, "ijh1", 2.0))])  # four at once, into a corner
    assert (np.abs(np.diff(rows, axis=0)) <= top).all() and np.isfinite(rows).all()
    assert (rows >= SO101.low).all() and (rows <= SO101.high).all()


def test_who_presses_nothing_lets_go_and_begins_again_where_the_arm_is():
    """Mutations: a switch that stays held; a row of before that counts on; no pause of the terminal before a key repeats."""
    keys = Typed()
    board = keyboard(keys)
    keys.now = ["1"]
    first = board.read(HOME, 0)
    assert first.deadman and first.row == HOME
    assert board.read(HOME, 500 * MS).deadman  # before a key repeats itself
    assert board.read(HOME, 700 * MS) == Said(None, frozenset(), False, 700 * MS)
    keys.now = ["1", "right"]
    other = (0.5, *HOME[1:])
    again = board.read(other, 900 * MS)
    assert again.row == other and again.buttons == {"1", "right"}


# a leader


def leader(keys=None, **more):
    arm = FakeArm(lambda: 0, q=(0.9, 0.0))
    arm.torque = True
    hand = Leader(arm, keys, **more)
    hand.open(SPEC)
    return hand, arm


def test_a_leader_is_limp_and_the_arm_goes_to_it_slowly_then_follows_at_once():
    """Mutations: torque left on; the leader's pose from the first tick on; never followed freely."""
    hand, arm = leader(catch=0.2)
    assert not arm.torque and Stop.LIMP in arm.said
    q, rows = (0.1, 0.01), []
    for k in range(300):
        rows.append(hand.read(q, k * TICK).row)
    away = np.abs(np.diff([q, *rows], axis=0))
    catching = len(rows) - int((away == 0).all(1)[::-1].argmin())
    assert (away[: catching - 1] <= np.multiply(0.2 * 0.01 + 1e-12, SPEC.velocity)).all() and rows[-1] == (0.9, 0.0)
    assert catching > 50
    arm.q = (0.2, 0.03)
    assert hand.read(q, 3000 * MS).row == (0.2, 0.03)
    arm.q = (7.0, -1.0)
    assert hand.read(q, 3010 * MS).row == (1.0, 0.0)  # cut to the arm's limits


def test_a_leader_that_says_nothing_ages_and_one_that_is_gone_is_said():
    """A mutation: what is old under a new stamp."""
    hand, arm = leader()
    assert hand.read((0.9, 0.0), 5 * TICK).t_ns == 5 * TICK
    arm.faults = ["late"]
    said = hand.read((0.9, 0.0), 6 * TICK)
    assert said.t_ns == 5 * TICK and said.row == (0.9, 0.0)
    arm.faults = ["gone"]
    with pytest.raises(PortLost):
        hand.read((0.9, 0.0), 7 * TICK)


def test_the_space_bar_takes_the_arm_and_gives_it_back():
    """Mutations: a leader that follows although it was told to wait; one that jumps to where it was taken before."""
    keys = Typed()
    hand, _ = leader(keys, follows=False, catch=0.2)
    assert not hand.read((0.1, 0.01), 0).deadman
    keys.now = ["space"]
    taken = hand.read((0.1, 0.01), TICK)
    assert taken.deadman and taken.row == (0.1, 0.01)
    keys.now = ["space"]
    assert not hand.read((0.1, 0.01), 2 * TICK).deadman
    keys.now = ["space"]
    assert hand.read((-0.5, 0.02), 3 * TICK).row == (-0.5, 0.02)


def test_a_leader_of_another_kind_is_refused():
    with pytest.raises(UserError, match="the leader is of kind fake and has no shoulder_pan in rad"):
        Leader(FakeArm()).open(SO101)


# who has the arm


class Rig:
    """`manned` on a small arm in lock-step; `told` is what a recorder would hear."""

    def __init__(self, teleop, row_ns=0, guard=None):
        self.arm = FakeArm(lambda: self.link.now() if hasattr(self, "link") else 0)
        self.loop = Loop(self.arm, Plan(2), guard or Through())
        self.link, self.told = Inline(self.loop, lambda ns: None), []
        self.manned = Manned(self.link, teleop, TICK, row_ns, self.told.append)
        self.manned.open(SPEC)
        self.link.enable()
        self.manned.start()
        self.number = 0

    def wait(self, ticks=1):
        self.manned.wait(self.manned.now() + ticks * TICK)

    def plan(self, row=(0.5, 0.02), seconds=1.0):
        self.number += 1
        now = self.manned.now()
        self.manned.submit(Chunk(self.number, now, now, int(1e9 * seconds), (row,)))


class Now:
    """A person, moved by a test."""

    row, holds, buttons = (0.3, 0.015), False, frozenset()

    def open(self, spec):
        pass

    def start(self):
        pass

    close = start

    def read(self, q, now_ns):
        return Said(self.row, self.buttons, self.holds, now_ns)


def test_a_person_has_the_arm_and_lets_go_of_it_within_one_tick():
    """Mutations: asked once a wait; what was planned of before runs on after he let go; the plan's row told as his."""
    person = Now()
    rig = Rig(person)
    rig.plan()
    rig.wait(3)
    assert [str(t.seen.state) for t in rig.told] == ["RUN"] * 3 and rig.told[-1].action == (0.5, 0.02)
    person.holds = True
    rig.wait()
    assert rig.told[-1].seen.state == "TELEOP" and rig.arm.goal == tuple(np.float32((0.3, 0.015)).tolist())
    assert rig.told[-1].person and rig.told[-1].action == rig.arm.goal and rig.manned.taken
    person.holds = False
    rig.wait()
    assert rig.told[-1].seen.state == "HOLD" and rig.told[-1].action is None and not rig.told[-1].person
    rig.wait(5)
    assert rig.loop.state == "HOLD"
    rig.plan()
    rig.wait()
    assert rig.loop.state == "RUN"


def test_a_persons_row_counts_for_as_long_as_a_policys_does_in_single_precision():
    """Mutations: sampled on every tick; the grid not begun where he takes the arm; doubles to the arm that no store keeps."""
    rows = [(0.1 * k, 0.001 * k) for k in range(40)]
    rig = Rig(Scripted(rows, TICK, lets_go=range(3)), row_ns=5 * TICK)
    rig.wait(18)
    asked = [t.action for t in rig.told]
    want = [None] * 3 + [tuple(np.float32(rows[k]).tolist()) for k in (3, 8, 13) for _ in range(5)]
    assert asked == want


def test_a_stopped_arm_or_a_lost_leader_ends_the_wait_with_why():
    person = Now()
    rig = Rig(person)
    rig.arm.faults = ["gone"]
    with pytest.raises(ArmStopped, match="FAULT: .*the cable was pulled"):
        rig.wait(2)

    class Gone(Now):
        def read(self, q, now_ns):
            raise PortLost("leader unplugged")

    with pytest.raises(ArmStopped, match="the teleoperator is gone .leader unplugged."):
        Rig(Gone()).wait()


def test_whatever_a_person_does_passes_the_filter():
    """A mutation: the hand's goal sent past the guard."""
    limits = Limits.of(SPEC)
    rng = np.random.default_rng(0)
    rows = [tuple(rng.uniform(-50, 50, 2)) for _ in range(200)]
    rows[50:52] = [(np.nan, 0.0), (0.0, np.inf)]
    rig = Rig(Scripted(rows, TICK), guard=Filter(limits, 0.01))
    rig.wait(199)
    sent = np.array([t.seen.sent for t in rig.told])
    assert (sent >= limits.low).all() and (sent <= limits.high).all()
    assert (np.abs(np.diff(sent, axis=0)) <= np.multiply(0.01 + 1e-9, limits.velocity)).all() and np.ptp(
        sent[:, 0]
    ) > 0.1


# the command


def test_the_command_has_the_arm_follow_and_says_how_it_ended(capsys, monkeypatch, tmp_path):
    """At the model, by the expert, which loses its patience at once."""
    monkeypatch.chdir(tmp_path)
    assert main(["teleop", "robot=so101_sim", "teleop=scripted", "teleop.patience_s=0.3", "--json"]) == 0
    out = capsys.readouterr().out
    assert '"state": "TELEOP"' in out and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words, said",
    [
        (["robot=so101_sim"], "there is none: run it in one, or give another teleop"),
        (["robot=so101", "teleop=scripted"], "from a twin alone, and robot=so101 is none"),
        (["robot=so101_sim", "teleop=leader"], "give teleop.port="),
        (["robot=so101_sim", "teleop=leadr"], "did you mean 'leader'"),
        (["robot=so101_sim", "teleop=scripted", "teleop.patience=3"], "teleop.patience_s"),
        (
            ["robot=so101_sim", "teleop=scripted", "teleop.rate_hz=fast"],
            "teleop.rate_hz=fast: give a number from 1 to 1000",
        ),
        (["robot=so101_sim", "train.steps=3"], "'train.steps'"),
        (["teleop=scripted"], "give one robot=NAME"),
    ],
)
def test_bad_words_are_one_sentence(words, said, capsys, monkeypatch):
    monkeypatch.setattr("polyarm.real_robot.hands.terminal", lambda: False)
    assert main(["teleop", *words]) == 2
    error = capsys.readouterr().err
    assert said in error and error.startswith("polyarm: ") and error.count("\n") == 1
