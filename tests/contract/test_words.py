"""Words are parsed, not searched: the shell's word is the value, an existing path is a path, and what is odd is one sentence.

Mutations that turn it red: split places from settings by `"=" in word`; hand a path to hydra unquoted; quote what the user has
quoted; take `sampler=euler,heun` for a value; leave `~key` to hydra's sweeper; number the jobs of a second sweep from 0 into the
first one's folders; print a command without shlex.
"""

import shlex
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from polyarm.choices import adding, find, options
from polyarm.cli import COMMANDS, main
from polyarm.config import compose, hydra, override, read_yaml, write_yaml
from polyarm.grammar import hydra_word, parse, setting
from polyarm.spec import UserError
from polyarm.sweep import Sweep, _places
from polyarm.words import Takes
from polyarm.words import parse as tell_apart

REPO = Path(__file__).parents[2]
ODD = [
    "lr=0.1", "läufe (1)", "it's, [so] {x}", "a=b=c", "~tilde", "x & y;z", "sampler=ddpm", "日本", "a,b", " spaces ", "back\\slash",
    "ends\\", "dollar$x", 'double"quote', "'single'", "2024_01_01", "choice(1,2)", "tab\there", "#hash", "%percent", "@at", "a:b",
]  # fmt: skip
RUN = Takes(place="runs", weights=True)


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("key", ["output_dir", "task.demos.path", "collect.path"])
def test_a_path_is_what_the_shell_said(key, odd):
    path = f"/runs/{odd}"
    word = f"{key}={path}"
    config = compose([word])
    assert OmegaConf.select(config, key) == path
    assert OmegaConf.select(override(config, [word]), key) == path, "and at evaluation"
    assert parse([setting(key, odd)], config)[0].value() == odd, "what polyarm prints means the same"
    assert hydra_word(hydra_word(word, config), config) == hydra_word(word, config), "a word that is hydra's stays"


@pytest.mark.parametrize(
    "word, value",
    [
        ("output_dir='/a b/lr=1'", "/a b/lr=1"),
        ('output_dir="/a,b"', "/a,b"),
        ("output_dir=runs/${train.seed}", "runs/7"),
        ("output_dir=~/runs", str(Path.home() / "runs")),
        ("policy.teacher=/runs/lr=0.1, (2)", "/runs/lr=0.1, (2)"),
        ("policy.teacher=null", None),
    ],
)
def test_quotes_references_and_home_are_understood(word, value):
    config = compose(["policy=consistency", "train.seed=7", word])
    assert OmegaConf.select(config, word.partition("=")[0]) == value


@pytest.mark.parametrize("odd", [*ODD, "train.lr=0.1", "-dash", "--weights"])
def test_an_existing_path_is_a_place(odd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / odd).mkdir()
    if odd == "--weights":  # an option of that name comes first; ./--weights is the path
        odd = "./--weights"
    words = tell_apart("eval", [odd, "train.lr=0.2", "~eval.pick"], RUN)
    assert (words.places, words.settings) == ([odd], ["train.lr=0.2", "~eval.pick"])


@pytest.mark.parametrize(
    "word, place",
    [("outputs/lr=0.1", True), ("läufe=1", True), ("a b=1", True), ("./x=1", True), ("eval.pick=2", False), ("+a.b=1", False),
     ("sampler@policy.sampler=ddpm", False), ("sampler=ddpm", False), ("~eval.pick", False), ("~/runs/x", True)],
)  # fmt: skip
def test_a_path_that_is_not_there_is_told_from_a_setting(word, place):
    words = tell_apart("eval", [word], RUN)
    assert bool(words.places) == place and bool(words.settings) != place


def test_options_are_told_apart(tmp_path):
    words = tell_apart(
        "eval",
        ["--configs", str(tmp_path), "--trust=x.y", "--trust", "z", "eval.pick=2", "a/b", "--weights", "0.5", "-0.5"],
        RUN,
    )  # fmt: skip
    assert (words.places, words.weights, words.settings) == (["a/b"], [0.5, -0.5], ["eval.pick=2"])
    assert words.trusted == ["x.y", "z"] and words.configs == [tmp_path]


@pytest.mark.parametrize(
    "raw, said",
    [
        (["a", "--weights", "x"], "'x' is no number"),
        (["a", "--weights", "nan"], "finite"),
        (["a", "--confgs", "x"], "--configs, --trust, --weights"),
        (["a", "--configs", "no/such"], "--configs no/such is no folder"),
        (["a", "--configs"], "is no folder"),
        (["a", "--trust", "rm -rf"], "dotted name of a module"),
        (["a", "--trust"], "dotted name of a module"),
    ],
)
def test_odd_options_are_one_sentence(raw, said):
    with pytest.raises(UserError, match=said):
        tell_apart("eval", raw, RUN)


def test_the_line_that_goes_on_is_for_a_shell(tmp_path):
    words = tell_apart("train", ["policy=flow", "task.streams=[a, b]"], Takes())
    line = words.line(setting("output_dir", f"{tmp_path}/lr=0.1 (2)"))
    assert shlex.split(line)[2:] == ["policy=flow", "task.streams=[a, b]", f"output_dir={tmp_path}/lr=0.1 (2)"]
    assert words.gives("policy") and not words.gives("output_dir")


@pytest.mark.parametrize(
    "words, key, value",
    [
        (["task.streams=[joint_pos,cube]"], "task.streams", ["joint_pos", "cube"]),
        (["sampler=heun"], "policy.sampler.solver._target_", "polyarm.policies.generate.sample.heun"),
        (["+task.env_kwargs.seed_of_mine=3"], "task.env_kwargs.seed_of_mine", 3),
        (["++policy.sampler.limit=2.0"], "policy.sampler.limit", 2.0),
        (["~task.scales"], "task.scales", None),
        (["train.steps=1e4"], "train.steps", 10_000),
        (["policy.sampler.limit=null"], "policy.sampler.limit", None),
        (["+task.env_kwargs.x=[a=1, 'b,c']"], "task.env_kwargs.x", ["a=1", "b,c"]),
        (["data.constant=centre", "data.constant=refuse"], "data.constant", "refuse"),
    ],
)
def test_words_mean_at_evaluation_what_they_mean_in_training(words, key, value):
    base = ["task=kitchen"] if words == ["~task.scales"] else []
    for config in (compose([*base, *words]), override(compose(base), words)):
        found = OmegaConf.select(config, key)
        assert found == value and type(found) is type(value) or OmegaConf.to_container(found) == value


@pytest.mark.parametrize(
    "word, said",
    [
        ("eval.nope=1", "unknown setting 'eval.nope'"),
        ("+eval.nope=1", "unknown setting 'eval.nope'"),
        ("+eval.pick=2", "without the +"),
        ("~eval.nope", "unknown setting 'eval.nope'"),
        ("~eval.pick", "eval.pick has no value"),
        ("eval.pick=1,2", "several values"),
        ("sampler=heunn", "did you mean 'heun'"),
        ("policy=diffusion", "several files"),
        ("eval.pick=[", "cannot be read"),
        ("eval.pick=${nope}", "nope"),
        ("task=null", "one of kitchen"),
        ("eval=5", "eval=5"),
    ],
)
def test_a_bad_word_at_evaluation_is_one_sentence(word, said):
    with pytest.raises(UserError) as refused:
        override(compose([]), [word])
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_choices_of_the_users_folders_are_choices(tmp_path, capsys):
    folder = tmp_path / "my [own] (yaml), 1"
    (folder / "task").mkdir(parents=True)
    (folder / "task" / "mine.yaml").write_text(
        OmegaConf.to_yaml(compose([]).task).replace("name: pick_place", "name: mine")
    )
    with adding([folder]):
        assert "mine" in options("task") and find("task", "mine").parent.parent == folder
        assert compose(["task=mine"]).task.name == "mine"
        assert override(compose([]), ["task=mine"]).task.name == "mine"
        with pytest.raises(UserError, match=f"known are {', '.join(options('task'))}"):
            compose(["task=mne2"])
    assert "mine" not in options("task"), "another command does not know them"
    assert main(["train", "--help", "--configs", str(folder)]) == 0
    assert "mine" in capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_its_choices(name, capsys):
    assert main([name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"usage: polyarm {name}" in shown
    assert all(choice in shown for group in COMMANDS[name].groups for choice in options(group))
    assert ("--configs DIR" in shown) == COMMANDS[name].takes.settings


def sweep(*words, folder):
    return Sweep.of([*words, f"hydra.sweep.dir={folder}"])


@pytest.mark.parametrize(
    "words, names",
    [
        (["train.seed=0,1", "task.streams=[joint_pos,cube]"], ["train.seed=0", "train.seed=1"]),
        (["task.streams=[joint_pos],[joint_pos,cube]"], ["task.streams=[joint_pos]", "task.streams=[joint_pos,cube]"]),
        (["sampler=euler,heun"], ["sampler=euler", "sampler=heun"]),
        (["sampler=glob(h*)", "train.lr=1e-4,1e-3"], ["train.lr=0.0001", "train.lr=0.001"]),
        (["policy=flow,beso", "train.seed=range(0,2)"],
         ["policy=flow train.seed=0", "policy=flow train.seed=1", "policy=beso train.seed=0", "policy=beso train.seed=1"]),
        (["train.lr=choice(0.001,0.01)", "~train.grad_clip", "+train.grad_clip=null"], ["train.lr=0.001", "train.lr=0.01"]),
        (["task.demos.path=/a b/x.zarr,/c(1)/y.zarr"], ["task.demos.path='/a b/x.zarr'", "task.demos.path='/c(1)/y.zarr'"]),
    ],
)  # fmt: skip
def test_a_sweep_is_what_hydra_sweeps(words, names, tmp_path):
    words = [w for w in words if "grad_clip" not in w]
    found = sweep(*words, folder=tmp_path / "s (1)")
    assert list(found.jobs) == [f"job {i} ({name})" for i, name in enumerate(names)]
    assert list(found.jobs.values()) == [str(tmp_path / "s (1)" / str(i)) for i in range(len(names))]


@pytest.mark.parametrize(
    "words, said",
    [
        (["train.lr=1e-3,-1"], "job 1 (train.lr=-1): train.lr=-1: give"),
        (["policy=flow,flwo"], "job 1 (policy=flwo): unknown policy 'flwo'"),
        (["train.seed=0,1", "train.stps=3"], "job 0 (train.seed=0): unknown setting 'train.stps'"),
        (["train.seed=0,1", "output_dir=x"], "one folder for 2 jobs"),
        (["train.lr=interval(0,1)"], "no end of values"),
        (["sampler=glob(zz*)"], "sweep of nothing"),
        (["train.seed=0,1", "~policy.nope"], "unknown setting 'policy.nope'"),
        (["train.seed=[0,"], "cannot be read"),
    ],
)
def test_a_bad_job_is_one_sentence_before_the_first_starts(words, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "-m", *words]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_setting_left_out_is_left_out_of_every_job(tmp_path):
    found = sweep("train.seed=0,1", "~task.env_kwargs.shadows", folder=tmp_path)
    assert found.dropped == ("task.env_kwargs.shadows",) and len(found.jobs) == 2
    with hydra() as h:
        from polyarm.config import settle

        job = settle(h.compose(["train.seed=0"]), h.plain(), found.dropped)
    assert "shadows" not in job.task.env_kwargs


def test_another_sweep_takes_folders_of_its_own_and_the_same_goes_on(tmp_path):
    first = [compose([f"train.seed={i}"]) for i in (0, 1)]
    assert _places(tmp_path, first) == [f"{tmp_path}/0", f"{tmp_path}/1"]
    for i, config in enumerate(first):
        (tmp_path / str(i)).mkdir()
        write_yaml(tmp_path / str(i) / "config.yaml", config)
    assert _places(tmp_path, first[::-1]) == [f"{tmp_path}/1", f"{tmp_path}/0"]
    longer = [compose([f"train.seed={i}", "train.steps=7"]) for i in (1, 2)]
    assert _places(tmp_path, longer) == [f"{tmp_path}/1", f"{tmp_path}/2"]


def test_hydra_within_hydra_leaves_the_outer_one(tmp_path):
    from hydra.core.global_hydra import GlobalHydra

    with hydra() as h:
        outer = GlobalHydra.instance().hydra
        compose(["train.seed=3"])
        assert GlobalHydra.instance().hydra is outer and h.plain().train.seed == 0


@pytest.mark.parametrize(
    "content", [b"", b"- 1\n- 2\n", b"a: [1, 2\n", b"a: b: c", b"\xff\xfe\x00bad", b"{", b"just words", b"a: ${"]
)
def test_a_damaged_yaml_is_one_sentence_with_its_name(content, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_bytes(content)
    with pytest.raises(UserError) as refused:
        OmegaConf.to_container(read_yaml(file), resolve=True)
    assert str(file) in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("share", [0.1, 0.4, 0.7, 0.95])
def test_a_configuration_that_was_cut_off_is_one_sentence(share, tmp_path):
    file = tmp_path / "config.yaml"
    write_yaml(file, compose([]))
    text = file.read_text()
    file.write_text(
        text[: text.index("\neval:" if share > 0.9 else "\ntrain:")] if share > 0.5 else text[: int(share * len(text))]
    )
    with pytest.raises(UserError) as refused:
        read_yaml(file)
    assert str(file) in str(refused.value) and "\n" not in str(refused.value)


def test_a_yaml_is_written_at_once_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "some.yaml"
    write_yaml(file, OmegaConf.create({"name": "läufe", "path": "a=b: [c]"}))
    assert read_yaml(file) == {"name": "läufe", "path": "a=b: [c]"}
    synced = []
    monkeypatch.setattr("polyarm.config.os.fsync", lambda fd: synced.append(fd))
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError):
        write_yaml(file, OmegaConf.create({"name": "new"}))
    assert synced and read_yaml(file).name == "läufe", "what was there stays until the new one is whole"


LINES = [
    line.split("  #")[0].strip().strip("`")
    for page in ("README.md", "docs/policies.md", "docs/tasks.md", "docs/results.md", "docs/new_policy.md")
    for line in (REPO / page).read_text().splitlines()
    if line.startswith("polyarm ") and "..." not in line
]


@pytest.mark.parametrize("line", LINES)
def test_every_command_of_the_docs_is_one(line):
    command, *raw = shlex.split(line)[1:]
    raw = [w for w in raw if w not in ("--configs", "mine", "policy=regression")]
    words = tell_apart(command, raw, COMMANDS[command].takes)
    if command in ("train", "collect", "demo"):
        assert Sweep.of(words.settings).jobs if words.switches else compose(words.settings)
    elif command == "eval":
        assert words.places and all(not w.startswith("--") for w in words.places)
