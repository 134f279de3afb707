"""Clouds from arrays to acting: written to a store, seen by every policy through `encoder=points`, trained, and acted on.

Mutations that turn it red: a check of clouds left out; scales of clouds not fitted, or on all episodes; a cloud not held in
float32; the encoder's yaml without `points`; names of channels not written to the checkpoint.
"""

import numpy as np
import pytest
import torch

import polyarm
from polyarm.cli import main
from polyarm.datasets.arrays import numbers, points, write_store
from polyarm.datasets.info import info
from polyarm.datasets.scale import fit_spec
from polyarm.datasets.store import Store
from polyarm.datasets.windows import Windows
from polyarm.policies import checkpoint
from polyarm.spec import CACHED, FRAMES, UserError
from polyarm.streams import spec_of

N = 24
JOINTS = {"a": "rad", "b": "rad"}
SMALL = ["policy.body.width=16", "policy.body.blocks=1", "train.steps=5", "train.batch_size=8", "train.val_every=0", "train.device=cpu", "data.val_ratio=0.25"]  # fmt: skip


def episode(seed, c, t=20):
    """A cloud round a thing that moves, and an arm that goes where it is."""
    rng = np.random.default_rng(seed)
    at = np.cumsum(rng.normal(0, 0.01, (t, 3)), 0) + (0.5, 0, 0.2)
    cloud = np.concatenate([at[:, None] + rng.normal(0, 0.05, (t, N, 3)), rng.uniform(0, 1, (t, N, 3))], -1)[..., :c]
    return {"cloud": cloud, "joints": rng.normal(size=(t, 2)), "action": at[:, :2] + rng.normal(0, 0.01, (t, 2))}


@pytest.fixture(scope="module", params=[3, 6], ids=["xyz", "coloured"])
def store(request, tmp_path_factory):
    c = request.param
    streams = [points("cloud", N, c == 6, frame="base"), numbers("joints", JOINTS)]
    path = tmp_path_factory.mktemp("points") / "mine.zarr"
    return write_store(path, [episode(i, c) for i in range(4)], streams=streams, action=JOINTS, rate_hz=10)


def test_a_store_holds_clouds_and_says_what_they_are(store):
    demos = Store.open(store)
    stream = demos.spec.obs["cloud"]
    c = stream.shape[1]
    assert stream.kind == "points" and stream.frame == "base" and len(demos.spec.obs.streams) == 2
    assert stream.names == ("x", "y", "z", "red", "green", "blue")[:c]
    assert np.array_equal(demos.read("cloud")[:20], episode(0, c)["cloud"].astype("f4"))
    told = [(x["name"], x["unit"]) for x in info(store)["channels"] if x["stream"] == "cloud"]
    assert told == list(zip(stream.names, ("m", "m", "m", "1", "1", "1"), strict=False))


def test_clouds_are_scaled_channel_by_channel_on_the_episodes_of_training(store):
    demos = Store.open(store)
    spec = fit_spec(demos, demos.spec, "limits", "limits", [0, 2])
    seen = np.concatenate([demos.read("cloud")[:20], demos.read("cloud")[40:60]]).astype("f8")
    done = spec.obs["cloud"].scale.do(seen).reshape(-1, seen.shape[-1])
    assert done.min(0) == pytest.approx(-1, abs=1e-5) and done.max(0) == pytest.approx(1, abs=1e-5)
    as_is = fit_spec(demos, demos.spec, "limits", "limits", [0, 2], kinds={"cloud": "identity"})
    assert set(as_is.obs["cloud"].scale.gain) == {1.0}
    still = np.zeros((40, N, 3)) + [1, 2, 3]
    flat = write_store(
        store.parent / f"flat{seen.shape[-1]}.zarr",
        [{"cloud": still, "action": np.random.default_rng(0).normal(size=(40, 2))}],
        streams=[points("cloud", N)], action=JOINTS, rate_hz=10,
    )  # fmt: skip
    with pytest.raises(UserError, match="'cloud' channel 'x' stays at 1"):
        fit_spec(Store.open(flat), Store.open(flat).spec, "limits", "limits", [0])


def test_frames_of_clouds_are_known_by_their_row(store):
    demos = Store.open(store)
    batch = Windows(demos, demos.spec, horizon=4, n_obs_steps=2, n_action_steps=2).__getitems__([5, 6])
    assert batch.obs["cloud"].dtype == torch.float32 and batch.obs[FRAMES][:, 0].tolist() == [[4, 5], [5, 6]]
    assert not any(name.startswith(CACHED) for name in batch.obs)


@pytest.mark.parametrize(("policy", "encoder"), [("flow", "points"), ("dp3", "points_colour")])
def test_a_policy_trains_on_clouds_is_judged_and_acts(store, tmp_path, policy, encoder):
    c = Store.open(store).spec.obs["cloud"].shape[1]
    words = [f"policy={policy}", f"encoder={encoder}", f"task.demos.path={store}", f"output_dir={tmp_path}/run", *SMALL]
    if encoder == "points_colour" and c == 3:
        assert main(["train", *words]) != 0
        return
    assert main(["train", *words]) == 0
    assert main(["eval", str(tmp_path / "run"), "eval.samples=2", "eval.device=cpu"]) == 0
    policy_ = checkpoint.load(tmp_path / "run")
    assert policy_.obs_space["cloud"].scale is not None and policy_.obs_space["cloud"].frame == "base"
    agent = polyarm.load(tmp_path / "run")
    agent.reset(seed=1)
    seen = episode(9, c)
    rows = [agent.act({"cloud": seen["cloud"][i], "joints": seen["joints"][i]}) for i in range(10)]
    assert np.isfinite(rows).all() and np.shape(rows) == (10, 2)
    agent.reset(seed=1)
    turned = seen["cloud"][0][np.random.default_rng(0).permutation(N)]
    assert np.allclose(agent.act({"cloud": turned, "joints": seen["joints"][0]}), rows[0], atol=1e-6)
    with pytest.raises(UserError, match=r"'cloud' has shape \(23,"):
        agent.act({"cloud": turned[1:], "joints": seen["joints"][0]})


CLOUD = episode(0, 6)["cloud"]
BAD = {
    "words": (CLOUD.astype(str), "points are numbers"),
    "one cloud": (CLOUD[0], "a single cloud"),
    "channels": (CLOUD[..., :5], r"said to be \[t, 24, 6\], x y z last"),
    "normals": (np.concatenate([CLOUD, CLOUD], -1), r"give x\[..., :6\]"),
    "number": (CLOUD[:, 1:], "give 24 of each cloud, by polyarm.cloud.thin"),
    "millimetres": (CLOUD * ([1000] * 3 + [1] * 3), "lie beyond 20 m: give metres"),
    "bytes": (CLOUD * ([1] * 3 + [255] * 3), "colours of 'cloud' go from .* give 0 to 1"),
    "nan": (np.where(np.arange(6) == 1, np.nan, CLOUD), "'cloud' holds nan"),
}


@pytest.mark.parametrize("name", BAD)
def test_clouds_that_are_not_what_was_said_are_refused(tmp_path, name):
    cloud, said = BAD[name]
    with pytest.raises(UserError, match=said):
        write_store(
            tmp_path / "mine.zarr", [{**episode(0, 6), "cloud": cloud}],
            streams=[points("cloud", N, colours=True), numbers("joints", JOINTS)], action=JOINTS, rate_hz=10,
        )  # fmt: skip
    assert not (tmp_path / "mine.zarr").exists()


@pytest.mark.parametrize("n", [0, -3, 2.5, True, "512", None])
def test_a_cloud_has_a_whole_number_of_points(n):
    with pytest.raises(UserError, match="give how many there are"):
        points("cloud", n)


def test_named_points_have_a_name_for_each_channel():
    from polyarm.spec import Stream

    with pytest.raises(UserError, match="have 3 channels and 2 channel names"):
        Stream("cloud", "points", (8, 3), ("x", "y"))
    with pytest.raises(UserError, match="give how many there are"):
        spec_of([Stream("cloud", "points", (8, 2))], JOINTS, 10)
