"""A checkpoint rebuilds its policy alone, and refuses what does not fit. Mutation: drop a check in `checkpoint.load`."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from polyarm.config import build, compose, read_yaml
from polyarm.policies import checkpoint
from polyarm.policies.policy import chunk
from polyarm.spec import SCHEMA, ActionSpace, ObsSpace, Scale, Spec, Stream, UserError, require_actions, require_obs

OBS = ObsSpace(
    (Stream("arm", "state", (2,), ("a", "b"), ("rad", "rad"), "joint", Scale((1.0, 2.0), (0.0, 0.5))),), 20.0
)
ACTION = ActionSpace(("x", "y"), ("m", "m"), "base", 20.0, scale=Scale((2.0, 4.0), (0.1, -0.2)))


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    config = compose(["policy.body.width=16", "policy.body.blocks=1", f"output_dir={tmp_path}"])
    policy = build(config.policy, Spec(OBS, ACTION))
    for p in policy.parameters():
        torch.nn.init.normal_(p, std=0.2)
    spec = Spec(policy.obs_space, policy.action_space, {"env": "World-v1"})
    checkpoint.save(tmp_path / "c", config, spec, policy.state_dict())
    return tmp_path / "c", policy.eval()


def test_what_is_loaded_acts_as_what_was_saved(saved):
    folder, policy = saved
    again = checkpoint.load(folder)
    obs = {"arm": torch.randn(3, 2, 2)}
    g = lambda: torch.Generator().manual_seed(1)
    with torch.no_grad():
        assert torch.equal(chunk(policy, obs, (), g())[0], chunk(again, obs, (), g())[0])
    assert again.action_space == policy.action_space and again.obs_space == policy.obs_space


def test_scales_come_back_to_the_bit_and_an_edit_is_noticed(saved):
    folder, _ = saved
    assert checkpoint.read_spec(folder).obs == OBS
    data = json.loads((folder / "spec.json").read_text())
    data["obs"]["streams"][0]["scale"]["gain"][1] = 2.5
    (folder / "spec.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match="hash"):
        checkpoint.load(folder)


def test_a_schema_of_another_polyarm_is_refused(saved):
    folder, _ = saved
    data = json.loads((folder / "spec.json").read_text())
    data["schema"] = 99
    (folder / "spec.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match="schema 99"):
        checkpoint.load(folder)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda w: w.pop(min(w)), "misses the tensor"),
        (lambda w: w.update(extra=torch.zeros(1)), "'extra'"),
        (lambda w: w.update({k: torch.zeros(7) for k in sorted(w)[:1]}), "(7,)"),
    ],
)
def test_weights_that_do_not_fit_are_refused(saved, change, words):
    folder, _ = saved
    w = load_file(folder / "model.safetensors")
    change(w)
    save_file(w, folder / "model.safetensors")
    with pytest.raises(UserError) as e:
        checkpoint.load(folder)
    assert words in str(e.value)


@pytest.mark.parametrize("width, what", [(1, "1 channels"), (3, "3 channels")])
def test_a_scale_of_another_width_is_refused(saved, width, what):
    folder, _ = saved
    data = json.loads((folder / "spec.json").read_text())
    scale = Scale((1.0,) * width, (0.0,) * width)
    data["obs"]["streams"][0]["scale"] = {"gain": scale.gain, "offset": scale.offset, "hash": scale.hash}
    (folder / "spec.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match=what):
        checkpoint.load(folder)


def test_nothing_there_says_what_to_give(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        checkpoint.find(tmp_path / "nothing")
    with pytest.raises(UserError, match="is no checkpoint"):
        checkpoint.find(tmp_path)


def _obs(*names, rate=20.0):
    return ObsSpace((Stream("arm", "state", (len(names),), names, ("rad",) * len(names), "joint"),), rate)


@pytest.mark.parametrize(
    "world, words",
    [
        (_obs("a"), ["misses channel 'b'"]),
        (_obs("a", "b", "c"), ["extra channel 'c'"]),
        (_obs("b", "a"), ["index 0"]),
        (_obs("a", "b", rate=10.0), ["20 Hz", "10 Hz"]),
        (ObsSpace((), 20.0), ["needs observation stream 'arm'"]),
    ],
)
def test_another_world_is_refused_by_channel(world, words):
    with pytest.raises(UserError) as e:
        require_obs(OBS, world, "the policy", "the world")
    assert all(w in str(e.value) for w in words), str(e.value)


@pytest.mark.parametrize(
    "names, units, frame, words",
    [
        (("x",), ("m",), "base", "misses channel 'y'"),
        (("x", "y", "z"), ("m",) * 3, "base", "extra channel 'z'"),
        (("x", "y"), ("rad", "m"), "base", "units"),
        (("x", "y"), ("m", "m"), "tool", "frame"),
    ],
)
def test_another_action_space_is_refused_by_channel(names, units, frame, words):
    with pytest.raises(UserError, match=words):
        require_actions(ACTION, ActionSpace(names, units, frame, 20.0), "the policy", "the world")


@pytest.mark.parametrize("scale", [Scale((2.0, 0.5), (0.3, -1.0))])
def test_a_scale_undoes_what_it_does(scale):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 2)).astype(np.float32)
    np.testing.assert_allclose(scale.undo(scale.do(x)), x, rtol=1e-6)
    torch.testing.assert_close(scale.do(torch.from_numpy(x)).numpy(), scale.do(x))
    assert scale.hash != Scale((2.0, 0.5), (0.3, -1.0000001)).hash


def test_own_configuration_is_whole(saved):
    folder, _ = saved
    config = read_yaml(folder / "config.yaml")
    assert {"policy", "task", "data", "train", "eval"} <= set(config)
    assert "${" not in (folder / "config.yaml").read_text()


def test_a_spec_written_by_schema_1_is_read_for_ever():
    """The golden file: a change of the format brings a migration that still reads this one."""
    data = json.loads((Path(__file__).parent.parent / "golden" / "spec_schema_1.json").read_text())
    spec = Spec.from_json(data)
    arm, front = spec.obs.streams
    assert arm == Stream("arm", "state", (2,), ("a", "b"), ("rad", "m"), "joint", Scale((2.0, 0.5), (0.25, -1.0)))
    assert front.shape == (96, 96, 3) and spec.obs.rate_hz == 20.0
    assert spec.action == ActionSpace(("x", "y"), ("m", "m"), "base", 20.0, 16, scale=Scale((4.0, 3.0), (0.0, 0.5)))
    assert spec.versions == {"env": "World-v1", "mujoco": "3.8.1"} and json.loads(
        json.dumps(spec.to_json())
    ) == data | {"schema": SCHEMA}
