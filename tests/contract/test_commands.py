"""What a newcomer meets: the command that goes on, what stays after Ctrl-C, a disk that is full, what a machine lacks.

Mutations that turn it red: print the folder unquoted, or not at all; leave `output_dir` out of the command to resume; let an
OSError escape; report a broken package as sound; run the demo's evaluation without the words given.
"""

import errno
import io
import json
import shlex
import subprocess
import sys
from dataclasses import replace

import pytest

from polyarm import cli
from polyarm.cli import COMMANDS, main
from polyarm.commands import doctor
from polyarm.config import compose
from polyarm.progress import Bar, waiting
from polyarm.spec import UserError
from polyarm.words import Words

SMALL = ["policy.body.width=8", "policy.body.blocks=1", "train.steps=4", "train.batch_size=4", "train.log_every=4",
         "train.val_every=0", "train.checkpoint_every=2", "train.device=cpu"]  # fmt: skip


def test_help_lists_the_way_from_nothing_to_a_result(capsys):
    assert list(COMMANDS)[:8] == ["demo", "collect", "train", "eval", "film", "bench", "data", "doctor"]
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert shown.index("  demo ") < shown.index("  train ") < shown.index("  doctor ")


def test_no_help_loads_anything_heavy():
    program = (
        "import sys, polyarm.cli as c\n"
        "for name in c.COMMANDS: c.main([name, '--help'])\n"
        "heavy = {'torch', 'numpy', 'hydra', 'omegaconf', 'gymnasium', 'mujoco', 'zarr', 'rich', 'yaml'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def said_line(text, label):
    return next(line.removeprefix(label).strip() for line in text.splitlines() if line.startswith(label))


def test_without_an_output_dir_the_command_that_resumes_is_printed(demos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", f"task.demos.path={demos}", *SMALL, "train.steps=2"]) == 0
    text = capsys.readouterr().err
    again = shlex.split(said_line(text, "resume:"))
    run = said_line(text, "run:")
    assert again[:2] == ["polyarm", "train"] and again[-1] == f"output_dir={run}"
    assert shlex.split(said_line(text, "next:")) == ["polyarm", "eval", run]
    assert main([*again[1:], "train.steps=4"]) == 0, "and it is the same run"
    assert [p.name for p in (tmp_path / run / "checkpoints").glob("step_*4")] == ["step_00000004"]


def test_ctrl_c_says_what_stays_and_the_command_to_go_on(demos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("polyarm.train.fit", lambda config: (_ for _ in ()).throw(KeyboardInterrupt()))
    out = f"{tmp_path}/lr=0.1 (2)"
    words = ["train", f"task.demos.path={demos}", f"output_dir={out}", *SMALL]
    assert main(words) == 130
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("polyarm: interrupted") and out in error
    assert shlex.split(error.split("`")[1]) == ["polyarm", *words]


def test_a_stage_of_the_demo_says_what_stays(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("polyarm.collect.collect_task", lambda config: {"episodes": 3, "frames": 9})
    stops: list[BaseException] = [UserError("no policy today"), KeyboardInterrupt()]
    monkeypatch.setattr("polyarm.train.fit", lambda config: (_ for _ in ()).throw(stops.pop(0)))
    words = ["demo", f"output_dir={tmp_path}/my demo"]
    assert main(words) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "no policy today (at train; the demonstrations" in error and "stay" in error
    assert shlex.split(error.split("`")[1]) == ["polyarm", *words]
    assert main(words) == 130
    assert "interrupted at train; the demonstrations" in capsys.readouterr().err


def test_the_demo_is_judged_by_the_words_given(tmp_path, monkeypatch, capsys):
    taken = {}
    monkeypatch.setattr("polyarm.collect.collect_task", lambda config: {"episodes": 3, "frames": 9})
    monkeypatch.setattr("polyarm.train.fit", lambda config: tmp_path / "run")
    monkeypatch.setattr(
        "polyarm.eval.run.evaluate", lambda sources, words, **more: taken.update(words=words, **more) or {"n": 2}
    )
    assert main(["demo", f"output_dir={tmp_path}/a=b", "eval.episodes=2", "train.steps=9", "--json"]) == 0
    assert taken["words"] == ["eval.episodes=2"] and taken["prefer"] == tmp_path / "a=b"
    assert json.loads(capsys.readouterr().out) == {"n": 2}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.ENOTDIR, errno.EEXIST])
def test_what_a_disk_says_is_one_sentence(number, monkeypatch, capsys):
    fails = lambda words: (_ for _ in ()).throw(OSError(number, "no", "/x/y"))
    monkeypatch.setitem(cli.COMMANDS, "doctor", replace(COMMANDS["doctor"], run=fails))
    assert main(["doctor"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("polyarm: /x/y: no: ") and error.count("\n") == 1


def test_a_folder_that_is_a_file_is_one_sentence(demos, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["train", f"task.demos.path={demos}", f"output_dir={tmp_path}/file/run", *SMALL]) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err.splitlines()[-1]


def test_a_fault_of_polyarm_is_not_hidden(monkeypatch):
    monkeypatch.setitem(cli.COMMANDS, "doctor", replace(COMMANDS["doctor"], run=lambda words: 1 / 0))
    with pytest.raises(ZeroDivisionError):
        main(["doctor"])


def test_a_traceback_can_be_asked_for(monkeypatch):
    monkeypatch.setenv("POLYARM_TRACEBACK", "1")
    with pytest.raises(UserError):
        main(["trian"])


def test_a_doctor_reports_what_is_broken(monkeypatch, capsys):
    def import_module(name):
        if name == "av":
            raise OSError("libx [264] is missing\nsecond line")

    monkeypatch.setattr(doctor, "import_module", import_module)
    monkeypatch.setattr(doctor, "_render", lambda: 1 / 0)
    monkeypatch.setattr(
        doctor, "_sapien", lambda: (_ for _ in ()).throw(UserError("VK=/a: b draws nothing: leave it out"))
    )
    monkeypatch.setattr(
        doctor,
        "version",
        lambda name: "1.2" if name != "zarr" else (_ for _ in ()).throw(doctor.PackageNotFoundError(name)),
    )
    rows = doctor.run(Words("doctor"))
    assert (rows["av"]["ok"], rows["av"]["found"]) == (False, "libx [264] is missing")
    assert (rows["zarr"]["ok"], rows["zarr"]["found"]) == (False, "not installed") and rows["zarr"]["remedy"]
    assert rows["torch"] == {"ok": True, "found": "1.2", "remedy": ""} and not rows["rendering"]["ok"]
    assert rows["SAPIEN"] == {"ok": False, "found": "VK=/a: b draws nothing", "remedy": "leave it out"}
    assert {"python", "GPU", "disk", "cores"} <= rows.keys()
    doctor.show(rows)
    assert "[264]" in capsys.readouterr().out, "brackets are no markup"


def test_evaluation_takes_the_users_yaml(demos, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["train", f"task.demos.path={demos}", f"output_dir={run}", *SMALL]) == 0
    folder = tmp_path / "my yaml"
    (folder / "sampler").mkdir(parents=True)
    (folder / "sampler" / "mine.yaml").write_text(
        "_target_: polyarm.policies.generate.sample.Sampler\n"
        "solver: {_target_: polyarm.policies.generate.sample.euler, _partial_: true}\n"
        "angles: {_target_: polyarm.policies.generate.angle.linear_flow, steps: 3}\nlimit: null\n"
    )
    words = ["eval", str(run), "sampler=mine", "eval.episodes=1", "eval.videos=0", "eval.workers=0"]
    assert main(words) == 2 and "'mine'" in capsys.readouterr().err
    assert main([*words, "--configs", str(folder)]) == 0
    (result,) = run.glob("eval*/result.json")
    assert json.loads(result.read_text())["network_evaluations"] == 3
    assert main(["eval", str(run), "sampler=mnie", "--configs", str(folder)]) == 2
    assert "did you mean 'mine'" in capsys.readouterr().err


def test_waiting_is_said_on_a_terminal_alone(monkeypatch):
    for terminal in (True, False):
        out = io.StringIO()
        monkeypatch.setattr(out, "isatty", lambda terminal=terminal: terminal, raising=False)
        monkeypatch.setattr(sys, "stderr", out)
        with waiting("loading nowhere", "nowhere_at_all"):
            assert out.getvalue() == ("loading nowhere ...\n" if terminal else "")
        with waiting("loading sys", "sys"):
            assert "sys" not in out.getvalue(), "nobody waits for what is there"


def test_a_bar_in_a_log_says_at_once_what_it_waits_for(capsys):
    with Bar("collect", 10, 3):
        assert capsys.readouterr().err == "collect: 3/10\n"


def test_one_configuration_does_not_change_the_next():
    assert compose(["train.seed=3"]).train.seed == 3 and compose([]).train.seed == 0
