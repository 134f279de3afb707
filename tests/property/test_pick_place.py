"""PickPlace: what the physics, the task's rules and the expert promise."""

import gymnasium as gym
import mujoco
import numpy as np
import pytest

from polyarm.sim.experts.episode import play
from polyarm.sim.experts.pick_place import CLOSE_M, PHASES, PickPlaceExpert
from polyarm.sim.mujoco import so101
from polyarm.sim.mujoco.pick_place import CUBE_M, OPEN_M, PickPlace
from polyarm.sim.world import make_world
from polyarm.spec import UserError


@pytest.fixture
def world():
    return PickPlace(max_steps=10_000)


def hold(world, joints, opening, seconds):
    for _ in range(round(seconds * 20)):
        world.step(np.array([*joints, opening]))


def test_the_arm_holds_any_pose_against_gravity(world):
    """Red without gravity compensation: the actuators alone sag by over 0.01 rad."""
    for seed in range(5):
        world.reset(seed=seed)
        pose = world.joints
        hold(world, pose, OPEN_M, 3.0)
        assert np.abs(world.joints - pose).max() < 1e-3


def test_a_step_of_the_joint_targets_is_followed(world):
    """Steady state of a position actuator under gravity compensation is its target, but for dry friction over stiffness."""
    world.reset(seed=0)
    goal = world.joints + np.array([0.4, -0.2, 0.2, 0.1, -0.5])
    hold(world, goal, OPEN_M, 3.0)
    assert np.abs(world.joints - goal).max() < 0.02 / 25 * 1.5


def test_the_tip_goes_where_top_down_says(world):
    """Forward kinematics of the model undoes the closed form: the link lengths agree. Red for any length that differs."""
    for x, y, z, yaw in [(0.16, 0.0, 0.10, 0.3), (0.14, 0.12, 0.03, -1.0), (0.10, -0.18, 0.05, 2.0)]:
        world.reset(seed=0)
        world.data.qpos[:5] = so101.top_down(x, y, z, yaw)
        world._refresh()
        np.testing.assert_allclose(world.tip_pos, [x, y, z], atol=1e-9)
        rotation = world.data.site_xmat[world.model.site("tip").id].reshape(3, 3)
        np.testing.assert_allclose(rotation[:, 2], [0, 0, -1], atol=1e-9)
        turned = so101.top_down(x, y, z, yaw + 0.2)
        np.testing.assert_allclose(so101.wrap(turned[4] - world.joints[4]), -0.2, atol=1e-9)


def test_a_damped_least_squares_step_moves_the_tip_as_asked(world):
    world.reset(seed=3)
    goal = world.tip_pos + np.array([0.002, -0.003, 0.001])
    world.data.qpos[:5] += so101.tip_step(world.model, world.data, goal, world.tip_yaw)
    world._refresh()
    assert np.linalg.norm(world.tip_pos - goal) < 3e-4


def test_joints_never_leave_their_limits_whatever_is_asked(world):
    """The table is no obstacle to the links. Red when actions reach the actuators unclipped and the limits are soft."""
    for sign in (1, -1):
        world.reset(seed=1)
        hold(world, sign * np.full(5, 50.0), 1.0, 4.0)
        low, high = so101.LIMITS_RAD.T
        assert (world.joints > low - 0.02).all()
        assert (world.joints < high + 0.02).all()
        assert np.array_equal(world.data.ctrl[:5], np.float32(high if sign > 0 else low).astype(float))
        assert world.opening < so101.OPENING_M[1] + 1e-3


def carry(world, seed):
    """An expert's episode up to the moment when it carries the cube."""
    world.reset(seed=seed)
    expert = PickPlaceExpert(world)
    for _ in range(160):
        if expert.phase == "carry":
            return expert
        world.step(expert.act())
    raise AssertionError(f"after eight seconds the expert is still at {expert.phase!r}")


def test_the_grip_holds_the_cube_while_it_is_shaken(world):
    """Friction must carry the weight and the jerk: 2 mu N > m (g + a). Red at a tenth of the gripper's force, and without
    noslip iterations, when the cube creeps out of the hand by 1.5 mm/s.
    """
    carry(world, 0)
    pose = world.joints
    hold(world, pose, CLOSE_M, 1.0)
    held = world.cube_pos
    for i in range(100):
        world.step(np.array([*(pose + 0.05 * np.sin(0.8 * i) * np.array([1, 0.3, 0, 0, 1])), CLOSE_M]))
    hold(world, pose, CLOSE_M, 5.0)
    assert np.linalg.norm(world.cube_pos - held) < 0.002
    touching = {frozenset(world.model.geom(g).name for g in c.geom) for c in world.data.contact}
    assert touching == {frozenset({"cube", f"{side}_finger_pad"}) for side in ("left", "right")}


def test_the_fingers_move_together(world):
    """Red without the equality that couples them: a newton on one alone would part them by centimetres."""
    world.reset(seed=2)
    world.data.qfrc_applied[5] = 1.0
    hold(world, world.joints, OPEN_M, 1.0)
    assert abs(world.data.qpos[5] - world.data.qpos[6]) < 1e-3


def test_a_cube_that_is_let_go_falls(world):
    carry(world, 1)
    assert world.cube_pos[2] > 0.05
    hold(world, world.joints, OPEN_M, 1.0)
    assert world.cube_pos[2] == pytest.approx(CUBE_M, abs=1e-3)


def test_the_hull_collides_with_nothing_but_its_distances_are_known(world):
    world.reset(seed=0)
    hull = [i for i in range(world.model.ngeom) if world.model.geom(i).name.endswith("_hull")]
    assert len(hull) == 8
    assert not world.model.geom_contype[hull].any()
    assert not world.model.geom_conaffinity[hull].any()
    upper = [world.model.geom(n).id for n in ("upper_hull", "table")]
    distance = mujoco.mj_geomDistance(world.model, world.data, *upper, 1.0, np.zeros(6))
    assert 0 < distance < so101.LIFT_HEIGHT_M


def test_success_needs_all_four_of_its_conditions(world):
    """Red when any of target, height, release or clearance is dropped from the rule."""
    world.reset(seed=0)
    world.data.qpos[7:9] = world.target_pos + [0.024, 0.0]
    world._refresh()
    assert world.is_success
    start = world.get_state()
    for spoil in (
        lambda d: d.qpos.__setitem__(7, d.qpos[7] + 0.002),
        lambda d: d.qpos.__setitem__(9, 0.0190),
        lambda d: d.qpos.__setitem__(slice(5, 7), 0.018),
        lambda d: d.qpos.__setitem__(slice(0, 5), so101.top_down(0.16, 0.0, 0.048)),
    ):
        world.set_state(start)
        spoil(world.data)
        world._refresh()
        assert not world.is_success


def test_scenes_are_drawn_as_the_task_says(world):
    cubes, targets, tips = [], [], []
    for seed in range(300):
        world.reset(seed=seed)
        cubes.append(world.cube_pos[:2])
        targets.append(world.target_pos)
        tips.append(world.tip_pos)
        assert not world.is_success
    cubes, targets, tips = np.array(cubes), np.array(targets), np.array(tips)
    for places in (cubes, targets):
        radius, angle = np.linalg.norm(places, axis=1), np.arctan2(places[:, 1], places[:, 0])
        assert 0.14 <= radius.min() < 0.145
        assert 0.215 < radius.max() <= 0.22
        assert np.deg2rad(47) < np.abs(angle).max() <= np.deg2rad(50)
    # uniform in area: half of it lies beyond this radius (3 sigma of 300 draws is 0.087)
    assert (np.linalg.norm(cubes, axis=1) > np.sqrt((0.14**2 + 0.22**2) / 2)).mean() == pytest.approx(0.5, abs=0.087)
    assert np.linalg.norm(cubes - targets, axis=1).min() >= 0.07
    assert (np.abs(tips - [0.16, 0.0, 0.10]).max(0) <= [0.02 + 1e-9, 0.02 + 1e-9, 0.0134]).all()


def test_a_state_brings_back_the_world_to_the_bit(world):
    """Red when warm starts, targets or the clock are left out of the state."""
    expert = carry(world, 4)
    state = world.get_state()
    moves = [expert.act()]
    seen = [world.step(moves[0])]
    for _ in range(40):
        moves.append(expert.act())
        seen.append(world.step(moves[-1]))
    other = PickPlace(max_steps=10_000)
    other.reset(seed=99)
    for stranger in (world, other):
        stranger.set_state(state)
        for move, (obs, reward, *flags, info) in zip(moves, seen, strict=True):
            again = stranger.step(move)
            assert all(np.array_equal(again[0][k], obs[k]) for k in obs)
            assert again[1:] == (reward, *flags, info)
        assert stranger.time_s == world.time_s


def test_the_expert_succeeds():
    """At least 98 of 100 fresh seeds within the eight seconds (500 of 500 when written)."""
    env = make_world("polyarm/PickPlace-v0", {})
    expert = PickPlaceExpert(env)
    episodes = [play(env, expert, seed) for seed in range(50_000, 50_100)]
    assert sum(e.success for e in episodes) >= 98
    assert max(map(len, episodes)) <= 160


def test_the_expert_starts_again_when_the_cube_is_taken_from_it(world):
    """Red when phases switch on time, or a lost cube goes unnoticed."""
    expert = carry(world, 5)
    world.data.qpos[7:10] = [*(0.18 * np.array([np.cos(0.8), np.sin(0.8)])), CUBE_M]
    world.data.qvel[:] = 0
    world._refresh()
    world.step(expert.act())
    assert expert.phase == PHASES[0].name
    for _ in range(160):
        if world.step(expert.act())[2]:
            break
    assert world.is_success


def test_an_episode_holds_what_was_seen_when_each_action_was_chosen():
    """Red when observations are shifted by one against the actions."""
    env = make_world("polyarm/PickPlace-v0", {})
    episode = play(env, PickPlaceExpert(env), 11)
    obs, _ = env.reset(seed=11)
    for i, action in enumerate(episode.action):
        assert all(np.array_equal(episode.obs[name][i], obs[name]) for name in obs)
        obs, _, terminated, _, _ = env.step(action)
    assert terminated
    assert episode.success
    assert episode.seed == 11
    np.testing.assert_allclose(episode.time_s, np.arange(len(episode)) / 20)
    assert episode.action.dtype == np.float32


def test_the_expert_knows_its_world():
    with pytest.raises(TypeError, match="PickPlace only"):
        PickPlaceExpert(gym.make("polyarm/PushT-v0"))


def colours(picture):
    """Where red (the cube) and green (the target) are seen, as masks."""
    r, g, b = (picture[..., i].astype(int) for i in range(3))
    return (r > 90) & (g < 80) & (b < 90), (g > r + 40) & (g > b + 20)


def test_the_front_camera_sees_cube_and_target_wherever_they_lie():
    """Red when the camera looks elsewhere: cube and target must be whole pixels in a 96 px picture, away from the arm."""
    world = PickPlace(cameras=("front",))
    for seed in range(12):
        obs, _ = world.reset(seed=seed)
        cube, target = colours(obs["front"])
        assert cube.sum() >= 8, seed
        assert target.sum() >= 20, seed
        column = np.argwhere(cube)[:, 1].mean()
        assert (column - 47.5) * world.cube_pos[1] > 0 or abs(
            world.cube_pos[1]
        ) < 0.01  # left of the base is left for it


def test_the_wrist_camera_sees_the_cube_between_the_fingers():
    world = PickPlace(cameras=("wrist",), max_steps=10_000)
    carry(world, 0)
    cube, _ = colours(world._obs()["wrist"])
    rows, columns = np.argwhere(cube).mean(0)
    assert cube.mean() > 0.05
    assert columns == pytest.approx(47.5, abs=5)
    assert rows > 40


@pytest.mark.parametrize("angle", [-10.0, 5.0, 10.0])
def test_the_front_camera_goes_round_the_workspace_and_keeps_it_in_the_middle(angle):
    """Its distance and height stay, its heading turns with it, the middle stays in its column; physics and the wrist's camera
    do not notice. Mutations: the position turned without its axes, round the base."""
    still, moved = (PickPlace(cameras=("front", "wrist"), front_orbit_deg=a) for a in (0.0, angle))
    first, other = (world.reset(seed=3)[0] for world in (still, moved))
    assert np.array_equal(still.get_state(), moved.get_state())
    assert np.array_equal(first["wrist"], other["wrist"])
    assert not np.array_equal(first["front"], other["front"])
    a, b = (world.data.camera("front") for world in (still, moved))
    middle = np.array([0.18, 0, 0])
    turn = np.deg2rad(angle)
    assert b.xpos[2] == pytest.approx(a.xpos[2])
    heading = np.arctan2(*(b.xpos - middle)[1::-1])
    assert heading == pytest.approx(turn)
    # x to the right, y up, z backwards: the middle stays where it was seen
    rays = [c.xmat.reshape(3, 3).T @ (middle - c.xpos) for c in (a, b)]
    np.testing.assert_allclose(rays[1], rays[0], atol=1e-6)
    assert rays[1][0] == pytest.approx(0, abs=1e-6)
    assert rays[1][2] < 0


def test_the_table_is_painted_for_both_cameras():
    """Mutation: only the texture of one camera's model."""
    world = PickPlace(cameras=("front", "wrist"), table_rgb=(0.1, 0.2, 0.9))
    plain = PickPlace(cameras=("front", "wrist"))
    for camera in ("front", "wrist"):
        blue, before = (w.reset(seed=0)[0][camera].astype(int).reshape(-1, 3) for w in (world, plain))
        median = np.median(blue, axis=0)
        assert median[2] > 2 * median[0]
        assert np.ptp(np.median(before, axis=0)) < 40


@pytest.mark.parametrize("rgb", [(1.0, 2.0, 3.0), (0.5, 0.5), (-0.1, 0.0, 0.0)])
def test_no_colour_is_refused(rgb):
    with pytest.raises(UserError, match="give red, green and blue from 0 to 1"):
        PickPlace(table_rgb=rgb)


def test_shadows_are_off_unless_asked_for():
    bright, shaded = (PickPlace(cameras=("front",), shadows=s).reset(seed=0)[0]["front"] for s in (False, True))
    dark = lambda picture: (picture.max(-1) < 125).mean()
    assert dark(shaded) > dark(bright) + 0.01
