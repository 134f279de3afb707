"""Keyposes: found in demonstrations as published, learnt as rows, and moved between by a world, until the policy is judged there.

Mutations that turn it red: the refractory frames, the window, the end or the neighbour left out of the rule; `lined` that keeps a
frame too many or too few; an action that is this keypose and not the next, that was told and not reached, or whose opening is the
one before; rows of other streams at other frames; fingers that move with the hand; a world that looks at every step, that never
ends, or that goes on behind a wall or past the episode's end; a film of keyposes alone; a kind that is not compared.
"""

import time
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from omegaconf import OmegaConf

import polyarm
from polyarm.choices import adding
from polyarm.config import compose
from polyarm.datasets.keyposes import Keyposed
from polyarm.datasets.rotated import Rotated
from polyarm.datasets.store import Store
from polyarm.derive import Derivation
from polyarm.eval.film import replayed
from polyarm.eval.rollout import Played
from polyarm.eval.score import Outcome
from polyarm.keypose import Keyposes, found, lined
from polyarm.rotation import convert
from polyarm.sim.experts.episode import play
from polyarm.sim.vector import ShardedVectorEnv
from polyarm.sim.world import make_world, spec_of
from polyarm.spec import Stream, UserError, require_actions
from polyarm.task import open_demos, world_kwargs
from tests.reach_world import NAME, Expert, Reach

HOW = Keyposes(
    tip="tip", joints=None, marks=None, slow_rad_s=0.1, line_m=0.02, stride_m=0.1, stride_rad=0.5, near_m=0.004, near_rad=0.05,
    move_s=5.0, grip_s=0.4, most=25,
)  # fmt: skip


def published(speed, gripper):
    """`keypoint_discovery` and `_is_stopped` of RLBench's agents (PerAct, 3D Diffuser Actor), line for line."""
    keys, before, buffer = [], gripper[0], 0
    for i in range(len(gripper)):
        final = i == len(gripper) - 2
        steady = i < len(gripper) - 2 and (
            gripper[i] == gripper[i + 1] and gripper[i] == gripper[i - 1] and gripper[i - 2] == gripper[i - 1]
        )
        stopped = buffer <= 0 and np.allclose(speed[i], 0, atol=0.1) and not final and steady
        buffer = 4 if stopped else buffer - 1
        if i != 0 and (gripper[i] != before or i == len(gripper) - 1 or stopped):
            keys.append(i)
        before = gripper[i]
    if len(keys) > 1 and keys[-1] - 1 == keys[-2]:
        keys.pop(-2)
    return keys


MOVING = np.ones((20, 2))


def test_the_rule_finds_what_a_gripper_and_a_stop_say():
    opened = np.arange(20) < 7
    assert found(MOVING, opened, 0.1) == [7, 19]
    stops = MOVING.copy()
    stops[11] = (0.05, -0.05)
    assert found(stops, opened, 0.1) == [7, 11, 19] and found(stops, opened, 0.04) == [7, 19]
    stops[11, 1] = 1.0
    assert found(stops, opened, 0.1) == [7, 19]  # one joint still turns
    stops[9:19] = 0
    assert found(stops, opened, 0.1) == [7, 9, 14, 19]  # four frames of quiet after a stop
    stops = MOVING.copy()
    stops[[6, 8]] = 0
    assert found(stops, opened, 0.1) == [7, 19]  # the gripper is not steady around it
    assert found(MOVING, np.arange(20) < 18, 0.1) == [19]  # of two neighbours at the end the last
    assert found(MOVING, np.arange(20) < 17, 0.1) == [17, 19]
    assert found(MOVING[:, :0], opened, 0.1) == [7, 19] and found(MOVING[:1], opened[:1], 0.1) == []


def test_the_rule_is_the_published_one():
    rng = np.random.default_rng(0)
    for _ in range(300):
        n = int(rng.integers(2, 40))
        speed, gripper = rng.uniform(-1, 1, (n, 3)) * (rng.random((n, 1)) < 0.4), rng.random(n) < rng.choice([0.03, 0.5, 0.97])  # fmt: skip
        assert found(speed, gripper, 0.1) == published(speed, gripper)


def test_lines_through_the_corners_keep_to_the_way():
    corners = np.array([[0, 0, 0], [0, 0, 1.0], [1, 0, 1], [1, 0, 0]])
    way = np.concatenate([np.linspace(a, b, 11)[:-1] for a, b in pairwise(corners)] + [corners[3:]])  # fmt: skip
    assert lined(way, [0, 30], 0.02) == [0, 10, 20, 30]
    assert lined(way, [0, 5, 30], 2.0) == [0, 5, 30] and lined(way[:1], [0], 0.02) == [0]
    assert lined(np.zeros((9, 3)), [0, 8], 0.02) == [0, 8]
    rng = np.random.default_rng(0)
    walk = rng.normal(size=(60, 3)).cumsum(0) / 20
    some = lined(walk, [0, 59], 0.1)
    share = np.linspace(0, 1, 200)[:, None]
    lines = np.concatenate([walk[a] + share * (walk[b] - walk[a]) for a, b in pairwise(some)])
    assert np.linalg.norm(walk[:, None] - lines, axis=-1).min(1).max() <= 0.11 and len(some) < 50


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path, world = tmp_path_factory.mktemp("reach") / "reach.zarr", make_world(NAME, {"ends": False, "max_steps": 45})
    with Store.create(path, spec_of(world, NAME)) as made:
        for seed in range(6):
            e = play(world, Expert(world), seed)
            assert e.success
            made.append({**e.obs, "action": e.action, "time_s": e.time_s}, seed)
    return path


def test_a_row_leads_to_the_next_keypose(store):
    raw, demos = Store.open(store), Keyposed(Store.open(store), HOW)
    assert demos.spec == replace(raw.spec, action=replace(raw.spec.action, kind="keypose"))
    begin = np.insert(raw.episode_ends, 0, 0)
    assert np.diff(demos.episode_ends, prepend=0).tolist() == [3] * 6  # the first frame, where it grips, where it ends
    tip, action, told = raw.stream("tip")[:], demos.stream("action")[:], raw.stream("action")[:]
    for e in range(6):
        rows = slice(begin[e], begin[e + 1])
        grips = begin[e] + int(np.argmax(told[rows, 7] == 0))
        frames = [begin[e], grips, begin[e + 1] - 1]
        for name in ("tip", "front", "thing", "time_s"):
            assert np.array_equal(demos.stream(name)[3 * e : 3 * e + 3], raw.stream(name)[np.array(frames)]), name
        for i, to in enumerate((1, 2, 2)):
            row = action[3 * e + i]
            assert np.array_equal(row[:3], tip[frames[to], :3]) and row[7] == 0.0
            turn = convert(tip[frames[to], 3:].astype(float), "rot6d_columns", "quat_wxyz")
            assert np.abs(row[3:7] - turn).max() < 1e-6
    some = np.array([[17, 2], [2, 5]])
    assert np.array_equal(demos.stream("front")[some], demos.stream("front")[:][some])
    six = Rotated(demos, "rot6d_columns")
    assert six.spec.action.kind == "keypose" and np.abs(six.stream("action")[-1, 3:9] - tip[-1, 3:]).max() < 1e-6


def test_fingers_that_move_slowly_are_told_what_they_come_to(store, tmp_path):
    """And a keypose before the last two, which are neighbours, is not told what the one left out is."""
    raw, path = Store.open(store), tmp_path / "slow.zarr"
    with Store.create(path, raw.spec) as made:
        n = int(raw.episode_ends[0])
        row = raw.stream("action")[:n].copy()
        row[:, 7] = np.interp(np.arange(n), [6, 11], [0.04, 0.0])
        late = raw.stream("action")[:n].copy()
        late[:, 7] = np.where(np.arange(n) < n - 2, 0.04, 0.0)
        for action in (row, late):
            seen = {s.name: raw.stream(s.name)[:n] for s in raw.spec.obs.streams}
            made.append({**seen, "action": action, "time_s": raw.stream("time_s")[:n]}, len(made))
    demos = Keyposed(Store.open(path), HOW)
    ends = demos.episode_ends
    assert (demos.stream("action")[: ends[0], 7] == 0).all()
    assert np.array_equal(demos.stream("tip")[1], seen["tip"][9]) and demos.stream("action")[0, 7] == 0.0
    before = demos.stream("action")[ends[0] : ends[1], 7]
    assert (before[:-2] == np.float32(0.04)).all() and (before[-2:] == 0).all() and len(before) > 2


def test_marks_of_ones_own_are_taken_as_they_are(store, tmp_path):
    raw, path = Store.open(store), tmp_path / "marked.zarr"
    with Store.create(path, raw.spec) as made:
        n = int(raw.episode_ends[0])
        arrays = {s.name: raw.stream(s.name)[:n] for s in raw.spec.obs.streams}
        arrays["marks"] = np.isin(np.arange(n), (2, 5)).astype(np.float32)[:, None]
        made.append({**arrays, "action": raw.stream("action")[:n], "time_s": raw.stream("time_s")[:n]}, 0)
    demos = Keyposed(Store.open(path), replace(HOW, marks="marks", line_m=None))
    assert np.array_equal(demos.stream("tip")[:], arrays["tip"][[0, 2, 5, n - 1]])
    told = raw.stream("action")[:n][:, 7]
    assert told[5] == told[2] > told[n - 1]  # the fingers close later, between a mark and the end
    assert np.array_equal(demos.stream("action")[:][:, 7], told[[2, 5, n - 1, n - 1]])


def test_an_expert_marks_keyposes_as_it_is_collected(tmp_path):
    """Beside what the world shows, as a label, which no policy sees. Stores from before go on without. Mutations: marks of the
    frame before; a store that goes on loses them, or one without them is given some; a state instead of a label."""
    from polyarm.collect import collect

    player = (NAME, {"max_steps": 60}, "tests.reach_world.Marker")
    for n, workers in ((1, 1), (3, 2)):
        collect(*player, tmp_path / "d.zarr", n, workers=workers, progress=False)
    store = Store.open(tmp_path / "d.zarr")
    shown = spec_of(make_world(NAME, player[1]), NAME)
    assert store.spec.obs.names == (*shown.obs.names, "keypose") and store.spec.obs["keypose"].hidden
    marks, told, tip = store.read("keypose")[:, 0], store.read("action"), store.read("tip")
    begin = np.insert(store.episode_ends, 0, 0)
    for a, b in pairwise(begin):
        grips, lifts = np.argmax(told[a:b, 7] == 0), np.argmax(told[a:b, 2] > 0.3)
        assert np.flatnonzero(marks[a:b]).tolist() == [grips, lifts] and 0 < grips < lifts
    demos = Keyposed(store, replace(HOW, marks="keypose", line_m=None))
    frames = np.concatenate([[a, *(a + np.flatnonzero(marks[a:b])), b - 1] for a, b in pairwise(begin)])
    assert np.array_equal(demos.stream("tip")[:], tip[frames]) and demos.spec.obs == store.spec.obs

    origin = {"env_id": NAME, "env_kwargs": player[1], "expert": player[2], "first_seed": 0}
    Store.create(tmp_path / "before.zarr", shown, collect=origin).close()
    collect(*player, tmp_path / "before.zarr", 1, progress=False)
    before = Store.open(tmp_path / "before.zarr")
    assert before.spec == shown and len(before) == 1
    with pytest.raises(UserError, match="unknown stream of .* 'keypose'"):
        before.stream("keypose")


def test_a_frame_of_collecting_is_timed_with_one_worker_and_with_two(store, tmp_path, monkeypatch):
    """A piece of `polyarm bench three_d`. Mutations: the same workers twice; one's share of two; episodes in place of frames."""
    from polyarm.bench import pieces

    with adding(
        [conf(tmp_path, store, expert="tests.reach_world.Expert", env_kwargs={"ends": False, "max_steps": 45})]
    ):
        config = compose(["task=reach", "collect.episodes=2", f"collect.path={tmp_path}/d.zarr"])
    asked, timed = [], pieces.frames_per_s

    def frames_per_s(config, workers):
        began = time.perf_counter()
        rate = timed(config, workers)
        asked.append(workers)
        assert rate > 2 * 45 / (time.perf_counter() - began)  # two episodes of 45 frames took less than all of it
        return rate

    monkeypatch.setattr(pieces, "frames_per_s", frames_per_s)
    one, two = pieces._of_collecting(config)
    assert asked == [1, 2] and two["times_one"] == two["frames_s"] / one["frames_s"]
    assert (one["ms"], two["ms"]) == (1e3 / one["frames_s"], 1e3 / two["frames_s"])
    assert pieces._times(one) == "" and f"{two['times_one']:.2f} times" in pieces._times(two)


def test_joints_that_stop_are_a_keypose_and_need_angles(store):
    """The hand stands where it grips, and its joints with it."""
    demos = Keyposed(Store.open(store), replace(HOW, joints="joints", line_m=None))
    assert (np.diff(demos.episode_ends, prepend=0) >= 3).all()
    with pytest.raises(UserError, match="'thing' of .* has no channel in rad: name the one with the joints"):
        Keyposed(Store.open(store), replace(HOW, joints="thing"))


def test_demonstrations_are_played_again_by_their_keyposes(store):
    """Alone and among others, in worker processes too; and the same every time, to the bit."""
    demos, world = Keyposed(Store.open(store), HOW), make_world(NAME, {"keyposes": HOW})
    assert spec_of(world, NAME).action == demos.spec.action and spec_of(world, NAME).action.kind == "keypose"
    rows = demos.stream("action")[:].reshape(6, 3, 8)
    shown = []
    for seed in (*range(6), 0):
        world.reset(seed=seed)
        for row in rows[seed]:
            obs, reward, terminated, truncated, info = world.step(row)
            shown.append(obs["tip"])
            if terminated or truncated:
                break
        assert info["is_success"] and reward == 1.0 and terminated and not truncated
        assert world.get_wrapper_attr("time_s") > 1.0
    assert np.array_equal(shown[0], shown[-2]) and np.array_equal(shown[1], shown[-1])
    worlds = ShardedVectorEnv(NAME, {"keyposes": HOW}, 2, 1)
    try:
        worlds.reset(seed=[0, 1])
        obs = worlds.step(rows[:2, 0])[0]
        assert np.array_equal(obs["tip"][0], shown[0]) and worlds.world_spec.action.kind == "keypose"
    finally:
        worlds.close()


TURN = convert(np.array([0, 0, 1.0]), "rotvec", "quat_wxyz")


def test_the_hand_goes_straight_with_the_fingers_as_they_are_and_looks_once():
    world = make_world(NAME, {"keyposes": HOW})
    seen, bare = [], world.unwrapped
    world.reset(seed=0)
    world.watch = lambda: seen.append((*bare.xyz, bare.opening, bare.look))
    shots, goal = Reach.shots, np.array([0.3, -0.2, 0.1])
    obs = world.step(np.float32([*goal, *TURN, 0.0]))[0]
    way = np.array(seen)
    assert Reach.shots == shots + 1 and way[:-1, 4].sum() == 0 and way[-1, 4] == 1 and obs["front"].max() == bare.t
    assert np.abs(bare.xyz - goal).max() < 0.004 and bare.look
    share = (way[:, 0] / goal[0])[:, None]
    assert np.abs(way[:, :3] - [0, 0, 0.4] - share * (goal - [0, 0, 0.4])).max() < 1e-6
    assert np.abs(way[:-4, 3] - 0.04).max() < 1e-6 and way[-1, 3] == pytest.approx(0.0, abs=1e-6) and len(way) > 10
    assert np.abs(convert(bare.turn, "matrix", "rotvec") - [0, 0, 1]).max() < 0.05
    before = bare.t
    world.step(np.float32([*goal, *TURN, 0.0]))
    assert bare.t == before + 1 == len(seen)  # there already, and the fingers stay: one step stands
    bare.look = False
    shots = Reach.shots
    world.step(np.float32([0, 0, 0.2, *TURN, 0.0]))
    assert Reach.shots == shots and bare.look is False


def test_an_episode_of_keyposes_ends():
    """At a wall the hand goes no further; the world's own end cuts a move short; and there are at most so many."""
    world = make_world(NAME, {"keyposes": HOW, "wall": 0.1})
    world.reset(seed=0)
    world.step(np.float32([0.9, 0, 0.4, 1, 0, 0, 0, 0.04]))
    assert world.unwrapped.t < 10 and world.unwrapped.xyz[0] == 0.1
    world = make_world(NAME, {"keyposes": HOW, "max_steps": 5})
    world.reset(seed=0)
    assert world.step(np.float32([0.9, 0, 0.4, 1, 0, 0, 0, 0.0]))[3] and world.unwrapped.t == 5
    world = make_world(NAME, {"keyposes": replace(HOW, most=3)})
    world.reset(seed=0)
    stand = np.float32([0, 0, 0.4, 1, 0, 0, 0, 0.04])
    assert [world.step(stand)[3] for _ in range(3)] == [False, False, True]
    world.reset(seed=0)
    assert not world.step(stand)[3]


class Height(Derivation):
    held = True

    def needs(self):
        return ("tip",)

    def stream(self, name, obs):
        return Stream(name, "state", (1,), ("z",), ("m",), "base", made_of="the tip's height")

    def make(self, obs):
        return obs["tip"][2:3]


def test_streams_that_are_made_are_made_at_keyposes(store):
    from polyarm.datasets.derived import Derived

    demos = Derived(Keyposed(Store.open(store), HOW), {"height": Height()})
    assert (
        np.array_equal(demos.stream("height")[:][:, 0], demos.stream("tip")[:][:, 2])
        and len(demos.stream("height")) == 18
    )
    world = make_world(NAME, {"keyposes": HOW, "derive": {"height": Height()}})
    world.reset(seed=0)
    obs = world.step(np.float32([0, 0, 0.1, 1, 0, 0, 0, 0.04]))[0]
    assert obs["height"] == obs["tip"][2] < 0.2


def conf(folder, store, **task):
    """A folder of configurations with the task `reach`."""
    (folder / "task").mkdir(parents=True)
    keyposes = {"_target_": "polyarm.keypose.Keyposes", **{k: getattr(HOW, k) for k in HOW.__dataclass_fields__}}
    base = OmegaConf.to_container(OmegaConf.load(f"{polyarm.__path__[0]}/configs/task/pick_place.yaml"))
    base |= {"name": "reach", "env_id": NAME, "env_kwargs": {}, "streams": ["tip", "thing"], "expert": None}
    base |= {"demos": {**base["demos"], "path": str(store)}, "action_rotation": "rot6d_columns"}
    base |= {"action_kind": "keypose", "keyposes": keyposes}
    (folder / "task/reach.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(base | task)))
    return folder


SMALL = ["task=reach", "policy=flow", "policy.body.width=16", "policy.body.blocks=1", "train.steps=4", "train.batch_size=4", "train.val_every=0", "train.device=cpu", "data.val_ratio=0.25", "policy.horizon=3", "policy.n_obs_steps=3", "policy.n_action_steps=1", "data.constant=centre", "train.warmup_steps=0"]  # fmt: skip
HERE = ["eval.episodes=2", "eval.workers=0", "eval.videos=1", "eval.device=cpu"]


@pytest.fixture(scope="module")
def run(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    more = {"configs": conf(folder / "conf", store), "trust": "tests.reach_world"}
    polyarm.train(*SMALL, f"output_dir={folder}/out", **more)
    return folder / "out", more


def test_a_policy_learns_keyposes_and_is_judged_where_they_are_moved_between(run):
    out, more = run
    result = polyarm.evaluate(out, *HERE, **more)
    assert 0 <= result["success_rate"] <= 1
    assert list(out.rglob("*.mp4"))
    with pytest.raises(UserError, match=r"kind keypose in the policy, trajectory in the world: give task.action_kind=keypose"):  # fmt: skip
        polyarm.evaluate(out, *HERE, "task.action_kind=trajectory", **more)


def test_a_policy_of_trajectories_is_not_judged_on_keyposes(run, tmp_path):
    _, more = run
    polyarm.train(*SMALL, "task.action_kind=trajectory", f"output_dir={tmp_path}/out", **more)
    with pytest.raises(
        UserError, match="kind trajectory in the policy, keypose in the world: give task.action_kind=tr"
    ):
        polyarm.evaluate(tmp_path / "out", *HERE, "task.action_kind=keypose", **more)
    a = Store.open(compose_task(more["configs"]).demos.path).spec.action
    require_actions(a, replace(a, horizon=7), "one", "two")


def compose_task(folder, *words):
    with adding([folder]):
        return compose(["task=reach", *words]).task


def test_a_film_shows_the_way_between_keyposes(store, tmp_path):
    with adding([conf(tmp_path, store)]):
        config = compose(["task=reach"])
        rows = Keyposed(Store.open(store), HOW).stream("action")[:2]
        (_, frames, rate), = replayed(config, [Played(Outcome(0, True, 1.0, 2), rows)])  # fmt: skip
    assert [f[0, 0, 0] for f in frames] == list(range(len(frames))) and len(frames) > 20 and rate == 10.0


BAD = [
    ("task.keyposes=null", "task.action_kind=keypose with task.keyposes=None: say how keyposes are found and moved"),
    ("task.action_kind=poses", "task.action_kind=poses: give trajectory or keypose"),
    ("task.keyposes.tip=hand", "unknown observation stream 'hand'"),
    ("task.keyposes.tip=null", "task.keyposes.tip=None: give the name of a stream"),
    ("task.keyposes.tip=thing", "stream 'thing' of .* has the channels x, y, z: task.keyposes.tip names one with x, y, z and a rot"),
    ("task.keyposes.tip=front", "stream 'front' of .* is in frame '', its action in 'base'"),
    ("task.keyposes.marks=mark", "unknown stream of .* 'mark'"),
    ("task.keyposes.most=0", "task.keyposes.most=0: give a number above 0"),
    ("task.keyposes.stride_m=far", "task.keyposes.stride_m=far: give a number above 0"),
    ("~task.keyposes.most", "most"),
    ("+task.keyposes.wide=1", "wide"),
    ("+task.env_kwargs.keyposes=1", "task.env_kwargs.keyposes: keyposes are given as task.keyposes"),
    ("task.keyposes._target_=polyarm.keypose.Layout", "Layout does not take these settings"),
]  # fmt: skip


@pytest.mark.parametrize(("word", "said"), BAD, ids=[word for word, _ in BAD])
def test_settings_that_find_no_keyposes_are_refused(store, tmp_path, word, said):
    folder = conf(tmp_path, store)
    with pytest.raises(UserError, match=said) as e, adding([folder]):
        task = compose(["task=reach", word]).task
        open_demos(task)
        world_kwargs(task)
    assert str(e.value).count("\n") == 0


def test_a_world_whose_actions_are_no_poses_is_refused():
    with pytest.raises(UserError, match=f"the actions of test/Reach-v0 are x, y: keyposes are absolute poses, x, y, z and a rot"):  # noqa: F541  # fmt: skip
        make_world(NAME, {"keyposes": HOW, "flat": True})
    with pytest.raises(UserError, match="'tip' of test/Reach-v0 is in frame 'world', its action in 'base': name the"):
        make_world(NAME, {"keyposes": HOW, "frame": "world"})
    world = make_world(NAME, {"keyposes": HOW})
    world.reset(seed=0)
    with pytest.raises(
        UserError, match=r"was given the rotation \[0.0, 0.0, 0.0, 0.0\], which is none: give one of len"
    ):
        world.step(np.float32([0, 0, 0.4, 0, 0, 0, 0, 0.04]))
    with pytest.raises(UserError, match="was given the action nan in channel 0"):
        world.step(np.full(8, np.nan, np.float32))


@pytest.mark.parametrize(("task", "marks"), [("stack_cube", None), ("pick_cube", "keypose")])
def test_experts_of_maniskill_are_played_again_by_their_keyposes(task, marks, needs_sapien, tmp_path):
    """Three of three; of 20, PickCube's all and StackCube's 19."""
    from polyarm.collect import collect

    words = [f"task={task}", "task.see=state", "task.action_kind=keypose", f"task.demos.path={tmp_path}/d.zarr"]
    node = compose(words).task
    collect(node.env_id, world_kwargs(node, moved=False), node.expert, node.demos.path, 3, progress=False)
    demos = open_demos(OmegaConf.merge(node, {"action_rotation": None, "keyposes": {"marks": marks}}))
    world, ends = make_world(node.env_id, world_kwargs(node)), [0, *demos.episode_ends.tolist()]
    try:
        for e, seed in enumerate(Store.open(node.demos.path).seeds):
            world.reset(seed=int(seed))
            for row in demos.stream("action")[ends[e] : ends[e + 1]]:
                _, _, terminated, truncated, info = world.step(row)
                if terminated or truncated:
                    break
            assert info["is_success"], seed
    finally:
        world.close()
