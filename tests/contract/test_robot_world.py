"""An arm as the worlds of a rollout, in lock-step: equal to the simulator where nothing stands between, and held to its slots.

Mutations that turn these red: a row posted a tick late; a tick too many in `wait`; an action that is not clipped as the simulator does;
float32 on the way to the arm; an observation of the last tick in place of the slot's end.
"""

from collections import Counter

import numpy as np
import pytest

from polyarm.real_robot.body import so101_body
from polyarm.real_robot.limits import Limits
from polyarm.real_robot.link import ArmStopped, Inline, Seen
from polyarm.real_robot.loop import Loop
from polyarm.real_robot.mujoco_arm import MujocoArm
from polyarm.real_robot.plan import Plan
from polyarm.real_robot.plant import Plant
from polyarm.real_robot.safety import Filter, Through, Watch
from polyarm.real_robot.so101 import SPEC
from polyarm.real_robot.states import State
from polyarm.real_robot.world import PlantScene, RobotWorld, TwinScene
from polyarm.sim.experts.pick_place import PickPlaceExpert
from polyarm.sim.mujoco.pick_place import PickPlace
from polyarm.spec import UserError
from tests.twins import TICK_NS, rig

LIMITS = Limits.of(
    SPEC, box_low_m=(-0.05, -0.35, 0.004), box_high_m=(0.42, 0.35, 0.5), floor_m=0.02, lag=(0.5,) * 5 + (1.0,)
)
SEEDS = range(5)


def robot(filtered: bool) -> RobotWorld:
    arm = MujocoArm(Plant(PickPlace()))
    guard = Filter(LIMITS, 0.01, so101_body(LIMITS)) if filtered else Through()
    watch = Watch(LIMITS, SPEC.joints, arm.explain) if filtered else None
    world = arm.plant.world
    link = Inline(Loop(arm, Plan(6), guard, watch), arm.advance)
    return RobotWorld(link, PlantScene(arm.plant), world.world_spec, world.action_space, 160)


@pytest.fixture(scope="module")
def played():
    """{seed: (actions [T 6], observations [T + 1])} of the expert in the simulator."""
    world, found = PickPlace(), {}
    expert = PickPlaceExpert(world)
    for seed in SEEDS:
        seen, done, actions = [world.reset(seed=seed)[0]], False, []
        expert.reset()
        while not done:
            actions.append(expert.act() + np.float32(seed == 0) * 9 * (len(actions) == 3))  # once far beyond the limits
            obs, _, success, cut, _ = world.step(actions[-1])
            seen.append(obs)
            done = success or cut
        found[seed] = actions, seen, success
    assert any(success for *_, success in found.values())
    return found


def replay(world, seed, actions):
    seen = [world.reset(seed=[seed], options={"reset_mask": np.array([True])})[0]]
    for action in actions:
        obs, reward, done, cut, info = world.step(action[None])
        seen.append(obs)
        assert info["is_success"][0] == done[0] == reward[0]
    return seen, bool(done[0]), bool(cut[0])


def test_without_a_filter_the_arm_mujoco_equals_the_simulator_to_the_bit(played):
    world = robot(False)
    for seed, (actions, want, success) in played.items():
        seen, done, _ = replay(world, seed, actions)
        assert done == success
        for a, b in zip(seen, want, strict=True):
            assert all(np.array_equal(a[name][0], b[name]) for name in b)
    assert world.slips == 0 and not world.holds and set(world.late_ms) == {0.0}


def test_with_the_filter_the_expert_still_does_the_task():
    """Closed loop, as a policy plays. No goal of its own is refused."""
    world = robot(True)
    plant = world.scene.plant
    expert, wins = PickPlaceExpert(plant.world), 0
    for seed in range(3):
        world.reset(seed=[seed], options={})
        expert.reset()
        over = False
        while not over:
            _, _, done, cut, _ = world.step(expert.act()[None])
            over = bool(done[0] or cut[0])
        wins += bool(done[0])
        assert not world.holds
    assert wins == 3
    guard = world.link.loop.guard
    assert guard.counts["velocity"] and not any(guard.counts[k] for k in ("floor", "workspace", "self-collision"))


def wired(steps):
    """(joints that were seen, whether it is done) of the expert through driver, bus and motors' ticks, with the filter."""
    with rig("unix") as r:
        guard = Filter(LIMITS, 0.01, so101_body(LIMITS))
        loop = Loop(r.arm, Plan(6), guard, Watch(LIMITS, SPEC.joints, r.arm.explain))
        sim = r.plant.world
        scene = TwinScene(r.remote, ("cube", "target"))
        link = Inline(loop, lambda ns: r.advance(ns // TICK_NS))
        world = RobotWorld(link, scene, sim.world_spec, sim.action_space, steps)
        world.reset(seed=[1], options={})
        expert, seen, over = PickPlaceExpert(sim), [], False
        while not over:
            obs, _, done, cut, _ = world.step(expert.act()[None])
            seen.append(obs["joint_pos"])
            over = bool(done[0] or cut[0])
        assert not world.holds and not loop.counts["reads that failed"]
        world.close()
        return np.concatenate(seen), bool(done[0])


def test_through_the_wire_in_lock_step_every_run_is_the_same():
    """No clock of the machine is in it. Red where the driver stamps by one."""
    assert np.array_equal(wired(12)[0], wired(12)[0])


@pytest.mark.slow
def test_through_the_wire_in_lock_step_the_expert_does_the_task():
    assert wired(160)[1]


def test_an_episode_that_is_over_stays_and_one_that_is_cut_says_so():
    world = robot(False)
    world.max_steps = 3
    world.reset(seed=[0], options={})
    action = np.zeros((1, 6), np.float32)
    flags = [world.step(action)[2:4] for _ in range(5)]
    assert [(bool(d[0]), bool(c[0])) for d, c in flags] == [(False, False)] * 2 + [(False, True)] * 3
    now = world.link.now()
    world.step(action)
    assert world.link.now() == now  # nothing moves any more


def test_an_action_that_is_not_finite_never_reaches_the_arm():
    world = robot(False)
    world.reset(seed=[0], options={})
    with pytest.raises(UserError, match="finite"):
        world.step(np.full((1, 6), np.nan, np.float32))


class Slow:
    """A link whose clock the test moves between steps: a policy that takes its time."""

    lead_ns = 10_000_000

    def __init__(self):
        self.t, self.chunks, self.states = 0, [], iter(())

    def now(self):
        return self.t

    def enable(self): ...
    def release(self): ...
    def close(self): ...
    def submit(self, chunk):
        self.chunks.append(chunk)

    def wait(self, t):
        self.t = max(self.t, t)

    def look(self):
        return Seen((0.0,) * 6, self.t, *next(self.states, (State.RUN, "")))


class Nothing:
    def reset(self, seed): ...
    def see(self):
        return {"cube": np.zeros(5, np.float32), "target": np.zeros(2, np.float32)}, False


def slow():
    world = PickPlace()
    return RobotWorld(Slow(), Nothing(), world.world_spec, world.action_space, 10**9)


def test_a_slot_that_begins_late_by_over_half_moves_the_grid_and_is_counted():
    """Red where rows are put into the past, or the grid moves at every lateness. 50 ms slots, of which 10 are the lead."""
    world, ms = slow(), 1_000_000
    world.reset(seed=[0], options={})
    action = np.zeros((1, 6), np.float32)
    world.link.t -= 10 * ms
    for wait in (0, 20, 25, 26, 0, 120):  # how late each row comes
        world.link.t += wait * ms
        world.step(action)
    starts = [c.t_ns // ms for c in world.link.chunks]
    assert starts == [0, 50, 100, 176, 226, 396] and world.slips == 2
    assert world.late_ms == [0, 20, 25, 26, 0, 120]


def test_a_chunk_says_what_it_saw_and_numbers_grow():
    world = slow()
    world.reset(seed=[0], options={})
    for _ in range(3):
        world.step(np.zeros((1, 6), np.float32))
    assert [c.number for c in world.link.chunks] == [1, 2, 3]
    assert [c.seen_ns for c in world.link.chunks] == [0, 40_000_000, 90_000_000]


def test_an_arm_that_stopped_or_is_held_for_long_ends_the_episode_with_the_reason():
    world = slow()
    world.reset(seed=[0], options={})
    world.link.states = iter([(State.FAULT, "elbow: overheated")])
    with pytest.raises(ArmStopped, match="FAULT: elbow: overheated"):
        world.step(np.zeros((1, 6), np.float32))
    world = slow()
    world.reset(seed=[0], options={})
    world.link.states = iter([(State.HOLD, "floor")] * 100)
    with pytest.raises(ArmStopped, match="held for 2 s: floor"):
        for _ in range(100):
            world.step(np.zeros((1, 6), np.float32))
    assert world.holds == Counter({"floor": 41})
