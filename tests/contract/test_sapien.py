"""ManiSkill's tasks behind the World contract: streams, ends, determinism, experts; depth, cameras and objects in one frame.

Mutations that turn it red: `rebuild` ignored (push_cube); pixels counted from their corners; a camera's row turned by 10 degrees.
Written for these too: a calibration in the world's frame; depth rounded to centimetres; the orbit turned the other way or about the
robot; `look` ignored by a step, or obeyed by a reset; success that does not end the episode; a quaternion read xyzw.
"""

from functools import cache

import numpy as np
import pytest

import polyarm.sim  # noqa: F401  registers the worlds
from polyarm.camera import from_row, lift, project
from polyarm.choices import options
from polyarm.cli import main
from polyarm.collect import _expert
from polyarm.config import compose
from polyarm.datasets.store import Store
from polyarm.rotation import convert
from polyarm.sim.world import make_world, spec_of
from polyarm.spec import UserError
from tests.rgbd import turned

pytestmark = pytest.mark.usefixtures("needs_sapien")
NAME = "polyarm/ManiSkill-v0"
NODES = {n: compose([f"task={n}"]).task for n in options("task")}
TASKS = {n: task.env_kwargs.task for n, task in NODES.items() if task.env_id == NAME}
HALF_M = 0.02
"""Of PickCube's cube."""
SEEN = {"cameras": ("front", "wrist"), "see": ("rgb", "depth", "segmentation"), "image_size": (96, 128)}


@cache
def world(name, **kwargs):
    """One of each kind, shared: what a test leaves behind may not matter."""
    return make_world(NAME, {"task": TASKS[name], **kwargs})


def run(env, seed, moves):
    """Every observation, stacked by stream."""
    seen = [env.reset(seed=seed)[0]]
    seen += [env.step(a)[0] for a in moves]
    return {name: np.stack([o[name] for o in seen]) for name in seen[0]}


def acted(name, env, seed):
    """(actions, rewards, the last step's terminated, truncated and info) of the task's expert."""
    env.reset(seed=seed)
    expert, actions, rewards, ended = _expert(NODES[name].expert)(env.unwrapped), [], [], False
    while not ended:
        actions.append(expert.act())
        _, reward, terminated, truncated, info = env.step(actions[-1])
        rewards.append(reward)
        ended = terminated or truncated
    return actions, rewards, terminated, truncated, info


def alike(one, other):
    return all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", TASKS)
def test_what_is_shown_is_what_the_spec_says(name):
    env = world(name)
    spec, obs = spec_of(env, NAME), env.reset(seed=4)[0]
    assert env.observation_space.contains(obs) and tuple(obs) == spec.obs.names
    assert {*NODES[name].sees.state} <= {*obs}
    told = [s for s in spec.obs.streams if s.name not in ("joint_pos", "instruction")]
    assert all(s.frame == "base" and len(s.names) == len(s.units) for s in told)
    turn = np.stack([obs["tip"][3:6], obs["tip"][6:9]])
    assert np.allclose(turn @ turn.T, np.eye(2), atol=1e-5) and obs["tip"][9] == obs["joint_pos"][-1]
    if name != "pick_cube_so100":  # whose tip lies between the jaws, its arm ends in one of them
        assert np.allclose(obs["tip"][:3], env.unwrapped.robot.arm.pose(env.unwrapped.qpos)[:3, 3], atol=1e-3)


@pytest.mark.parametrize("name", TASKS)
def test_an_episode_is_the_same_whatever_was_played_before(name):
    """To the bit, pictures too. Mutation: reset without reconfigure, red for those that touch something in the first."""
    kwargs = {"cameras": ("front",), "image_size": (48, 64)} if name == "stack_cube" else {}
    first, second = world(name, **kwargs), make_world(NAME, {"task": TASKS[name], **kwargs})
    before, *_ = acted(name, first, 0)
    moves, *_ = acted(name, first, 1)
    a, b = run(first, 1, moves[:30]), run(second, 1, moves[:30])
    run(second, 0, before[::2])
    assert alike(a, b) and alike(a, run(second, 1, moves[:30]))
    second.close()


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("seed", [0, 1])
def test_its_expert_solves_it_and_success_ends_it(name, seed):
    actions, rewards, terminated, truncated, info = acted(name, world(name), seed)
    assert info["is_success"] and terminated and not truncated
    assert rewards[-1] == 1 and not any(rewards[:-1])
    space = world(name).action_space
    assert all(a.shape == space.shape and np.isfinite(a).all() for a in actions)


@pytest.mark.parametrize("name", ["pick_cube", "pick_cube_so100"])
def test_it_ends_at_max_steps_and_clips_actions(name):
    env = world(name, max_steps=3)
    space, ends = env.action_space, []
    env.reset(seed=0)
    for _ in range(3):
        *_, terminated, truncated, info = env.step(space.high)
        ends.append((terminated, truncated, info["is_success"]))
    assert ends == [(False, False, False)] * 2 + [(False, True, False)]
    assert env.unwrapped.time_s == pytest.approx(3 / 20)
    assert alike(run(env, 2, [space.high] * 3), run(env, 2, [space.high + 9] * 3))


def test_the_tip_goes_where_it_is_told():
    """x y z in the base's frame and a quaternion wxyz."""
    env, quat = world("pick_cube"), np.array([0.1, 0.95, 0.2, 0.05])
    env.reset(seed=0)
    for _ in range(40):
        tip = env.step(np.array([0.5, 0.1, 0.3, *quat / np.linalg.norm(quat), 0.04], np.float32))[0]["tip"]
    assert np.allclose(tip[:3], [0.5, 0.1, 0.3], atol=0.005)
    assert np.allclose(tip[3:9], convert(quat, "quat_wxyz", "matrix")[:, :2].T.ravel(), atol=0.03)


def test_bad_input_is_a_sentence():
    env = world("pick_cube")
    env.reset(seed=0)
    with pytest.raises(UserError, match="quaternion .*0.0, 0.0.*: give one of length 1"):
        env.step(np.array([0.5, 0, 0.2, 0, 0, 0, 0, 0.04], np.float32))
    with pytest.raises(UserError, match="not finite|finite numbers"):
        env.step(np.full(8, np.nan, np.float32))
    for kwargs, says in (
        ({"task": "PickCub-v1"}, "unknown ManiSkill task .*did you mean 'PickCube-v1'.*StackCube-v1"),
        ({"cameras": ["top"]}, "unknown camera 'top': .*front, wrist"),
        ({"cameras": ["front"], "see": ["dept"]}, "unknown thing to see 'dept'.*depth, rgb, segmentation"),
        ({"task": "PickCubeSO100-v1", "cameras": ["wrist"]}, r"so100 has no wrist camera: give .*cameras=\[front\]"),
        ({"front_orbit": 3}, "unknown setting of polyarm/ManiSkill-v0 in task.env_kwargs 'front_orbit'"),
    ):
        with pytest.raises(UserError, match=says):
            make_world(NAME, kwargs)


def on_cube(env, obs, camera, half_pixel=0.0):
    """[p 3], m: what `camera` sees of the cube, in the cube's own axes; `half_pixel` too much of both image axes."""
    k, pose = from_row(obs[f"{camera}_camera"])
    k[:2, 2] += half_pixel
    number = env.unwrapped._env.cube._objs[0].per_scene_id
    points = lift(obs[f"{camera}_depth"], "mm", k, pose)[obs[f"{camera}_segmentation"] == number]
    base_from_cube = env.unwrapped.pose("cube")
    return (points - base_from_cube[:3, 3]) @ base_from_cube[:3, :3]


def off(points):
    """[p] m from the cube's faces."""
    out = np.abs(points) - HALF_M
    return np.abs(np.linalg.norm(out.clip(0), axis=1) + out.max(1).clip(max=0))


@pytest.mark.parametrize("seed", [0, 3])
def test_points_of_both_cameras_lie_on_the_cube(seed):
    """Within 3 mm; a pixel's point is that of its centre."""
    env = world("pick_cube", **SEEN)
    obs = env.reset(seed=seed)[0]
    assert env.observation_space.contains(obs)
    for camera in SEEN["cameras"]:
        points = on_cube(env, obs, camera)
        assert len(points) >= 15 and off(points).max() < 0.003, camera
    assert all(off(on_cube(env, obs, "front", shift)).max() > 0.003 for shift in (0.5, -0.5)), "the corner's is not"


def test_two_cameras_agree():
    """What the front camera sees lies where the wrist's measured it, but for what is hidden from that."""
    env = world("pick_cube", **SEEN)
    obs = env.reset(seed=0)[0]
    points = lift(obs["front_depth"], "mm", *from_row(obs["front_camera"])).reshape(-1, 3)
    pixel, z = project(points[np.isfinite(points).all(1)], *from_row(obs["wrist_camera"]))
    h, w = obs["wrist_depth"].shape
    inside = (z > 0.02) & (pixel > 0).all(1) & (pixel < (w, h)).all(1)
    column, row = pixel[inside].astype(int).T
    behind = z[inside] - obs["wrist_depth"][row, column] / 1000
    assert inside.sum() > 1000 and np.median(np.abs(behind)) < 0.001
    assert (behind > -0.01).mean() > 0.98, "it looks through nothing"
    assert (np.abs(behind) < 0.005).mean() > 0.8


@pytest.mark.parametrize("turn_deg", [20.0, -45.0])
def test_a_camera_carried_round_sees_the_cube_where_it_is(turn_deg):
    """By as much as was asked for, round the vertical through what it looks at; what it sees stays in the base's frame."""
    small = {"cameras": ("front",), "see": ("depth", "segmentation"), "image_size": (96, 128)}
    here, there = world("pick_cube", **small), world("pick_cube", **small, front_orbit_deg=turn_deg)
    seen = [env.reset(seed=3)[0] for env in (here, there)]
    eye, moved = (o["front_camera"][4:].reshape(3, 4)[:, 3] for o in seen)
    base = here.unwrapped._env.agent.robot.pose.sp.p
    cos, sin = np.cos(np.radians(turn_deg)), np.sin(np.radians(turn_deg))
    middle = here.unwrapped.task.look - base
    turned_eye = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]) @ (eye - middle) + middle
    assert np.allclose(moved, turned_eye, atol=1e-4) and np.linalg.norm(moved - eye) > 0.1
    assert not np.array_equal(seen[0]["front_depth"], seen[1]["front_depth"])
    points = on_cube(there, seen[1], "front")
    assert len(points) >= 15 and off(points).max() < 0.003


def test_pictures_of_before_are_shown_while_nobody_looks():
    env = world("pick_cube", cameras=("front",), image_size=(48, 64))
    moves = [env.action_space.high * 0.5] * 2
    pictures = [s.name for s in env.unwrapped.world_spec.obs.streams if s.name.startswith("front")]
    looked = run(env, 1, moves)
    try:
        env.unwrapped.look = False
        blind = run(env, 1, moves)
    finally:
        env.unwrapped.look = True
    for name in looked:
        assert np.array_equal(looked[name][0], blind[name][0]), "a reset looks"
        assert np.array_equal(blind[name][2], (blind[name][0] if name in pictures else looked[name][2]))
    assert not np.array_equal(looked["front_depth"][2], looked["front_depth"][0])


def test_without_building_anew_what_was_played_before_matters():
    """What `rebuild` is for. Should this fail, PhysX has learnt to forget, and `rebuild` can go."""
    first, second = (make_world(NAME, {"task": TASKS["push_cube"], "rebuild": False}) for _ in range(2))
    moves, *_ = acted("push_cube", first, 1)
    fresh = run(second, 1, moves)
    acted("push_cube", second, 0)
    assert not alike(fresh, run(second, 1, moves))
    first.close(), second.close()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("sapien") / "stack.zarr"
    assert main(["collect", *STORED, f"collect.path={path}", "collect.workers=1"]) == 0
    return path


STORED = ["task=stack_cube", "collect.episodes=2", "collect.seed=1", "task.env_kwargs.image_size=[48,64]"]


def test_demonstrations_hold_what_the_world_shows(store):
    demos = Store.open(store)
    assert len(demos) == 2 and demos.successes.all() and list(demos.seeds) == [1, 2]
    shown = world("stack_cube", cameras=("front",), image_size=(48, 64)).unwrapped.world_spec
    assert demos.spec.obs.streams[:-1] == shown.obs.streams and demos.spec.action == shown.action
    assert demos.spec.obs.names[-1] == "keypose" and "cloud" not in demos.spec.obs.names
    assert demos.stream("front_depth")[:].dtype == np.uint16


def test_a_wrong_extrinsic_is_seen_in_the_data(store, tmp_path, capsys):
    assert main(["data", "check", str(store)]) == 0
    demos = Store.open(store)
    ends = np.array(demos.episode_ends)
    with Store.create(tmp_path / "off.zarr", demos.spec) as wrong:
        for seed, (a, b) in enumerate(zip(ends - np.diff(ends, prepend=0), ends, strict=True)):
            rows = {n: demos.stream(n)[a:b] for n in (*demos.spec.obs.names, "action", "time_s")}
            rows["front_camera"] = np.stack([turned(row, 10) for row in rows["front_camera"]])
            wrong.append(rows, seed)
    capsys.readouterr()
    assert main(["data", "check", str(tmp_path / "off.zarr")]) != 0
    assert "front" in (said := capsys.readouterr().err) and "calibrate its extrinsic again" in said
