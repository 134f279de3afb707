"""Streams that are made of others: alike of stored and of live depth, made once or as they are read, refused where they would be
other ones, and never collected.

Mutations that turn it red: depth of the world taken for metres; the calibration of another row; a row's clouds put in another's
place; a cloud made again; a point map held; nan refused in acting; `made_of` not compared, not saved, or without its box; a world
that collects its clouds; names of polyarm.cloud blocked in a checkpoint, or others allowed; any check of a calibration left out.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
from omegaconf import OmegaConf

import polyarm
from polyarm.camera import from_row, require_rows, to_row
from polyarm.cloud import Cloud, PointMap
from polyarm.collect import collect_task
from polyarm.config import compose
from polyarm.datasets.arrays import camera, depth, write_store
from polyarm.datasets.derived import Derived
from polyarm.datasets.store import Store
from polyarm.datasets.windows import Windows
from polyarm.policies import checkpoint
from polyarm.sim.vector import ShardedVectorEnv
from polyarm.sim.world import make_world, spec_of
from polyarm.spec import ObsSpace, Spec, Stream, UserError, require_obs
from polyarm.streams import spec_of as spec_of_streams
from polyarm.task import open_demos, world_kwargs
from polyarm.trust import require_trusted
from tests.depth_world import LENS, NAME, SIZE, looking, played

LOW, HIGH = (-0.4, -0.4, 0.004), (0.4, 0.4, 0.3)
MADE = {
    "cloud": Cloud(("front", "side"), LOW, HIGH, 40),
    "coloured": Cloud(("side",), LOW, HIGH, 30, colours=True),
    "map": PointMap("front"),
}
BOTH = {"cameras": ["front", "side"]}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path, world = tmp_path_factory.mktemp("depth") / "depth.zarr", make_world(NAME, BOTH)
    with Store.create(path, spec_of(world, NAME)) as made:
        for seed in range(5):
            made.append(played(world, seed), seed)
    return path


def test_stored_and_live_depth_give_the_same_points(store):
    """To the bit, through a worker process too; and the spec says what they are."""
    world, demos = make_world(NAME, {**BOTH, "derive": MADE}), Derived(Store.open(store), MADE)
    assert spec_of(world, NAME).obs == demos.spec.obs
    assert demos.spec.obs["cloud"].made_of == f"front, side within {LOW} to {HIGH} m"
    assert demos.spec.obs["cloud"].names == ("x", "y", "z") and demos.spec.obs["coloured"].shape == (30, 6)
    assert demos.spec.obs["map"].shape == (*SIZE, 3) and not demos.spec.obs["map"].scaled
    assert demos.spec.obs["cloud"].frame == "base"
    for seed in (0, 3):
        live = played(world, seed)
        for name in MADE:
            stored = demos.stream(name)[6 * seed : 6 * seed + 6]
            assert stored.dtype == np.float32 and np.array_equal(stored, live[name], equal_nan=True), name
    assert world.get_wrapper_attr("goal")()["cloud"].shape == (40, 3)
    worlds = ShardedVectorEnv(NAME, {**BOTH, "derive": MADE}, 2, 1)
    try:
        shown = worlds.reset(seed=[0, 3])[0]
        assert np.array_equal(shown["cloud"], demos.stream("cloud")[np.array([0, 18])])
        assert worlds.world_spec.obs == demos.spec.obs
    finally:
        worlds.close()


def test_points_lie_on_what_was_seen(store):
    """A cloud's points lie on the box, wherever it is; map and depth miss the same pixels."""
    demos = Derived(Store.open(store), MADE)
    cloud, at = demos.stream("cloud")[:], demos.stream("at")[:]
    low, high = np.array([-0.075, -0.05]), np.array([0.05, 0.06])
    off = np.maximum(low - (cloud[..., :2] - at[:, None]), (cloud[..., :2] - at[:, None]) - high).max(-1)
    assert off.max() < 0.002 and cloud[..., 2].max() == pytest.approx(0.1, abs=0.002)
    assert np.array_equal(np.isnan(demos.stream("map")[:]).any(-1), demos.stream("front_depth")[:] == 0)


class Counted(PointMap):
    made = 0

    def make(self, obs):
        Counted.made += 1
        return super().make(obs)


class Held(Counted):
    held = True


@pytest.mark.parametrize("kind", [Counted, Held])
def test_rows_are_read_by_slices_and_numbers_of_any_shape(store, kind):
    Counted.made = 0
    demos = Derived(Store.open(store), {"map": kind("front")})
    rows = demos.stream("map")
    assert rows.shape == (30, *SIZE, 3) == (len(rows), *rows.shape[1:])
    some = np.array([[29, 3], [3, 4]])
    found = rows[some]
    assert found.shape == (2, 2, *SIZE, 3) and Counted.made == 3
    whole = rows[:]
    assert np.array_equal(whole[some], found, equal_nan=True) and np.array_equal(rows[7], whole[7], equal_nan=True)
    assert np.array_equal(rows[2:9:3], whole[2:9:3], equal_nan=True) and rows[:0].shape == (0, *SIZE, 3)
    assert (Counted.made == 30) == kind.held
    depth, camera = SIZE[0] * SIZE[1] * 2, 16 * 4
    assert rows.nbytes == 30 * (6 * depth if kind.held else depth + camera)
    assert np.array_equal(rows.in_memory()[some], found, equal_nan=True)


def test_windows_hold_what_a_map_is_made_of_and_not_the_map(store):
    demos = Derived(Store.open(store), {"map": PointMap("front")})
    spec = replace(demos.spec, obs=demos.spec.obs.pick(["at", "map"]))
    windows = Windows(demos, spec, horizon=4, n_obs_steps=2, n_action_steps=2)
    clip = windows.__getitems__([3, 9])
    assert not isinstance(windows.rows("map"), np.ndarray)
    assert np.array_equal(
        clip.obs["map"][1, 0, 1], demos.stream("map")[int(clip.obs["frames.row"][1, 0, 1])], equal_nan=True
    )


def conf(folder, store, **task):
    """A folder of configurations with the task `depth`."""
    (folder / "task").mkdir(parents=True)
    box = {"low": list(LOW), "high": list(HIGH), "points": 40}
    derive = {
        "cloud": {"_target_": "polyarm.cloud.Cloud", "cameras": ["front"], **box},
        "map": {"_target_": "polyarm.cloud.PointMap", "camera": "front"},
    }
    base = OmegaConf.to_container(OmegaConf.load(f"{polyarm.__path__[0]}/configs/task/pick_place.yaml"))
    base |= {"name": "depth", "env_id": NAME, "env_kwargs": BOTH, "streams": ["at", "cloud"], "expert": None}
    base |= {"demos": {**base["demos"], "path": str(store)}, "derive": derive}
    (folder / "task/depth.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(base | task)))
    return folder


SMALL = ["task=depth", "policy=flow", "encoder=points", "policy.body.width=16", "policy.body.blocks=1", "train.steps=4", "train.batch_size=8", "train.val_every=0", "train.device=cpu", "data.val_ratio=0.25", "train.rollout_every=0", "policy.horizon=4", "policy.n_action_steps=2"]  # fmt: skip


@pytest.fixture(scope="module")
def run(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    more = {"configs": conf(folder / "conf", store), "trust": "tests.depth_world"}
    polyarm.train(*SMALL, f"output_dir={folder}/out", **more)
    return folder / "out", more


def test_a_policy_trains_on_what_is_made_and_is_judged_in_a_world_that_makes_it_too(run):
    out, more = run
    spec = checkpoint.read_spec(checkpoint.find(out))
    assert spec.obs.names == ("at", "cloud") and spec.obs["cloud"].scale is not None
    assert spec.obs["cloud"].made_of == f"front within {LOW} to {HIGH} m"
    how = ["eval.episodes=2", "eval.workers=0", "eval.videos=1", "eval.device=cpu"]
    assert polyarm.evaluate(out, *how, **more)["success_rate"] >= 0
    polyarm.evaluate(out, *how, "+task.env_kwargs.moved_m=0.2", **more)  # a camera may move
    with pytest.raises(
        UserError, match=r"'cloud' is made of front within .* 0.3\) m in .*, and is made of front within .* 0.2\) m in"
    ) as e:
        polyarm.evaluate(out, *how, "task.derive.cloud.high=[0.4,0.4,0.2]", **more)
    assert "give task.derive.cloud as it was trained with" in str(e.value)
    with pytest.raises(UserError, match=r"'side_depth' is not there, only at, front, front_depth"):
        polyarm.evaluate(out, *how, "task.env_kwargs.cameras=[front]", "task.derive.cloud.cameras=[side]", **more)
    with pytest.raises(UserError, match="'cloud': none of the 560 points is known: depth is 0 or nan everywhere"):
        polyarm.evaluate(out, *how, "+task.env_kwargs.blind=3", **more)
    idle = "task.obs_scale=identity"
    for act in (polyarm.evaluate, polyarm.load):
        with pytest.raises(UserError, match=f"{idle} would change nothing, for how its demonstrations were read"):
            act(out, idle, **more)


def test_an_agent_makes_streams_of_what_it_is_shown(run):
    """A robot's script gives depth and calibration, or the cloud that it made by the same lines."""
    out, more = run
    agent, world = polyarm.load(out, **more), make_world(NAME, {"derive": {"cloud": Cloud(("front",), LOW, HIGH, 40)}})
    agent.reset(seed=0)
    obs = world.reset(seed=7)[0]
    raw = {name: x for name, x in obs.items() if name != "cloud"}
    first = agent.act(raw)
    agent.reset(seed=0)
    assert np.array_equal(agent.act({"at": obs["at"], "cloud": obs["cloud"]}), first)
    del raw["front_camera"]
    with pytest.raises(
        UserError, match="needs 'cloud': give .*at, cloud, or of what 'cloud' is made, front_depth, front_camera"
    ):
        agent.act(raw)
    with pytest.raises(UserError, match="'cloud': front_camera holds zeros alone"):
        agent.act({**raw, "front_camera": np.zeros(16, "f4")})


def test_a_map_may_have_gaps_where_it_is_given_and_a_cloud_may_not():
    from polyarm.api import _array

    gaps = np.where(np.arange(3) == 1, np.nan, np.ones((4, 6, 3), "f4"))
    assert np.isnan(_array(gaps, Stream("m", "points", (4, 6, 3)), "m", "p")).any()
    for x, stream in ((gaps, Stream("m", "points", (4, 6, 3))), (gaps[0], Stream("c", "points", (6, 3)))):
        with pytest.raises(UserError, match="holds (inf|nan): give finite"):
            _array(np.where(np.isnan(x) & (x.ndim == 3), np.inf, x), stream, "m", "p")


def test_only_what_the_task_sees_is_made_and_nothing_of_it_is_collected(store, tmp_path, monkeypatch):
    from polyarm.choices import adding

    monkeypatch.setattr("polyarm.collect.collect", lambda *given: {"given": given})

    with adding([conf(tmp_path, store)]):
        task = compose(["task=depth"]).task
        assert open_demos(task).spec.obs.names[-1] == "cloud" and [*world_kwargs(task)["derive"]] == ["cloud"]
        assert type(open_demos(task, derived=False)) is Store and world_kwargs(task, derived=False) == BOTH
        every = compose(["task=depth", "task.streams=null"]).task
        assert open_demos(every).spec.obs.names[-2:] == ("cloud", "map")
        assert type(open_demos(compose(["task=depth", "task.streams=[at]"]).task)) is Store
        given = collect_task(compose(["task=depth", "task.expert=tests.Expert", "collect.path=x.zarr"]))["given"]
        assert given[:2] == (NAME, BOTH)


def test_what_is_made_is_written_with_what_it_is_made_of(store):
    spec = Derived(Store.open(store), MADE).spec
    told = spec.to_json()
    assert Spec.from_json(json.loads(json.dumps(told))) == spec
    assert ["made_of" in s for s in told["obs"]["streams"]] == [s.name in MADE for s in spec.obs.streams]
    recorded = replace(spec.obs, streams=tuple(replace(s, made_of="") for s in spec.obs.streams))
    with pytest.raises(
        UserError, match="'cloud' is made of front, side within .* in one, and is recorded as it is in two"
    ):
        require_obs(spec.obs, recorded, "one", "two")
    with pytest.raises(UserError, match="'cloud' is recorded as it is in two, and is made of"):
        require_obs(recorded, spec.obs, "two", "one")


BAD_SETTINGS = [
    ("task.derive=7", "task.derive=7: give .*Cloud.* or null"),
    ("task.derive.cloud=7", r"task.derive.cloud=7: give what makes it, such as \{_target_"),
    ("~task.derive.cloud._target_", "give what makes it"),
    ("task.derive.cloud.low=[0, 0]", r"low=\[0, 0\] of the workspace: give three numbers"),
    ("task.derive.cloud.low=[a, 0, 0]", "give three numbers"),
    ("task.derive.cloud.low=[1, 1, 1]", "is empty: give low below high"),
    ("task.derive.cloud.points=0", "give how many there are"),
    ("task.derive.cloud.points=4.5", "give how many there are"),
    ("task.derive.cloud.cameras=front", r"cameras=front of a cloud: give a list of different cameras, such as \[front\]"),
    ("task.derive.cloud.cameras=[]", "give a list of different cameras"),
    ("task.derive.cloud.cameras=[front, front]", "give a list of different cameras"),
    ("+task.derive.cloud.colours=some", "colours=some of a cloud: give true or false"),
    ("+task.derive.cloud.wide=3", "Cloud does not take these settings .*wide"),
    ("task.derive.cloud.cameras=[wrist]", "camera 'wrist', and its depth 'wrist_depth' is not there, only at, front"),
    ("task.derive.cloud.high=[9, 9, 0.005]", r"'cloud' in row 0 of episode 0: no point lies within .*: widen the"),
    ("task.derive.cloud._target_=polyarm.cloud.Clod", "unknown name in polyarm.cloud 'Clod': did you mean 'Cloud'"),
    ("task.derive.cloud={_target_: builtins.dict}", "gives dict: give what keeps polyarm.derive.Derivation"),
    ("+task.derive.at={_target_: polyarm.cloud.PointMap, camera: front}", "has a stream 'at' already"),
    ("+task.env_kwargs.derive=[1]", "task.env_kwargs.derive: streams that are made of a world's are given as task.derive"),
]  # fmt: skip


@pytest.mark.parametrize(("word", "said"), BAD_SETTINGS, ids=[word for word, _ in BAD_SETTINGS])
def test_settings_that_make_no_stream_are_refused(store, tmp_path, word, said):
    from polyarm.choices import adding

    with adding([conf(tmp_path, store)]), pytest.raises(UserError, match=said) as e:
        task = compose(["task=depth", word]).task
        demos = open_demos(task)
        demos.hold()
        world_kwargs(task)
    assert str(e.value).count("\n") == 0


def test_a_checkpoint_may_name_what_makes_streams_and_nothing_else(store, tmp_path):
    conf_ = OmegaConf.load(conf(tmp_path, store) / "task/depth.yaml")
    config = OmegaConf.create({"task": {**conf_, "env_id": None}})
    require_trusted(config, "run")
    for name in ("os.system", "polyarm.camera.lift", "polyarm.cloud.lift", "polyarm.cloud.np.load"):
        config.task.derive.cloud._target_ = name
        with pytest.raises(UserError, match=f"run names {name} at task.derive.cloud._target_, which is blocked"):
            require_trusted(config, "run")
    config.task.derive = {}
    config.task.demos._target_ = "polyarm.cloud.Cloud"
    with pytest.raises(UserError, match="at task.demos._target_, which is blocked"):
        require_trusted(config, "run")


POSE = looking((0.9, 0.1, 0.7), (0, 0, 0.1))
ROW = to_row(LENS, POSE)


def test_a_calibration_is_held_in_sixteen_numbers():
    assert ROW[:4].tolist() == [25, 25, 14, 10] and ROW[4:].reshape(3, 4)[:, 3] == pytest.approx((0.9, 0.1, 0.7))
    k, pose = from_row(ROW)
    assert np.array_equal(k, LENS) and np.abs(pose - POSE[:3]).max() < 1e-6
    with pytest.raises(UserError, match="skew of 3"):
        to_row(LENS + [[0, 3, 0], [0, 0, 0], [0, 0, 0]], POSE)


def changed(**at):
    row = ROW.copy()
    for place, value in at.items():
        row[{"f": np.s_[:2], "r": [4, 5, 6, 8, 9, 10, 12, 13, 14], "z": 15, "all": np.s_[:]}[place]] = value
    return row


R = ROW[[4, 5, 6, 8, 9, 10, 12, 13, 14]]
BAD_ROWS = [
    (changed(z=np.nan), "holds numbers that are not finite in row 2"),
    (changed(all=0), "holds zeros alone, no calibration, in row 2"),
    (changed(f=0), "has focal lengths 0 and 0 in row 2"),
    (changed(f=-25), "has focal lengths -25 and -25"),
    (changed(r=0), "has a rotation of determinant 0, singular or a mirror,"),
    (changed(r=-R), "has a rotation of determinant -1, singular or a mirror,"),
    (changed(r=R * 1.01), "has a rotation that is none, it stretches by 1.01,"),
    (changed(z=700), "stands 700 m from the base, as if in millimetres,"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "said"), BAD_ROWS, ids=[said for _, said in BAD_ROWS])
def test_a_calibration_that_is_none_is_refused_where_it_is_written_opened_and_acted_on(store, row, said, tmp_path):
    rows = np.stack([ROW, ROW, row, ROW])
    with pytest.raises(UserError, match=f"front_camera {said}.*: give fx fy cx cy in pixels, then base_from_camera"):
        require_rows(rows, "front_camera")
    one = said.replace(" in row 2", "")
    with pytest.raises(UserError, match=one):
        from_row(row)
    with Store.create(tmp_path / "s.zarr", spec_of(make_world(NAME, {}), NAME)) as made:
        with pytest.raises(UserError, match="'front_camera' (holds|has|stands)"):
            made.append(
                {**played(make_world(NAME, {}), 0), "front_camera": np.stack([ROW, ROW, row, ROW, ROW, ROW])}, 0
            )
        assert len(made) == 0
    world = make_world(NAME, {})
    episode = played(world, 0)
    depth = {"front_depth": episode["front_depth"][0], "front_camera": row}
    for how in (PointMap("front"), Cloud(("front",), LOW, HIGH, 9)):
        with pytest.raises(UserError, match=one):
            how.make(depth)


DEPTH = np.full((6, *SIZE), 700, np.uint16)
GIVEN = [
    ("front_depth", DEPTH / 1000, r"float64 \[6, 20, 28\] up to 0.7, metres: .*give np.nan_to_num\(x \* 1000"),
    ("front_depth", DEPTH * 1.0, r"up to 700, as if millimetres: .*give x.round\(\).astype"),
    ("front_depth", DEPTH.astype("i4"), r"give x.astype\(np.uint16\)"),
    ("front_depth", DEPTH[..., None], r"give x\[..., 0\]"),
    ("front_depth", DEPTH[:, None], r"give x\[:, 0\]"),
    ("front_depth", DEPTH[:, 1:], "said to be uint16"),
    ("front_depth", DEPTH * 0, "is 0 in all 6 rows, nothing was measured"),
    ("front_depth", DEPTH // 700, "nearer than 1 mm"),
    ("front_depth", DEPTH * 60, "beyond .* m: it is finer than millimetres"),
    ("front_depth", DEPTH.astype(str), "read the files to arrays"),
    ("front_camera", ROW, r"give np.tile\(row, \(t, 1\)\)"),
    ("front_camera", np.stack([POSE] * 6), "give polyarm.camera.to_row"),
    ("front_camera", np.stack([ROW * 0] * 6), "zeros alone, no calibration"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "x", "said"), GIVEN, ids=[said for _, _, said in GIVEN])
def test_depth_and_calibrations_of_ones_own_are_checked_before_they_are_written(tmp_path, name, x, said):
    streams = [depth("front_depth", *SIZE), camera("front_camera")]
    good = {
        "front_depth": DEPTH,
        "front_camera": np.stack([ROW] * 6),
        "action": np.random.default_rng(0).normal(size=(6, 1)),
    }
    path = tmp_path / "s.zarr"
    with pytest.raises(UserError, match=f"^episode 0: '{name}'.*{said}"):
        write_store(path, [{**good, name: x}], streams=streams, action={"a": "m"}, rate_hz=10)
    assert not path.exists()
    write_store(path, [good], streams=streams, action={"a": "m"}, rate_hz=10)
    assert Store.open(path).spec.obs == ObsSpace(tuple(streams), 10.0)


@pytest.mark.parametrize("size", [(0, 4), (4, 2.5), (True, 4), (None, 4), ("4", 4)])
def test_depth_has_a_height_and_a_width(size):
    with pytest.raises(UserError, match="give its height and width in pixels"):
        depth("front_depth", *size)
    with pytest.raises(UserError, match=r"is said to be \[4, 4\]: give camera"):
        spec_of_streams([Stream("c_camera", "camera", (4, 4))], {"a": "m"}, 10)


def test_the_pieces_of_seeing_depth_are_timed_one_by_one(store, tmp_path):
    """`polyarm bench three_d`: what is timed is what a world, a cloud and a policy do. Turned red by leaving a piece out, by a step that
    looks where it is said not to, and by a policy's step at an angle that is none of its sampler's."""
    from polyarm.bench import pieces
    from polyarm.choices import adding
    from tests.depth_world import Depth

    with adding([conf(tmp_path, store)]):
        config = compose([*SMALL, "train.batch_size=1"])
        named = []
        for name, call in pieces._of_the_world(config):
            before = Depth.shots
            call()
            named.append(name)
            assert Depth.shots - before == (name == "reset" or name.startswith("step with RGB-D")), name
        for name, call in pieces._of_a_policy(config, "flow"):
            call()
            named.append(name)
    assert named == [
        "reset", "step without a picture", "step with RGB-D", "depth to points", "stream 'cloud' of depth",
        "farthest 1,000 of 10,000 points", "the same, numpy", "the same, torch", "flow: encoder, one observation", "flow: one denoising step",
    ]  # fmt: skip
