"""A checkpoint rebuilds its policy alone, and refuses what does not fit. Mutation: drop a check in `checkpoint.load`."""

import errno
import io
import json
import os
import shutil
import subprocess
import sys
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


def _bits(file, places):
    """Flip one bit at each place in turn."""
    whole = file.read_bytes()
    for place in places:
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        file.write_bytes(flipped)
        yield place
    file.write_bytes(whole)


def test_a_flipped_bit_of_the_weights_is_noticed(saved):
    """Mutations: write no hash; leave names, shapes or bytes out of it; believe a file whose hash has another name."""
    folder, _ = saved
    file = folder / "model.safetensors"
    size, header = 8 * file.stat().st_size, 8 * (8 + int.from_bytes(file.read_bytes()[:8], "little"))
    places = [*range(0, header, 11), *range(header, size, 8 * 1997 + 3), size - 1]
    for place in _bits(file, places):
        with pytest.raises(UserError, match=r"model\.safetensors"):
            checkpoint.read_weights(folder)
            pytest.fail(f"bit {place} of {size} was not noticed")
    checkpoint.load(folder)


def test_weights_older_than_the_hash_load(saved):
    folder, _ = saved
    for about in (None, {"format": "pt"}):
        save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors", about)
        checkpoint.load(folder)


def test_a_flipped_bit_of_the_training_state_changes_nothing_unnoticed(kept):
    """A bit that says nothing (a date, padding) may pass. Mutation: do not look at the checksums."""
    folder = checkpoint.steps(kept)[-1]
    file, noticed = folder / "train_state.pt", 0
    for _ in _bits(file, range(0, 8 * file.stat().st_size, 8 * 7 + 3)):
        try:
            assert torch.equal(checkpoint.read_train_state(folder)["x"], torch.arange(3))
        except UserError as e:
            noticed += 1
            assert "train_state.pt" in str(e) and "\n" not in str(e)
    assert noticed > 20


@pytest.mark.parametrize(
    "name, old, new", [("config.yaml", "episodes: 100", "episodes: 108"), ("spec.json", "World-v1", "World-v3")]
)
def test_an_edited_text_acts_and_is_said(saved, capfd, name, old, new):
    """Mutation: leave the file out of the hashes."""
    folder, _ = saved
    checkpoint.load(folder)
    assert not capfd.readouterr().err
    (folder / name).write_text((folder / name).read_text().replace(old, new))
    checkpoint.load(folder)
    assert f"{name} is not as it was saved" in capfd.readouterr().err


HARM = {
    "truncated": lambda f: f.write_bytes(f.read_bytes()[: f.stat().st_size // 2]),
    "cut near its end": lambda f: f.write_bytes(f.read_bytes()[: f.stat().st_size * 9 // 10]),
    "empty": lambda f: f.write_bytes(b""),
    "missing": lambda f: f.unlink(),
    "a folder": lambda f: (f.unlink(), f.mkdir()),
    "noise": lambda f: f.write_bytes(bytes(range(256)) * 4),
    "a list": lambda f: f.write_text("[1, 2]"),
    "other keys": lambda f: f.write_text('{"schema": 1, "policy": 3}'),
}


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("name", ["config.yaml", "model.safetensors", "spec.json", "train_state.pt"])
def test_a_harmed_file_is_one_sentence_with_its_name(kept, name, harm):
    """From its folder, from the run and for resuming. Mutation: take an error's class out of `_reading`, or a name of FILES."""
    folder = checkpoint.steps(kept)[-1]
    HARM[harm](folder / name)
    for path in (folder, kept):
        with pytest.raises(UserError) as e:
            if name == "train_state.pt":
                checkpoint.read_train_state(folder)
            else:
                checkpoint.load(path)
        assert name in str(e.value) and "\n" not in str(e.value)


def test_a_file_that_may_not_be_read_is_one_sentence(saved, monkeypatch):
    folder, _ = saved
    real = io.open
    for name in checkpoint.FILES:

        def refuse(file, *a, closed=name, **k):
            if str(file).endswith(closed):
                raise PermissionError(errno.EACCES, "Permission denied", str(file))
            return real(file, *a, **k)

        with monkeypatch.context() as m:
            m.setattr(io, "open", refuse)
            m.setattr("builtins.open", refuse)
            with pytest.raises(UserError, match=rf"{name} cannot be read \(Permission denied\)"):
                checkpoint.load(folder)


@pytest.fixture
def kept(saved, tmp_path):
    """A run with three checkpoints, as training leaves them."""
    folder, policy = saved
    config = read_yaml(folder / "config.yaml")
    spec = Spec(policy.obs_space, policy.action_space)
    for step in (1, 2, 10):
        place = tmp_path / "run" / "checkpoints" / f"step_{step:08d}"
        checkpoint.save(place, config, spec, policy.state_dict(), {"x": torch.arange(3)})
        checkpoint.point_last(tmp_path / "run", place)
    return tmp_path / "run"


def test_a_run_without_its_link_has_its_newest_whole_checkpoint(kept):
    """Mutations: find through the link alone; sort by name; count folders that lack a file."""
    last, newest = kept / "checkpoints" / "last", kept / "checkpoints" / "step_00000010"
    assert last.resolve() == newest.resolve() == checkpoint.find(kept) == checkpoint.find(last)
    newest.rename(kept / "checkpoints" / "step_100")  # the link dangles, and sorts by number
    assert checkpoint.find(kept).name == checkpoint.find(last).name == "step_100"
    last.unlink()
    shutil.copytree(kept / "checkpoints" / "step_00000002", last)  # a tool that follows links
    assert checkpoint.find(kept).name == "step_100"
    shutil.rmtree(last)
    assert checkpoint.find(kept).name == "step_100"
    (kept / "checkpoints" / "step_100" / "spec.json").unlink()  # half copied
    assert checkpoint.find(kept).name == "step_00000002"
    last.symlink_to("step_00000001")  # killed before the link
    assert checkpoint.find(kept).name == "step_00000002"
    assert [p.name for p in checkpoint.steps(kept)] == ["step_00000001", "step_00000002"]


def test_a_newest_checkpoint_that_lost_a_file_is_not_passed_over_in_silence(kept):
    (kept / "checkpoints" / "step_00000010" / "spec.json").unlink()
    with pytest.raises(UserError, match=r"step_00000010 misses spec\.json.*step_00000002"):
        checkpoint.find(kept)


def test_drives_without_links_do_without(kept, monkeypatch):
    """Mutation: let the error of `symlink_to` through."""

    def refuse(*_, **__):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    (kept / "checkpoints" / "last").unlink()
    monkeypatch.setattr(os, "symlink", refuse)
    checkpoint.point_last(kept, kept / "checkpoints" / "step_00000010")
    assert not list((kept / "checkpoints").glob("*last"))
    assert checkpoint.find(kept).name == "step_00000010"


def test_old_training_states_and_litter_go_and_weights_stay(kept):
    """Mutations: prune by name; leave the litter; take weights too."""
    litter = kept / "checkpoints" / ".step_00000003.123.partial"
    litter.mkdir()
    (litter / "config.yaml").write_text("half")
    checkpoint.prune(kept, keep=1)
    assert not litter.exists() and len(checkpoint.steps(kept)) == 3
    assert [p.name for p in checkpoint.steps(kept) if (p / "train_state.pt").exists()] == ["step_00000010"]
    checkpoint.prune(kept, keep=1)
    checkpoint.read_train_state(checkpoint.find(kept))
    with pytest.raises(UserError, match=r"step_00000001/train_state\.pt cannot be read"):
        checkpoint.read_train_state(checkpoint.steps(kept)[0])


def test_a_save_over_the_same_step_loses_nothing_wherever_it_is_killed(saved, monkeypatch):
    """Mutation: remove the old folder before the new one has its name."""
    folder, policy = saved
    config, spec = read_yaml(folder / "config.yaml"), Spec(policy.obs_space, policy.action_space)
    before, rename = (folder / "spec.json").read_bytes(), os.rename
    aside = folder.with_name(f".{folder.name}.77.old")
    rename(folder, aside)  # as a kill between the two renames leaves it
    checkpoint.sweep(folder.parent)
    assert (folder / "spec.json").read_bytes() == before and not aside.exists()

    def fail(a, b):
        if str(a).endswith("partial"):
            raise OSError(errno.ENOSPC, "No space left on device")
        rename(a, b)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(UserError, match="No space left"):
        checkpoint.save(folder, config, spec, policy.state_dict())
    monkeypatch.undo()
    assert (folder / "spec.json").read_bytes() == before
    checkpoint.save(folder, config, spec, policy.state_dict())
    assert (folder / "spec.json").read_bytes() != before
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(kept, monkeypatch):
    """Files and folder are flushed, then renamed, then the folder above is flushed. Mutations: leave out any of these
    flushes in `save`; rename first."""
    done, fsync, rename = [], os.fsync, os.rename

    def flushed(handle):
        done.append(("flush", os.readlink(f"/proc/self/fd/{handle}")))
        fsync(handle)

    def renamed(a, b):
        done.append(("rename", str(b)))
        rename(a, b)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "rename", renamed)
    old, new = checkpoint.find(kept), kept / "checkpoints" / "step_00000011"
    checkpoint.save(
        new,
        read_yaml(old / "config.yaml"),
        checkpoint.read_spec(old),
        checkpoint.read_weights(old),
        {"x": torch.zeros(1)},
    )
    work = str(new.with_name(f".{new.name}.{os.getpid()}.partial"))
    files = {("flush", f"{work}/{name}") for name in (*checkpoint.FILES, "train_state.pt")}
    at = done.index(("rename", str(new)))
    assert files <= set(done[: at - 1]) and done[at - 1] == ("flush", work)
    assert done[at + 1 :] == [("flush", str(new.parent))]


FULL = """
import resource, sys
from pathlib import Path
import torch
from polyarm.policies import checkpoint
from polyarm.spec import UserError
old = checkpoint.find(Path(sys.argv[1]))
spec, weights, config = checkpoint.read_spec(old), checkpoint.read_weights(old), checkpoint.read_config(old)
new = old.parent / "step_00000099"
write = lambda: checkpoint.save(new, config, spec, weights, {"x": torch.zeros(1_000_000)})
write()
sizes = sorted((new / name).stat().st_size for name in ("config.yaml", "model.safetensors", "train_state.pt"))
checkpoint.shutil.rmtree(new)
for size in sizes:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, resource.RLIM_INFINITY))
    try:
        write()
    except UserError as e:
        print(e)
"""


def test_a_full_disk_is_one_sentence_and_leaves_no_litter(kept):
    """In the configuration, in the weights, in the training state. Mutation: catch OSError alone, or leave out the last sweep."""
    before = sorted(p.name for p in (kept / "checkpoints").iterdir())
    done = subprocess.run([sys.executable, "-c", FULL, str(kept)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = done.stdout.strip().splitlines()
    assert len(said) == 3 and all("step_00000099 cannot be saved" in line for line in said), done.stdout
    assert sorted(p.name for p in (kept / "checkpoints").iterdir()) == before


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_disk_that_cannot_be_written_is_one_sentence(saved, monkeypatch, code):
    folder, policy = saved
    config = read_yaml(folder / "config.yaml")

    def refuse(*_, **__):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(UserError, match=f"{os.strerror(code)}.*what was saved before stays"):
        checkpoint.save(folder.parent / "a" / "b", config, Spec(OBS, ACTION), policy.state_dict())
