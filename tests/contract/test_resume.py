"""A run that was stopped goes on as if it had not been: to the bit, from the newest whole checkpoint, never over it.

Mutations that turn it red: restore no schedule, no generator, no global generator (dropout), no place in the order; let the
DataLoader draw from the global generator; start over where `checkpoints/last` is missing; fit the scale or the split again;
save what is not finite, or after the rollouts; save nothing at the end or at Ctrl-C.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from polyarm.cli import main
from polyarm.datasets.store import Store
from polyarm.learner import Learner
from polyarm.lock import lock
from polyarm.log import read_log
from polyarm.policies import checkpoint
from polyarm.spec import UserError
from polyarm.train import _Rollouts, fit

POLICIES = {
    "flow": [],
    "dropout": ["body=transformer", "policy.body.width=16", "policy.body.layers=1", "policy.body.heads=2", "policy.body.p_drop_attn=0.5"],
    "memory": ["policy=seed", "policy.n_chunks=2", "train.batch_size=4", "policy.dropout=0.5", "policy.token_width=16"],
    "goals": ["policy=beso", "policy.goal_steps=2", "task.streams=[joint_pos,cube]"],
}  # fmt: skip


class Killed(BaseException):
    """Stands for a kill in the middle of a step: nothing may be saved of what the step did."""


def trained(run):
    folder = checkpoint.find(run)
    return load_file(folder / "model.safetensors"), torch.load(folder / "train_state.pt", weights_only=True)


def same(a, b):
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            same(x, y)
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


def rows(run, *keys):
    """{(step, key): value} of the log, without what a clock says."""
    log = read_log(run / "log.jsonl")
    return {(r["step"], k): v for r in log for k, v in r.items() if k in (keys or ("loss", "val_loss", "lr"))}


def with_state(folder, change):
    """The checkpoint with another training state."""
    state = torch.load(folder / "train_state.pt", weights_only=True)
    torch.save(change(state), folder / "train_state.pt")


def counted(monkeypatch, stop_at=None):
    """The steps that updates make from now on; the one from `stop_at` on is killed."""
    steps, update = [], Learner.update

    def counting(self, clip):
        if self.step == stop_at:
            raise Killed
        steps.append(self.step)
        return update(self, clip)

    monkeypatch.setattr(Learner, "update", counting)
    return steps


def killed(settings, monkeypatch, out, *more, at=17):
    with monkeypatch.context() as m:
        counted(m, at)
        with pytest.raises(Killed):
            fit(settings(out, *more))
    return out


@pytest.mark.parametrize("policy", POLICIES)
def test_resume_equals_the_unbroken_run_to_the_bit(settings, tmp_path, monkeypatch, policy):
    """Weights, averages, optimiser, schedule, generators; every loss, rate and validation loss of the log. Steps 14 to 19 alone
    are made again, so that it cannot pass by beginning anew."""
    whole = fit(settings(tmp_path / "whole", *POLICIES[policy]))
    broken = killed(settings, monkeypatch, tmp_path / "broken", *POLICIES[policy])
    assert checkpoint.find(broken).name == "step_00000014"
    torch.manual_seed(123)  # what another process would have drawn
    steps = counted(monkeypatch)
    fit(settings(broken, *POLICIES[policy]))
    assert steps == [14, 15, 16, 17, 18, 19]
    same(trained(whole), trained(broken))
    assert rows(whole).keys() == rows(broken).keys()
    again = {k: v for k, v in rows(broken).items() if k != (15, "loss")}  # the mean of steps 10 to 14 was not kept
    assert again.items() <= rows(whole).items()


def test_kill_9_loses_the_steps_since_the_last_checkpoint_and_no_more(words, settings, tmp_path, monkeypatch):
    """A real one, once `last` names step 14; what comes then equals the unbroken run."""
    program = (
        "import sys, os, signal, polyarm.train as t; from polyarm.config import compose\n"
        "point = t.checkpoint.point_last\n"
        "def then_die(run, folder):\n    point(run, folder)\n"
        "    if folder.name.endswith('14'): os.kill(os.getpid(), signal.SIGKILL)\n"
        "t.checkpoint.point_last = then_die\nt.fit(compose(sys.argv[1:]))"
    )
    died = subprocess.run(
        [sys.executable, "-c", program, *words(tmp_path / "broken")], capture_output=True, check=False
    )
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    steps = counted(monkeypatch)
    fit(settings(tmp_path / "broken"))
    assert steps == list(range(14, 20))
    same(trained(fit(settings(tmp_path / "whole"))), trained(tmp_path / "broken"))


@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_first_and_the_same_command_goes_on(words, settings, tmp_path, signal_):
    """Between checkpoints: the step that runs is finished, saved and gone on from, equal to the unbroken run."""
    out = tmp_path / "run"
    program = (
        "import sys, time, polyarm.train as t; from polyarm.config import compose; from polyarm.learner import Learner\n"
        "update = Learner.update\n"
        "def slow(self, clip):\n    print(self.step, flush=True)\n    time.sleep(0.3 if self.step > 2 else 0)\n"
        "    return update(self, clip)\n"
        "Learner.update = slow\nt.fit(compose(sys.argv[1:]))"
    )
    words = words(out, "train.checkpoint_every=0")
    child = subprocess.Popen(
        [sys.executable, "-c", program, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while child.stdout.readline().strip() != "3":
        assert child.poll() is None, child.stderr.read()
    child.send_signal(signal_)
    _, said = child.communicate(timeout=900)
    step = int(checkpoint.find(out).name.removeprefix("step_"))
    assert step in (4, 5) and f"step_{step:08d}" in said and "KeyboardInterrupt" in said
    fit(settings(out, "train.checkpoint_every=0"))
    same(trained(fit(settings(tmp_path / "whole", "train.checkpoint_every=0"))), trained(out))


@pytest.mark.parametrize("error", [RuntimeError, UserError])
def test_an_error_between_steps_saves_first(settings, tmp_path, monkeypatch, error):
    """What is not the step's own fault, such as a chunk that is damaged, does not cost the steps since the last checkpoint."""
    from polyarm import train

    def broken(*args):
        raise error("the file is damaged")

    monkeypatch.setattr(train, "validate", broken)
    with pytest.raises(error):
        fit(settings(tmp_path / "run", "train.checkpoint_every=0"))
    assert checkpoint.find(tmp_path / "run").name == "step_00000010"


@pytest.mark.parametrize("damage", ["missing", "dangling", "no link", "config gone"])
def test_without_its_link_a_run_goes_on_from_its_newest_checkpoint(settings, tmp_path, monkeypatch, damage):
    run = killed(settings, monkeypatch, tmp_path / "run")
    last = run / "checkpoints" / "last"
    last.unlink(missing_ok=True)
    if damage == "dangling":
        last.symlink_to("step_99999999")
    elif damage == "no link":
        shutil.copytree(run / "checkpoints" / "step_00000007", last)
    elif damage == "config gone":
        (run / "config.yaml").unlink()
    steps = counted(monkeypatch)
    fit(settings(run))
    assert steps[0] == 14
    same(trained(fit(settings(tmp_path / "whole"))), trained(run))


def test_a_drive_without_links_trains_and_resumes(settings, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "symlink", refuse)
    run = killed(settings, monkeypatch, tmp_path / "run")
    assert not (run / "checkpoints" / "last").exists()
    steps = counted(monkeypatch)
    assert checkpoint.find(fit(settings(run))).name == "step_00000020" and steps[0] == 14


def test_checkpoints_that_cannot_be_gone_on_from_are_not_trained_over(settings, tmp_path, monkeypatch):
    run = killed(settings, monkeypatch, tmp_path / "run")
    for state in run.glob("checkpoints/step_*/train_state.pt"):
        state.unlink()
    with pytest.raises(UserError, match=r"step_00000014.*no whole checkpoint.*another output_dir"):
        fit(settings(run))


def test_weights_without_the_newest_state_go_on_from_the_state_before(settings, tmp_path, monkeypatch, capsys):
    run = killed(settings, monkeypatch, tmp_path / "run")
    (run / "checkpoints/step_00000014/train_state.pt").unlink()
    steps = counted(monkeypatch)
    fit(settings(run))
    assert steps[0] == 7 and "going on from step_00000007" in capsys.readouterr().err


def test_what_a_run_stands_on_is_read_and_not_made_anew(settings, demos, tmp_path, monkeypatch, capsys):
    """Demonstrations that are added, with another spread, change neither the scale nor the split of a run under way."""
    own = tmp_path / "d.zarr"
    shutil.copytree(demos, own)
    at = f"task.demos.path={own}"
    whole = fit(settings(tmp_path / "whole", at))
    run = killed(settings, monkeypatch, tmp_path / "run", at)
    with Store.open(own, "a") as store:
        n = int(store.episode_ends[0])
        first = {name: store.read(name)[:n] for name in (*store.spec.obs.names, "action", "time_s")}
        for seed in range(8, 14):
            store.append({k: x if k == "time_s" else 3 * x for k, x in first.items()}, seed)
    fit(settings(run, at))
    assert "has grown from 8 to 14 episodes" in capsys.readouterr().err
    specs = [json.loads((checkpoint.find(r) / "spec.json").read_text()) for r in (whole, run)]
    assert all(specs[0][part] == specs[1][part] for part in ("obs", "action"))
    same(trained(whole), trained(run))


def test_other_demonstrations_under_the_same_path_are_refused(settings, demos, tmp_path, monkeypatch):
    own = tmp_path / "d.zarr"
    shutil.copytree(demos, own)
    run = killed(settings, monkeypatch, tmp_path / "run", f"task.demos.path={own}")
    with Store.open(demos) as all_:
        parts = np.split(np.arange(all_.frames), all_.episode_ends[:-1])
        shutil.rmtree(own)
        with Store.create(own, all_.spec) as other:
            for seed, part in enumerate(reversed(parts)):
                names = (*all_.spec.obs.names, "action", "time_s")
                other.append({name: all_.read(name)[part] for name in names}, seed)
    with pytest.raises(UserError, match="not those this run began with"):
        fit(settings(run, f"task.demos.path={own}"))


def test_other_demonstrations_of_the_same_lengths_are_refused(settings, demos, tmp_path, monkeypatch):
    """Mutation: compare where episodes end alone."""
    own = tmp_path / "d.zarr"
    shutil.copytree(demos, own)
    run = killed(settings, monkeypatch, tmp_path / "run", f"task.demos.path={own}")
    shutil.rmtree(own)
    with Store.open(demos) as one, Store.create(own, one.spec) as other:
        for seed, part in enumerate(np.split(np.arange(one.frames), one.episode_ends[:-1])):
            rows = {name: one.read(name)[part] for name in (*one.spec.obs.names, "action", "time_s")}
            other.append(rows | {"action": rows["action"] + 0.01 * (seed == 3)}, seed)
    with pytest.raises(UserError, match="not those this run began with"):
        fit(settings(run, f"task.demos.path={own}"))


def test_what_is_no_number_is_said_and_not_logged(settings, tmp_path, monkeypatch, capsys):
    from polyarm import train

    monkeypatch.setattr(train, "validate", lambda *args: {"val_loss": torch.inf})
    run = fit(settings(tmp_path / "run"))
    assert "val_loss is inf at step 10: not logged" in capsys.readouterr().err
    for line in (run / "log.jsonl").read_text().splitlines():
        assert "val_loss" not in json.loads(line, parse_constant=pytest.fail)


def test_a_setting_younger_than_the_run_has_its_default(settings, tmp_path, monkeypatch):
    """The run's config.yaml, written before a setting existed, does not forbid it; a value that is no default is another run."""
    run = killed(settings, monkeypatch, tmp_path / "run")
    text = (run / "config.yaml").read_text()
    young = "".join(x + "\n" for x in text.splitlines() if "ema_power" not in x and "goal_steps" not in x)
    assert young != text
    (run / "config.yaml").write_text(young)
    with pytest.raises(UserError, match=r"train.ema_power=None, now it is 0.5.*leave train.ema_power out"):
        fit(settings(run, "train.ema_power=0.5"))
    assert checkpoint.find(fit(settings(run))).name == "step_00000020"


def test_a_setting_that_the_run_does_not_have_is_another_run(settings, tmp_path, monkeypatch):
    run = killed(settings, monkeypatch, tmp_path / "run")
    with pytest.raises(UserError, match="task.scales.cube"):
        fit(settings(run, "+task.scales.cube=limits"))


def test_another_device_goes_on_with_noise_of_its_own(settings, tmp_path, monkeypatch, capsys):
    """A generator of CUDA has 16 bytes of state: here it cannot go on, and training says so."""
    run = killed(settings, monkeypatch, tmp_path / "run")
    foreign = {"generator": torch.zeros(16, dtype=torch.uint8), "cuda_rng": [torch.zeros(16).byte()]}
    here = run / "checkpoints" / "step_00000014"
    with_state(here, lambda state: {**state, "processes": [state["processes"][0] | foreign]})
    fit(settings(run))
    assert "from step 14 on the noise is drawn anew" in capsys.readouterr().err
    assert checkpoint.find(run).name == "step_00000020"


def test_another_number_of_processes_is_refused(settings, tmp_path, monkeypatch):
    run = killed(settings, monkeypatch, tmp_path / "run")
    here = run / "checkpoints" / "step_00000014"
    with_state(here, lambda state: {**state, "processes": state["processes"] * 2})
    with pytest.raises(UserError, match="trained by 2 processes, now there are 1"):
        fit(settings(run))


def test_more_steps_say_what_becomes_of_the_rate(settings, tmp_path, capsys):
    short = "train.warmup_steps=2"
    run = fit(settings(tmp_path / "run", short))
    capsys.readouterr()
    fit(settings(run, short, "train.steps=40", "train.log_every=1"))
    said = capsys.readouterr().err
    half = next(r["lr"] for r in read_log(run / "log.jsonl") if r["step"] == 21)
    assert "at step 20 the learning rate goes from 0 to" in said and half > 0
    whole = fit(settings(tmp_path / "whole", short, "train.steps=40", "train.log_every=1"))
    after = lambda r: {k: v for k, v in rows(r, "lr").items() if k[0] > 20}
    assert after(run) == after(whole)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_loss_that_is_not_finite_ends_training_before_it_is_saved(settings, tmp_path, monkeypatch, bad):
    """Between two rows of the log, too; the checkpoint before stays, and the same command says the same."""
    update = Learner.update

    def diverging(self, clip):
        losses = update(self, clip)
        return {name: loss * (bad if self.step == 12 else 1) for name, loss in losses.items()}

    monkeypatch.setattr(Learner, "update", diverging)
    for _ in range(2):
        with pytest.raises(UserError, match=f"the loss is {bad} at step 14: lower train.lr=0.001"):
            fit(settings(tmp_path / "run", "train.log_every=100"))
        assert checkpoint.find(tmp_path / "run").name == "step_00000007"


def test_weights_that_are_not_finite_are_not_saved(settings, tmp_path, monkeypatch):
    """The last step's update may spoil them although its loss was sound."""
    update = Learner.update

    def spoiling(self, clip):
        losses = update(self, clip)
        if self.step == 14:
            next(self.policy.parameters()).data.view(-1)[0] = torch.nan
        return losses

    monkeypatch.setattr(Learner, "update", spoiling)
    with pytest.raises(UserError, match="not finite at step 14"):
        fit(settings(tmp_path / "run"))
    assert checkpoint.find(tmp_path / "run").name == "step_00000007"


@pytest.mark.parametrize("every", [0, 7, 1000])
def test_the_end_is_saved(settings, tmp_path, every):
    run = fit(settings(tmp_path / "run", f"train.checkpoint_every={every}"))
    assert checkpoint.find(run).name == "step_00000020"


def test_old_optimizer_states_go_and_weights_stay(settings, tmp_path):
    run = fit(settings(tmp_path / "run", "train.checkpoint_every=3", "train.keep_states=2"))
    (run / "checkpoints" / ".step_00000099.1.partial").mkdir()  # litter of a killed save
    fit(settings(run, "train.checkpoint_every=3", "train.steps=22"))
    assert len(list(run.glob("checkpoints/step_*/model.safetensors"))) == 9
    kept = sorted(p.parent.name for p in run.glob("checkpoints/step_*/train_state.pt"))
    assert kept == ["step_00000021", "step_00000022"] and not list(run.glob("checkpoints/.step*"))


def test_the_checkpoint_comes_before_the_rollouts_which_may_fail(settings, tmp_path, monkeypatch, capsys):
    saved = []

    def fails(self, policy):
        saved.append(checkpoint.find(tmp_path / "run").name)
        raise RuntimeError("the world fell over")

    monkeypatch.setattr(_Rollouts, "run", fails)
    more = ["train.rollout_every=7", "train.rollout_episodes=1", "eval.workers=0"]
    fit(settings(tmp_path / "run", *more))
    assert saved == ["step_00000007", "step_00000014", "step_00000020"]
    assert "no rollouts at step 7: RuntimeError: the world fell over" in capsys.readouterr().err
    assert rows(tmp_path / "run", "rollouts_failed")[7, "rollouts_failed"] == "RuntimeError: the world fell over"


def test_one_training_at_a_time_in_a_folder(settings, tmp_path):
    with lock(tmp_path / "run", "training"), pytest.raises(UserError, match="in use by training"):
        fit(settings(tmp_path / "run"))
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_folder_that_cannot_be_written_is_said_in_a_sentence(settings, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        fit(settings(tmp_path / "file" / "run"))


def test_a_full_disk_is_said_in_a_sentence(words, tmp_path, monkeypatch, capsys):
    import errno

    from polyarm import train

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "log.jsonl")

    monkeypatch.setattr(train.Log, "add", full)
    assert main(["train", *words(tmp_path / "run")]) == 2
    assert "log.jsonl: No space left on device: free some space" in capsys.readouterr().err.splitlines()[-1]
    assert checkpoint.find(tmp_path / "run").name == "step_00000005"  # what was trained until then


def test_a_finished_run_is_left_as_it_is_and_a_longer_one_goes_on(settings, tmp_path):
    run = fit(settings(tmp_path / "run"))
    kept = {f: (f.stat().st_mtime_ns, f.read_bytes()) for f in run.rglob("*") if f.is_file() and f.name != ".lock"}
    time.sleep(0.01)
    fit(settings(run))
    fit(settings(run, "train.steps=10"))
    assert kept == {f: (f.stat().st_mtime_ns, f.read_bytes()) for f in kept}
    fit(settings(run, "train.steps=25"))
    assert checkpoint.find(run).name == "step_00000025"


@pytest.mark.parametrize(
    "more, said",
    [
        (["train.lr=0.5"], ["train.lr=0.001", "0.5", "output_dir"]),
        (["policy=diffusion"], ["another output_dir"]),
        (["train.resume=false"], ["holds a run already"]),
    ],
)
def test_a_folder_refuses_another_run(settings, tmp_path, more, said):
    fit(settings(tmp_path / "run", "train.steps=7"))
    with pytest.raises(UserError) as e:
        fit(settings(tmp_path / "run", "train.steps=7", *more))
    assert all(w in str(e.value) for w in said), str(e.value)
