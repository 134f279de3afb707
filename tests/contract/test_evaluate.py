"""An evaluation keeps what it found, says what acted, and writes over no other's.

Mutations that turn this red: films or latency before result.json; an error of theirs that is not caught; one folder for all
settings; an output_dir written over; the configuration as trained in the report; versions or seeds asked of the first part
alone; "sampler" looked for anywhere in the words.
"""

import json
import os
import shlex
import shutil
from contextlib import closing
from datetime import datetime
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

import polyarm.eval.run as run_module
from polyarm.cli import main
from polyarm.eval import place
from polyarm.eval.film import choose, film
from polyarm.eval.report import energy
from polyarm.eval.rollout import Played, make_worlds, rollout
from polyarm.eval.run import evaluate, load_policy
from polyarm.eval.score import Outcome, seeds_said
from polyarm.eval.seeds import demonstrated
from polyarm.lock import lock
from polyarm.policies import checkpoint
from polyarm.sim.vector import ShardedVectorEnv
from polyarm.spec import UserError
from tests import odd_worlds  # noqa: F401  registers them
from tests.contract.test_agent import Still

PLAY = ["eval.episodes=1", "eval.workers=0"]


@pytest.fixture(scope="module")
def home(tmp_path_factory, settings):
    """Two runs, flow and diffusion, with checkpoints at 7, 14 and 20."""
    from polyarm.train import fit

    home = tmp_path_factory.mktemp("evaluate")
    fit(settings(home / "flow", "policy=flow", "train.keep_states=9", "task.env_kwargs.image_size=[32,32]"))
    fit(settings(home / "diffusion", "policy=diffusion", "policy.sampler.angles.steps=4"))
    return home


@pytest.fixture
def flow(home, tmp_path):
    """A copy of the flow run, to evaluate in."""
    shutil.copytree(home / "flow", tmp_path / "flow", symlinks=True)
    return tmp_path / "flow"


def read(folder):
    return json.loads((Path(folder) / "result.json").read_text())


def broken(*_, **__):
    raise RuntimeError("libEGL.so.1: cannot open\nshared object file")


@pytest.mark.parametrize(
    ("part", "line"),
    [
        ("film", "no clips: RuntimeError: libEGL.so.1: cannot open shared object file"),
        ("write_report", "no report: RuntimeError: libEGL"),
        ("time_chunks", "no latency: RuntimeError: libEGL"),
        ("np.savez_compressed", "no episodes.npz: RuntimeError: libEGL"),
    ],
)
def test_what_fails_after_the_episodes_is_a_line_and_the_result_stays(flow, part, line, monkeypatch, capsys):
    monkeypatch.setattr(f"polyarm.eval.run.{part}", broken)
    assert main(["eval", str(flow), *PLAY, "eval.videos=1"]) == 0
    said = capsys.readouterr().err
    assert said.count(line) == 1 and "Traceback" not in said
    result = read(flow / "eval")
    assert result["n"] == 1 and result["per_seed"] and [note.startswith(line) for note in result["notes"]] == [True]
    assert (flow / "eval" / "report.html").exists() == (part != "write_report")
    assert ("chunk_ms" in result) == (part != "time_chunks")
    if part != "write_report":
        assert line in (flow / "eval" / "report.html").read_text()


@pytest.mark.parametrize("part", ["film", "write_report", "time_chunks"])
def test_the_result_is_there_before_anything_that_may_hang_or_be_interrupted(flow, part, monkeypatch):
    def interrupted(*_, **__):
        assert read(flow / "eval")["n"] == 1 and len(np.load(flow / "eval" / "episodes.npz").files) == 1
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module, part, interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate([flow], PLAY)
    assert read(flow / "eval")["per_seed"]


def test_filming_can_be_turned_off_and_only_what_can_be_played_again_is_filmed(flow, monkeypatch, capsys):
    monkeypatch.setattr(run_module, "film", broken)
    assert evaluate([flow], [*PLAY, "eval.videos=0"])["notes"] == []
    gym.register("test/Real-v0", "polyarm.sim.mujoco.pick_place:PickPlace", nondeterministic=True)
    try:
        found = evaluate([flow], [*PLAY, "task.env_id=test/Real-v0", f"output_dir={flow}/real"])
    finally:
        del gym.registry["test/Real-v0"]
    assert found["notes"] == ["no clips: test/Real-v0 does not promise that an episode can be played again"]
    assert "chunk_ms" not in found and found["notes"][0] in capsys.readouterr().err


def test_a_world_that_is_no_simulator_promises_nothing(tmp_path):
    """One of it, in this process; its clips are what it recorded. Mutations: assume that time stands still; film by replay."""
    task = {"env_id": "test/Bench-v0", "env_kwargs": {}, "success": "last", "measure": "success"}
    config = OmegaConf.create(
        {"task": task, "eval": {"workers": 2, "videos": 2, "n_action_steps": None, "goals": True}}
    )
    with closing(make_worlds(config, 5)) as worlds:
        assert (worlds.num_envs, worlds.replays, worlds.simulated_time) == (1, False, False)
        played = rollout(Still(worlds.world_spec), worlds, [3, 4])
        notes: list[str] = []
        ((path, said),) = run_module.shoot(config, played, tmp_path, worlds, notes)
        assert path.name == "seed_4.mp4" and path.stat().st_size and said.startswith("seed 4: success") and not notes
        assert run_module.shoot(config, played[:1], tmp_path, worlds, notes) == []
        assert notes == ["no clips: test/Bench-v0 does not promise that an episode can be played again"]
    with closing(ShardedVectorEnv("polyarm/PickPlace-v0", {}, 1, 0)) as worlds:
        assert worlds.replays and worlds.simulated_time and worlds.recording(0) is None
    assert seeds_said({"n": 2, "demonstrated": [], "replays": False}) == "2 episodes"


def test_planning_ahead_is_judged_and_said(flow, capsys):
    """Rows or ms, the same episodes; a sweep stands beside the headline, drawn, and leaves it. Mutations: a sweep without its own
    rows; the headline at the last latency; another order; judge a latency twice."""
    short = [*PLAY, "eval.videos=0", "+task.env_kwargs.max_steps=11", "eval.n_action_steps=4"]
    by_rows = evaluate([flow], [*short, "eval.ahead=2"])
    assert (by_rows["ahead"], by_rows["latency_ms"]) == (2, 100.0) and len(by_rows["chunk_ms"]) == 30
    by_time = evaluate([flow], [*short, "eval.latency_ms=90", "eval.latencies_ms=[150,0,51]"])
    assert (by_time["ahead"], by_time["latency_ms"]) == (2, 90.0) and by_time["per_seed"] == by_rows["per_seed"]
    actions = lambda folder: np.load(flow / folder / "episodes.npz")["seed_100000"]
    names = (
        "eval_max_steps_11_n_action_steps_4_ahead_2",
        "eval_max_steps_11_n_action_steps_4_latency_ms_90_latencies_ms_150_0_51",
    )
    np.testing.assert_array_equal(*map(actions, names))
    found = by_time["latencies"]
    assert [(r["latency_ms"], r["ahead"]) for r in found] == [(0, 0), (51, 2), (90, 2), (150, 3)]
    assert found[2] == found[1] | {"latency_ms": 90.0} and {r["mean_steps"] for r in found} == {11.0}
    page = (flow / names[1] / "report.html").read_text()
    assert "Success rate over latency" in page and "0 at 0 ms, 2 at 51 ms, 2 at 90 ms, 3 at 150 ms" in page
    assert (
        "2 rows, for up to 90 ms" in page and "What latency costs" not in (flow / names[0] / "report.html").read_text()
    )
    capsys.readouterr()
    for words, said in (
        ("eval.ahead=9", "eval.ahead=9: policy flow cannot plan 9 rows ahead"),
        ("eval.latencies_ms=[0,900]", "eval.latencies_ms=900 ms, 18 rows at 20 Hz: policy flow cannot"),
        ("eval.latency_ms=nan", "eval.latency_ms=nan: give auto, a number from 0 to 1000000 or null"),
    ):
        assert main(["eval", str(flow), *PLAY, words, f"output_dir={flow}/no"]) == 2
        assert said in capsys.readouterr().err and not (flow / "no").exists()


def still(seed, steps=3, success=True):
    return Played(Outcome(seed, success, 0.25, steps), np.zeros((steps, 2), np.float32))


def test_a_world_that_breaks_its_promise_is_not_shown(tmp_path):
    node = lambda name: OmegaConf.create({"task": {"env_id": f"test/{name}-v0", "env_kwargs": {}}})
    ((path, said),) = film(node("Odd"), [still(0)], tmp_path)
    assert path.stat().st_size and said == "seed 0: success after 3 steps, best score 0.25"
    assert len(list(film(node("Passing"), [still(1, success=False)], tmp_path, "last"))) == 1
    with pytest.raises(UserError, match="seed 4 of test/Odd-v0, played again .* nondeterministic=True"):
        list(film(node("Odd"), [still(2), still(4, success=False)], tmp_path))


def test_results_of_other_checkpoints_and_settings_all_stay(flow):
    """And the very same evaluation replaces its own."""
    short = [*PLAY, "eval.videos=0"]
    asked = [
        (flow / "checkpoints" / "step_00000007", []),
        (flow / "checkpoints" / "step_00000014", []),
        (flow, []),
        (flow, ["sampler=heun"]),
        (flow, ["policy.sampler.angles.steps=2", "eval.n_action_steps=3"]),
        (flow, ["eval.seed=7"]),
        (flow, []),
    ]
    for source, words in asked:
        evaluate([source], [*short, *words])
    found = {p.parent.name: read(p.parent) for p in flow.rglob("result.json")}
    assert {name: (Path(r["checkpoint"]).name, r["seeds"][0]) for name, r in found.items()} == {
        "eval_step_7": ("step_00000007", 100_000), "eval_step_14": ("step_00000014", 100_000),
        "eval": ("step_00000020", 100_000), "eval_sampler_heun": ("step_00000020", 100_000),
        "eval_steps_2_n_action_steps_3": ("step_00000020", 100_000),
        "eval_step_20_episodes_1_seed_7": ("step_00000020", 7),
    }  # fmt: skip
    steps = {
        name: (r["acting"]["sampler"], r["acting"]["denoising_steps"], r["n_action_steps"]) for name, r in found.items()
    }
    assert steps["eval"] == ("euler", 10, 8) and steps["eval_sampler_heun"] == ("heun", 5, 8)
    assert steps["eval_steps_2_n_action_steps_3"] == ("euler", 2, 3)
    page = (flow / "eval_steps_2_n_action_steps_3" / "report.html").read_text()
    assert "      steps: 2\n" in page and "n_action_steps: 3" in page and "      steps: 10\n" not in page


def test_a_folder_with_another_result_is_refused_and_one_that_is_in_use_is_told(flow, tmp_path):
    short = [*PLAY, "eval.videos=0", f"output_dir={tmp_path}/out"]
    first = evaluate([flow], short)
    with pytest.raises(
        UserError, match=r"out holds the result of .*step_00000020.*: give another output_dir, or remove"
    ):
        evaluate([flow], [*short, "eval.goals=false", "sampler=heun"])
    assert read(tmp_path / "out")["per_seed"] == first["per_seed"] == evaluate([flow], short)["per_seed"]
    with (
        lock(tmp_path / "out", "this evaluation"),
        pytest.raises(UserError, match="out is in use by this evaluation"),
    ):
        evaluate([flow], short)
    (tmp_path / "out" / "result.json").write_text('{"checkpoint": "of an older polyarm"}')
    with pytest.raises(UserError, match="holds the result of of an older polyarm"):
        evaluate([flow], short)
    found = evaluate([flow], short[:-1], prefer=tmp_path / "out")  # a place that is only preferred is left alone
    assert "older" in (tmp_path / "out" / "result.json").read_text() and read(flow / "eval") == found


def test_the_command_in_a_result_does_it_again(home, tmp_path, monkeypatch):
    """Whether a user typed it or Python asked. Mutations: leave the weights, or the settings, out of it."""
    monkeypatch.chdir(tmp_path)
    typed = ["eval", str(home / "flow"), *PLAY, "eval.videos=0", "output_dir=a b"]
    assert main([*typed, "--json"]) == 0
    found = read("a b")
    assert shlex.split(found["command"]) == ["polyarm", *typed]
    assert abs(datetime.now().astimezone() - datetime.fromisoformat(found["date"])).total_seconds() < 3600
    asked = [*PLAY, "eval.videos=0", "sampler=heun", "output_dir=mixed"]
    first = evaluate([home / "flow", home / "diffusion"], asked, (0.25, 0.75))
    (tmp_path / "mixed").rename(tmp_path / "before")
    assert main(shlex.split(first["command"])[1:]) == 0
    again = read("mixed")
    assert {k: again[k] for k in ("per_seed", "identity", "command")} == {
        k: json.loads(json.dumps(first[k])) for k in ("per_seed", "identity", "command")
    }


def test_names_of_places_are_plain_and_differ(home):
    folders = [checkpoint.find(home / "flow")]
    wanted = lambda **settings: place.identity(folders, (1.0,), settings)
    names = [
        [p.name for p in place.places(folders, (1.0,), [word], wanted(**{key: 1}))]
        for word, key in (
            ("policy.sampler.limit=null", "policy.sampler.limit"),
            ("task.env_kwargs.file='../ä b=c,(d)'", "task.env_kwargs.file"),
            ("+policy.guidance=" + "9" * 300, "policy.guidance"),
            ("eval.videos=3", "nothing"),
        )
    ]
    assert [n[0] for n in names][0::3] == ["eval_limit_null", "eval"]
    for tried in names:
        assert len(set(tried)) == len(tried) and all(len(n) < 120 and not set(n) & set("/\\=,' ()[]") for n in tried)


def test_a_mixture_is_asked_for_by_words_and_says_every_part(home, tmp_path):
    folders = [checkpoint.find(home / name) for name in ("diffusion", "flow")]
    config = checkpoint.read_config(folders[0])

    def steps(*words):
        return len(load_policy(folders, config, words, [0.3, 0.7], torch.device("cpu")).sampler.angles) - 1

    own, heavy = 4, 10
    for words in (("output_dir=mix_sampler",), ("task.demos.path=policy.sampler.zarr",), ("eval.seed=1",), ()):
        assert steps(*words) == heavy, words
    for words in (("sampler=ddim",), ("policy.sampler.limit=1.0",), ("eval.seed=1", "policy.sampler.angles.steps=4")):
        assert steps(*words) == own, words
    found = evaluate(
        [home / "diffusion", home / "flow"], [*PLAY, "eval.videos=0", f"output_dir={tmp_path}/mix"], [0.3, 0.7]
    )
    assert found["weights"] == [0.3, 0.7] and len(found["parts"]) == len(found["trained_with"]) == 2
    assert found["acting"]["denoising_steps"] == heavy and found["network_evaluations"] == 2 * heavy
    page = (tmp_path / "mix" / "report.html").read_text()
    assert "part 2, weight 0.7" in page and "name: diffusion" in page and "name: flow" in page


def versions(folder, **new):
    spec = json.loads((folder / "spec.json").read_text())
    spec["versions"] |= new
    spec.pop("hash", None)
    (folder / "spec.json").write_text(json.dumps(spec))


def test_the_world_of_every_part_is_checked(home, flow, tmp_path, capsys):
    copy = flow / "checkpoints" / "step_00000020"
    versions(copy, env="PickPlace-v9", mujoco="1.0")
    words = [*PLAY, "eval.videos=0", f"output_dir={tmp_path}/out"]
    with pytest.raises(
        UserError, match="flow/checkpoints/step_00000020 come from PickPlace-v9, this world is PickPlace-v0.1"
    ):
        evaluate([home / "diffusion", flow], words, [0.5, 0.5])
    found = evaluate([home / "diffusion", flow], [*words, "eval.allow_other_versions=true"], [0.5, 0.5])
    said = capsys.readouterr().err
    assert found["trained_with"][1]["env"] == "PickPlace-v9" and found["versions"]["env"] == "PickPlace-v0.1"
    for line in ("learned from PickPlace-v9, this is PickPlace-v0.1", "learned from mujoco 1.0, this is "):
        assert line in said and any(line in note for note in found["notes"])


def test_only_seeds_that_nobody_demonstrated_are_fresh(flow, demos, tmp_path, capsys):
    """The store holds seeds 0 to 7."""
    task = lambda path: OmegaConf.create({"demos": {"path": str(path)}})
    assert demonstrated([task(demos)], [5, 6, 7, 8, 9]) == [5, 6, 7]
    assert demonstrated([task(demos)], [8, 9]) == []
    assert demonstrated([task(demos), task(tmp_path / "gone")], [8, 9]) is None
    assert [seeds_said({"n": 5, "demonstrated": d}) for d in ([], [5, 6], None)] == [
        "5 fresh seeds", "5 seeds (2 of them demonstrated)", "5 seeds (whether they were demonstrated is not known)",
    ]  # fmt: skip
    words = ["eval.workers=0", "eval.videos=0", "eval.episodes=2", "eval.seed=7", f"output_dir={tmp_path}/out"]
    assert evaluate([flow], words)["demonstrated"] == [7]
    assert "on 2 seeds (1 of them demonstrated), Wilson" in capsys.readouterr().err
    assert "2 seeds (1 of them demonstrated) solved" in (tmp_path / "out" / "report.html").read_text()


def test_failures_are_shown_first():
    """Among the clips, and among the energies when there are more than are drawn."""
    episodes = [still(seed, success=seed not in (5, 8)) for seed in range(10)]
    assert [p.outcome.seed for p in choose(episodes, 4)] == [5, 8, 0, 1]
    assert [p.outcome.seed for p in choose(episodes, 1)] == [5]
    assert choose(episodes, 0) == []
    curves = [(i not in (17, 19), np.full(3, float(i))) for i in range(20)]
    chart = energy(curves)
    assert [css for css, _ in chart.paths] == ["bad", "bad"] + ["ok"] * 10
    assert chart.legend == [("bad", "failed"), ("ok", "solved")]


def test_a_folder_that_cannot_be_written_is_said_before_anything_is_played(flow, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(run_module, "judge", broken)
    with pytest.raises(UserError, match="cannot write to .*file"):
        evaluate([flow], [*PLAY, f"output_dir={tmp_path}/file"])


def test_a_full_disk_is_a_sentence_and_keeps_what_was_there(tmp_path, monkeypatch):
    place.write_result(tmp_path, {"n": 1})

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="result.json cannot be written .No space left on device.: make room"):
        place.write_result(tmp_path, {"n": 2})
    assert read(tmp_path) == {"n": 1} and [p.name for p in tmp_path.iterdir()] == ["result.json"]
