"""The command line: instant help, one sentence for bad input, the names that scripts rely on.

Mutations that turn it red: import torch, numpy or hydra at the top of cli.py; let a UserError escape; return 0 after one.
"""

import io
import json
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout

import numpy as np
import pytest

from polyarm.cli import COMMANDS, main
from polyarm.config import compose, options


def test_help_loads_nothing_heavy():
    """What makes help instant; the seconds stand in docs/results.md."""
    program = (
        "import sys, polyarm.cli; polyarm.cli.main(['--help']); polyarm.cli.main(['train', '--help'])\n"
        "heavy = {'torch', 'numpy', 'hydra', 'omegaconf', 'gymnasium', 'mujoco', 'zarr', 'rich'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in COMMANDS)


def test_help_lists_every_choice(capsys):
    main(["train", "--help"])
    shown = capsys.readouterr().out
    assert all(
        name in shown for group in ("policy", "task", "body", "experiment", "sampler") for name in options(group)
    )


@pytest.mark.parametrize(
    "words, said",
    [
        (["trian"], ["'trian'", "train"]),
        (["train", "policy=floww"], ["floww", "flow", "diffusion"]),
        (["train", "task=pusht"], ["pusht_state"]),
        (["train", "train.stps=3"], ["train.stps", "train.steps"]),
        (["train", "train.steps=many"], ["train.steps=many", "number"]),
        (["train", "train.steps=1.5"], ["whole number"]),
        (["train", "train.resume=1"], ["true or false"]),
        (["train", "--steps", "3"], ["key=value", "'--steps'"]),
        (["train", "experiment=nope"], ["nope", "pusht_state_cpu"]),
        (["train", "sampler=ddpmm"], ["ddpmm", "ddpm"]),
        (["train", "task.demos.path=nowhere.zarr"], ["nowhere.zarr", "polyarm collect"]),
        (["train", "train.lr=[1"], ["train.lr=[1"]),
        (["eval"], ["first word"]),
        (["eval", "a", "b", "--weights", "1"], ["1 weights for 2 policies"]),
        (["eval", "a", "--weights", "x"], ["'x'", "0.4"]),
        (["eval", "a", "--wieghts", "1"], ["--weights", "'--wieghts'"]),
        (["eval", "no/such/run"], ["no/such/run", "does not exist"]),
        (["collect", "task=pusht_state"], ["pusht_state", "expert"]),
        (["collect", "collect.episodes=0"], ["episodes=0"]),
        (["data", "info", "no/such.zarr"], ["no/such.zarr"]),
        (["data", "shwo"], ["shwo", "show", "info"]),
        (["doctor", "please"], ["please"]),
        (["doctor", "--station"], ["so101_twin"]),
        (["deploy", "robot=so101_twin"], ["polyarm deploy outputs/demo"]),
        (["deploy", "no/such/run", "robot=so101_twin"], ["no/such/run", "does not exist"]),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_two(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("polyarm: ") and error.count("\n") == 1, error
    assert all(s in error for s in said), error
    assert not list(tmp_path.iterdir()), "nothing is written before the input is known to be good"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A small policy trained from the command line."""
    home = tmp_path_factory.mktemp("run")
    polyarm("collect", "task=pick_place", f"collect.path={home}/demos.zarr", "collect.episodes=6", "collect.workers=1")
    polyarm(
        "train",
        "policy=flow",
        "task=pick_place",
        f"task.demos.path={home}/demos.zarr",
        f"output_dir={home}/run",
        *SMALL,
    )
    return home / "run"


SMALL = (
    "train.steps=40",
    "train.batch_size=16",
    "policy.body.width=32",
    "policy.body.blocks=1",
    "train.checkpoint_every=40",
)


def polyarm(*words):
    """What the command prints."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(words)
    assert code == 0, err.getvalue()
    return out.getvalue()


def test_eval_writes_what_scripts_rely_on(run, tmp_path):
    printed = polyarm(
        "eval",
        str(run),
        "eval.episodes=5",
        "eval.seed=7",
        "eval.n_envs=3",
        "eval.workers=1",
        "eval.videos=1",
        f"output_dir={tmp_path}/out",
        "--json",
    )
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert json.loads(printed)["seeds"] == result["seeds"] == [7, 8, 9, 10, 11]
    assert {"success_rate", "score", "n", "interval", "seeds", "per_seed", "seconds", "versions"} <= result.keys()
    assert result["n"] == 5 and result["network_evaluations"] == 10
    assert result["success_rate"] == np.mean([row["success"] for row in result["per_seed"]])
    low, high = result["interval"]
    assert low <= result["success_rate"] <= high
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000
    assert len(list((tmp_path / "out" / "clips").glob("*.mp4"))) == 1
    episodes = np.load(tmp_path / "out" / "episodes.npz")
    assert [len(episodes[f"seed_{row['seed']}"]) for row in result["per_seed"]] == [
        row["steps"] for row in result["per_seed"]
    ]


def test_the_same_seeds_give_the_same_episodes(run, tmp_path):
    """Twice the same command, and with other worker processes: the same actions to the bit."""
    for name, workers in (("a", 0), ("b", 0), ("c", 2)):
        polyarm(
            "eval",
            str(run),
            "eval.episodes=4",
            "eval.n_envs=2",
            f"eval.workers={workers}",
            "eval.videos=0",
            f"output_dir={tmp_path}/{name}",
        )
    a, b, c = (np.load(tmp_path / name / "episodes.npz") for name in "abc")
    for key in a.files:
        np.testing.assert_array_equal(a[key], b[key])
        np.testing.assert_array_equal(a[key], c[key])


def test_a_mixture_of_one_and_nothing_plays_as_the_one(run, tmp_path):
    """`polyarm eval A B --weights 1 0` is A to the bit; equal parts of two policies are neither."""
    other = run.parent / "other"
    polyarm("train", "policy=diffusion", f"task.demos.path={run.parent}/demos.zarr", f"output_dir={other}", *SMALL)
    play = ("eval.episodes=2", "eval.n_envs=2", "eval.workers=0", "eval.videos=0")
    polyarm("eval", str(run), *play, f"output_dir={tmp_path}/alone")
    polyarm("eval", str(run), str(other), "--weights", "1", "0", *play, f"output_dir={tmp_path}/one")
    polyarm("eval", str(run), str(other), *play, f"output_dir={tmp_path}/mixed")
    alone, one, mixed = (np.load(tmp_path / n / "episodes.npz") for n in ("alone", "one", "mixed"))
    assert all(np.array_equal(alone[k], one[k]) for k in alone.files)
    assert not all(np.array_equal(alone[k], mixed[k]) for k in alone.files)
    result = json.loads((tmp_path / "mixed" / "result.json").read_text())
    assert result["policy"] == "flow + diffusion" and result["weights"] == [0.5, 0.5] and len(result["parts"]) == 2


@pytest.mark.parametrize(
    "words, said",
    [
        (["task=pusht_state"], ["joint_pos", "keypoint"]),
        (["eval.episods=3"], ["eval.episodes"]),
        (["policy.body.width=64"], ["policy.*"]),
        (["eval.episodes=0"], ["eval.episodes=0"]),
        (["eval.n_action_steps=16"], ["at most 15"]),
        (["policy=diffusion"], ["policy=diffusion"]),
    ],
)
def test_eval_refuses_what_does_not_fit_the_weights(run, words, said, capsys, tmp_path):
    assert main(["eval", str(run), f"output_dir={tmp_path}/out", *words]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("polyarm: ") and all(s in error for s in said), error


def test_a_world_of_another_version_is_refused_and_can_be_allowed(run, tmp_path, capsys):
    spec = json.loads((run / "checkpoints" / "last" / "spec.json").read_text())
    assert spec["versions"]["env"].startswith("PickPlace")
    spec["versions"]["env"] = "PickPlace-v9"
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in (run / "checkpoints" / "last").iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    (copy / "spec.json").write_text(json.dumps(spec))
    words = ["eval", str(copy), "eval.episodes=1", "eval.workers=0", "eval.videos=0", f"output_dir={tmp_path}/out"]
    assert main(words) == 2
    assert "PickPlace-v9" in capsys.readouterr().err
    assert main([*words, "eval.allow_other_versions=true"]) == 0


def test_multirun_sweeps_into_folders_of_their_own(run, tmp_path):
    polyarm(
        "train", "--multirun", "train.seed=1,2", f"task.demos.path={run.parent}/demos.zarr", f"hydra.sweep.dir={tmp_path}/sweep",
        *SMALL, "train.steps=20",
    )  # fmt: skip
    found = sorted(p.parent.parent.parent.name for p in tmp_path.glob("sweep/*/checkpoints/last/model.safetensors"))
    assert found == ["0", "1"]
    a, b = ((tmp_path / "sweep" / i / "checkpoints/last/model.safetensors").read_bytes() for i in "01")
    assert a != b


def test_data_info_counts_what_is_there(run, capsys):
    assert main(["data", "info", str(run.parent / "demos.zarr")]) == 0
    assert "6" in capsys.readouterr().out


def test_every_group_of_settings_composes():
    """Each policy with each body, and every experiment: no yaml names what is not there."""
    for experiment in options("experiment"):
        compose([f"experiment={experiment}"])
    for policy in options("policy"):
        compose([f"policy={policy}"])
    for body in options("body"):
        assert compose([f"body={body}"]).policy.body._target_.startswith("polyarm.policies.nets.")
    for task in options("task"):
        compose([f"task={task}"])
