"""A checkpoint from somebody else runs polyarm's own code with its settings, and nothing else, unless the user trusts it.

Every way in leaves a canary file if it works; none may appear. Mutations that turn it red: do not look into lists, or below
`policy`; believe a name that begins with polyarm, whatever it leads to; import a module to see what it has; offer functions of
every room; let env_id, expert or an interpolation pass; read a teacher's, a part's or a run's config.yaml without looking.
"""

import ast
import json
import os
import pickle
import shutil
import sys
import types
from pathlib import Path

import pytest
import torch
import yaml
from omegaconf import OmegaConf

import polyarm.trust
from polyarm.cli import main
from polyarm.config import CONFIGS, compose, options
from polyarm.encoders import backbone, language
from polyarm.policies import checkpoint
from polyarm.spec import UserError
from polyarm.train import fit
from polyarm.trust import require_trusted, trust, trusting

PLAY = ["eval.episodes=1", "eval.n_envs=1", "eval.workers=0", "eval.videos=0"]
REPO = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(settings, tmp_path_factory):
    return fit(settings(tmp_path_factory.mktemp("own") / "run", "train.steps=2", "train.log_every=2"))


@pytest.fixture(autouse=True)
def nothing_trusted(monkeypatch):
    monkeypatch.setattr(polyarm.trust, "_trusted", set())


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """The file that no way in may make. evil_module makes it when imported; evil.pkl when unpickled."""
    canary = tmp_path / "canary"
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "evil_module.py").write_text(f"open({str(canary)!r}, 'w')\nWorld = Policy = dict\n")
    (tmp_path / "path" / "evil.pkl").write_bytes(pickle.dumps(Touch(canary)))
    monkeypatch.syspath_prepend(str(tmp_path / "path"))
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    yield canary
    sys.modules.pop("evil_module", None)


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def given(run, tmp_path, change, canary):
    """A copy of the run's checkpoint, as somebody else would hand it over after a change to its configuration."""
    folder = tmp_path / "theirs"
    shutil.copytree(checkpoint.find(run), folder)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    text = change(config, f"touch {canary}")
    (folder / "config.yaml").write_text(text if isinstance(text, str) else yaml.safe_dump(config))
    return folder


def put(key, value):
    """A change: `value` at a dotted key; CMD in it is the command that makes the canary."""

    def change(config, command):
        node, names = config, key.split(".")
        for name in names[:-1]:
            node = node[name]
        node[names[-1]] = json.loads(json.dumps(value).replace("CMD", command).replace("PKL", _pickle(command)))

    return change


def _pickle(command):
    return str(Path(command.removeprefix("touch ")).parent / "path" / "evil.pkl")


SYSTEM = {"_target_": "os.system", "command": "CMD"}
WAYS = {
    "a policy": put("policy", SYSTEM),
    "a number": put("policy.horizon", SYSTEM),
    "a number of a network": put("policy.body.width", {"_target_": "subprocess.run", "args": ["sh", "-c", "CMD"]}),
    "a text": put("policy.name", {"_target_": "subprocess.getoutput", "cmd": "CMD"}),
    "a list": put("policy.sampler.angles", [1.0, [SYSTEM]]),
    "an argument by place": put("policy.horizon", {"_target_": "posix.system", "_args_": ["CMD"]}),
    "a setting that nothing takes": put("policy.anything", {"deep": {"deeper": [{"x": SYSTEM}]}}),
    "a partial": put("policy.encoder.state", {"_target_": "os.system", "_partial_": True}),
    "a part made later": put("policy.body.inner", {"_target_": "polyarm.policies.nets.ResidualMlp", "_recursive_": False, "x": SYSTEM}),
    "eval": put("policy.horizon", {"_target_": "builtins.eval", "_args_": ["__import__('os').system('CMD')"]}),
    "exec": put("policy.horizon", {"_target_": "builtins.exec", "_args_": ["import os; os.system('CMD')"]}),
    "an import": put("policy.horizon", {"_target_": "importlib.import_module", "name": "evil_module"}),
    "a run": put("policy.horizon", {"_target_": "runpy.run_module", "mod_name": "evil_module"}),
    "a module that acts when imported": put("policy._target_", "evil_module.Policy"),
    "a module that has nothing": put("policy._target_", "evil_module.nothing.at.all"),
    "a pickle": put("policy.horizon", {"_target_": "numpy.load", "file": "PKL", "allow_pickle": True}),
    "weights": put("policy.horizon", {"_target_": "torch.load", "f": "PKL", "weights_only": False}),
    "pandas": put("policy.horizon", {"_target_": "pandas.read_pickle", "filepath_or_buffer": "PKL"}),
    "yaml": put("policy.horizon", {"_target_": "yaml.unsafe_load", "stream": "!!python/object/apply:os.system ['CMD']"}),
    "a caller": put("policy.horizon", {"_target_": "functools.partial", "_args_": [{"_target_": "hydra.utils.get_method", "path": "os.system"}, "CMD"]}),
    "a finder": put("policy.sampler.solver", {"_target_": "hydra.utils.get_method", "path": "os.system"}),
    "a finder with its own words": put("policy.sampler.solver", {"_target_": "hydra.utils.get_method", "path": "polyarm.policies.generate.sample.euler", "_args_": ["os.system"]}),
    "a finder of a class": put("policy.sampler.solver", {"_target_": "hydra.utils.get_class", "path": "evil_module.Policy"}),
    "hydra": put("policy.horizon", {"_target_": "hydra.utils.instantiate", "config": {"_target_": "os.system", "command": "CMD"}}),
    "an operator": put("policy.horizon", {"_target_": "operator.methodcaller", "_args_": ["system", "CMD"]}),
    "through a module of ours": put("policy.horizon", {"_target_": "polyarm.config.os.system", "command": "CMD"}),
    "through the checkpoint": put("policy.horizon", {"_target_": "polyarm.policies.checkpoint.os.system", "command": "CMD"}),
    "through a room": put("policy.horizon", {"_target_": "polyarm.policies.nets.unet.torch.load", "f": "PKL", "weights_only": False}),
    "through a class": put("policy.horizon", {"_target_": "polyarm.policies.diffusion.DiffusionPolicy.__init__.__globals__.get"}),
    "what a room imports": put("policy.horizon", {"_target_": "polyarm.policies.nets.unet.partial", "_args_": [SYSTEM]}),
    "a function of ours": put("policy.horizon", {"_target_": "polyarm.cli.main", "arguments": ["collect"]}),
    "a save of ours": put("policy.horizon", {"_target_": "polyarm.policies.checkpoint.save"}),
    "our own instantiate": put("policy.horizon", {"_target_": "polyarm.config.make", "node": {"_target_": "os.system"}}),
    "our collector": put("policy.horizon", {"_target_": "polyarm.collect.collect", "env_id": "evil_module:World-v0"}),
    "a method of ours": put("policy.horizon", {"_target_": "polyarm.datasets.store.Store.create", "path": "x.zarr"}),
    "a private name": put("policy.horizon", {"_target_": "polyarm.policies.onestep._load", "path": "x"}),
    "no name": put("policy.horizon", {"_target_": SYSTEM}),
    "a list for a name": put("policy.horizon", {"_target_": ["os", "system"]}),
    "a name with more": put("policy.horizon", {"_target_": "polyarm.policies.nets:os.system"}),
    "a world": put("task.env_id", "evil_module:World-v0"),
    "our world after a module": put("task.env_id", "evil_module:polyarm/PickPlace-v0"),
    "a world of gymnasium": put("task.env_id", "GymV26Environment-v0"),
    "a world's setting": put("task.env_kwargs.max_steps", SYSTEM),
    "an expert": put("task.expert", "os.system"),
    "an expert of ours": put("task.expert", "polyarm.sim.experts.episode.play"),
    "demonstrations": put("task.demos", {"_target_": "os.system", "command": "CMD", "path": "x", "fields": None}),
    "an evaluation's number": put("eval.episodes", SYSTEM),
    "the root": put("_target_", "os.system"),
    "a merged key": lambda config, command: yaml.safe_dump(config) + f"\nx: &x {{_target_: os.system, command: '{command}'}}\ny: {{<<: *x}}\n",
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_no_way_in(run, tmp_path, canary, capsys, way):
    theirs = given(run, tmp_path, WAYS[way], canary)
    before = sorted(p.name for p in tmp_path.rglob("*"))
    assert main(["eval", str(theirs), *PLAY]) == 2
    said = capsys.readouterr().err.splitlines()
    assert "blocked" in said[-1] and str(theirs) in said[-1], said
    assert not canary.exists() and "evil_module" not in sys.modules
    assert sorted(p.name for p in tmp_path.rglob("*")) == before


VALUES = ["${oc.env:SECRET_TOKEN}", "${oc.env:NO_SUCH,x}", "${now:%Y}", "a ${task.name}", "${oc.decode:'[1]'}"]


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("key", ["task.name", "policy.name", "task.demos.path", "eval.seed", "output_dir"])
def test_nothing_of_this_machine_is_filled_in(run, tmp_path, canary, capsys, key, value):
    theirs = given(run, tmp_path, put(key, [value] if key == "eval.seed" else value), canary)
    if "env" in value and key == "task.name":  # written so that the text of the file has no ${
        text = (theirs / "config.yaml").read_text()
        (theirs / "config.yaml").write_text(text.replace(value, f'"{value}"'.replace("$", r"\x24")))
        assert "${" not in (theirs / "config.yaml").read_text()
    assert main(["eval", str(theirs), *PLAY]) == 2
    said = capsys.readouterr().err
    assert key in said and "holds values only" in said and "hunter2" not in said
    assert not list(tmp_path.rglob("result.json"))


TAGS = ["!!python/object/apply:os.system ['CMD']", "!!python/name:os.system", "!!python/module:evil_module", "!!python/object/new:evil_module.Policy []"]  # fmt: skip


@pytest.mark.parametrize("tag", TAGS)
def test_yaml_makes_no_objects(run, tmp_path, canary, capsys, tag):
    change = lambda config, command: yaml.safe_dump(config) + "\nx: " + tag.replace("CMD", command)
    theirs = given(run, tmp_path, change, canary)
    assert main(["eval", str(theirs), *PLAY]) == 2
    assert "config.yaml is no yaml" in capsys.readouterr().err and not canary.exists()


@pytest.mark.parametrize("way", ["a number", "a module that acts when imported", "through the checkpoint", "a world"])
def test_no_way_in_as_a_teacher_or_as_a_part(run, words, tmp_path, canary, capsys, way):
    theirs = given(run, tmp_path, WAYS[way], canary)
    student = words(tmp_path / "student", "policy=consistency", f"policy.teacher={theirs}")
    for command in (
        ["train", *student],
        ["eval", str(run), str(theirs), *PLAY],
        ["eval", str(theirs), str(run), *PLAY],
    ):
        assert main(command) == 2
        assert "blocked" in capsys.readouterr().err.splitlines()[-1] and not canary.exists()
    assert not (tmp_path / "student" / "checkpoints").exists()


def test_a_teacher_is_loaded_by_the_user_only(run, settings, tmp_path, canary):
    """A student's checkpoint names a teacher: neither acting, nor teaching in its turn, loads that."""
    theirs = given(run, tmp_path, WAYS["a number"], canary)
    student = fit(settings(tmp_path / "student", "policy=consistency", f"policy.teacher={run}", "train.steps=2"))
    folder = checkpoint.find(student)
    text = (folder / "config.yaml").read_text()
    assert f"teacher: {run}" in text
    (folder / "config.yaml").write_text(text.replace(f"teacher: {run}", f"teacher: {theirs}"))
    assert main(["eval", str(student), *PLAY]) == 0
    policy = checkpoint.load(student)
    obs = {s.name: torch.zeros(1, policy.n_obs_steps, *s.shape) for s in policy.obs_space.streams}
    policy.encode(obs, ())
    assert not policy._taught_by


@pytest.mark.parametrize("where", ["config.yaml", "checkpoints/step_00000002/config.yaml"])
@pytest.mark.parametrize("way", ["a number", "a module that acts when imported", "an evaluation's number"])
def test_no_way_in_by_resuming(run, words, tmp_path, canary, capsys, way, where):
    mine = tmp_path / "mine"
    shutil.copytree(run, mine, symlinks=True)
    theirs = given(run, tmp_path, WAYS[way], canary)
    if where != "config.yaml":
        (mine / "config.yaml").unlink()
    shutil.copy(theirs / "config.yaml", mine / where)
    assert main(["train", *words(mine, "train.steps=3", "train.log_every=2")]) == 2
    assert "blocked" in capsys.readouterr().err.splitlines()[-1] and not canary.exists()


def test_a_training_state_is_not_unpickled(run, words, tmp_path, canary, capsys):
    mine = tmp_path / "mine"
    shutil.copytree(run, mine, symlinks=True)
    folder = checkpoint.find(mine)
    torch.save({"step": Touch(canary)}, folder / "train_state.pt")
    assert main(["train", *words(mine, "train.steps=3", "train.log_every=2")]) == 2
    assert "train_state.pt cannot be read" in capsys.readouterr().err and not canary.exists()
    shutil.copy(canary.parent / "path" / "evil.pkl", folder / "model.safetensors")
    assert main(["eval", str(mine), *PLAY]) == 2
    assert "model.safetensors cannot be read" in capsys.readouterr().err and not canary.exists()


OWN = """
import os
from polyarm.policies.diffusion import DiffusionPolicy
from polyarm.policies.generate.sample import euler

class Mine(DiffusionPolicy):
    pass

def mine(*a, **k):
    return euler(*a, **k)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of the user's own, by a name that no other test uses."""
    (tmp_path / "lib").mkdir()
    name = f"own_{abs(hash(str(tmp_path)))}"
    (tmp_path / "lib" / f"{name}.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path / "lib"))
    return name


def test_what_the_user_trusts_works_and_no_more(run, tmp_path, canary, capsys, own):
    """Mutation: let a trusted module's imports pass; import what is not trusted to say that it is blocked."""
    theirs = given(run, tmp_path, put("policy._target_", f"{own}.Mine"), canary)
    assert main(["eval", str(theirs), *PLAY]) == 2
    assert f"or --trust {own} with" in capsys.readouterr().err and own not in sys.modules
    assert main(["eval", str(theirs), *PLAY, "--trust", own]) == 0
    assert main(["eval", str(run), str(theirs), *PLAY, "--trust", own]) == 0
    shutil.rmtree(theirs)
    theirs = given(run, tmp_path, put("policy.horizon", {"_target_": f"{own}.os.system", "command": "CMD"}), canary)
    assert main(["eval", str(theirs), *PLAY, "--trust", own]) == 2
    assert "blocked" in capsys.readouterr().err and not canary.exists()
    shutil.rmtree(theirs)
    lazy = types.ModuleType("lazy")
    lazy.__getattr__ = lambda name: canary.touch()  # a package that imports its parts when they are asked for
    sys.modules[own].lazy = lazy
    theirs = given(run, tmp_path, put("policy._target_", f"{own}.lazy.anything"), canary)
    assert main(["eval", str(theirs), *PLAY, "--trust", own]) == 2
    assert "blocked" in capsys.readouterr().err and not canary.exists()
    shutil.rmtree(theirs)
    theirs = given(run, tmp_path, put("policy._target_", f"{own}2.Mine"), canary)
    assert main(["eval", str(theirs), *PLAY, "--trust", own]) == 2
    assert "blocked" in capsys.readouterr().err


def test_what_the_user_says_is_the_users(run, tmp_path, own):
    """A setting on the command line, and what the yaml of a folder of their own names, need no trust by name."""
    out = f"output_dir={tmp_path}/out"
    assert main(["eval", str(run), f"policy.sampler.solver._target_={own}.mine", out, *PLAY]) == 0
    folder = tmp_path / "configs"
    (folder / "policy").mkdir(parents=True)
    (folder / "policy" / "mine.yaml").write_text(f"_target_: {own}.Mine\nlaw: {{_target_: polyarm.os.system}}\n")
    (folder / "broken.yaml").write_text("a: [")
    config = OmegaConf.create({"policy": {"_target_": f"{own}.Mine"}})
    with pytest.raises(UserError, match="blocked"):
        require_trusted(config, "theirs")
    with trusting([], [folder]):
        require_trusted(config, "theirs")
        for name in (f"{own}.mine", f"{own}.Mine.start", "polyarm.os.system"):
            with pytest.raises(UserError, match="blocked"):
                require_trusted(OmegaConf.create({"policy": {"_target_": name}}), "theirs")
    require_trusted(
        OmegaConf.create({"policy": {"_target_": f"{own}.mine"}}), "a run", OmegaConf.create({"a": {"_target_": f"{own}.mine"}, "task": {}})
    )  # fmt: skip


def test_a_run_of_the_users_own_goes_on_without_a_word(words, tmp_path, own):
    mine = words(tmp_path / "run", f"policy._target_={own}.Mine", "train.steps=2", "train.log_every=2")
    assert main(["train", *mine]) == 0
    assert main(["train", *mine[:-2], "train.steps=3", "train.log_every=2"]) == 0


@pytest.mark.parametrize("name", ["polyarm", "polyarm.config", "", "a b", "mine/regression.py", "--weights"])
def test_what_cannot_be_trusted_is_said(name):
    with pytest.raises(UserError, match="--trust"):
        trust(name)


def test_everything_of_ours_may_be_named():
    """All our yaml in its own combinations, and what it and the docs say may stand there instead. Mutation: leave out a room."""
    for policy in options("policy"):
        require_trusted(compose([f"policy={policy}"]), policy)
    for group in ("task", "body", "encoder", "experiment"):
        for name in options(group):
            require_trusted(compose([f"{group}={name}"]), name)
    for file in sorted((CONFIGS / "sampler").glob("*.yaml")):
        node = yaml.safe_load(file.read_text().replace("${", "{"))
        require_trusted(OmegaConf.create({"policy": {"sampler": node}}), file.stem)
    kernel = "polyarm.policies.generate"
    for name in (
        *(f"{kernel}.forms.{law}" for law in ("Beta", "LogitNormal", "LogNormal", "Uniform", "LogLogistic")),
        *(f"{kernel}.angle.{grid}" for grid in ("ddim_trailing", "karras", "linear_sigma", "vp", "karras_line")),
        *(f"{kernel}.sample.{solver}" for solver in ("in_sigma", "lms", "heun_step", "dpm2_step")),
        *("polyarm.policies.nets.unet.Unet1d", "polyarm.policies.nets.Unet1d", "polyarm.encoders.state.State"),
    ):
        require_trusted(OmegaConf.create({"policy": {"x": {"_target_": name}}}), name)
    line = {"_target_": "hydra.utils.get_method", "path": "polyarm.policies.generate.angle.karras_line"}
    require_trusted(OmegaConf.create({"policy": {"line": line}}), "an older checkpoint with sampler=karras")


def test_worlds_that_this_process_has_are_no_news(own):
    """A world whose module is imported already needs no word; one that would be imported does. Mutation: pass every name."""
    from gymnasium import register, registry

    task = lambda world: OmegaConf.create({"task": {"env_id": world}})
    register("theirs/Loaded-v0", f"{__name__}:World")
    register("theirs/New-v0", f"{own}:World")
    require_trusted(task("theirs/Loaded-v0"), "theirs")
    require_trusted(task("polyarm/NotYet-v0"), "theirs")
    for world in ("theirs/New-v0", "theirs/None-v0", "CartPole-v1", f"{own}:theirs/New-v0", ["x"], 3):
        with pytest.raises(UserError, match="blocked"):
            require_trusted(task(world), "theirs")
    trust(own)
    require_trusted(task("theirs/New-v0"), "theirs")
    require_trusted(task(f"{own}:theirs/New-v0"), "theirs")
    assert own not in sys.modules
    del registry["theirs/Loaded-v0"], registry["theirs/New-v0"]


def test_a_checkpoint_downloads_and_unpickles_nothing(monkeypatch):
    """Networks of timm and transformers, asked for by a checkpoint. Mutations: let `download` or `pretrained` through."""
    asked = []

    class Model:
        model_type = "other"

        @classmethod
        def from_pretrained(cls, name, **k):
            asked.append(k)
            raise OSError("not here")

    fake = types.SimpleNamespace(AutoConfig=Model, AutoModel=Model, AutoTokenizer=Model, CLIPTextModel=Model)
    monkeypatch.setitem(sys.modules, "transformers", fake)
    with pytest.raises(UserError), backbone.without_pretrained():
        language._text_model("nobody/evil", download=True)
    with pytest.raises(UserError):
        language._text_model("nobody/evil", download=True)
    assert asked == [{"local_files_only": x, "trust_remote_code": False} for x in (True, False)]
    pytest.importorskip("timm")
    for name in ("hf-hub:nobody/evil", "hf_hub:nobody/evil", "local-dir:/tmp/evil", "resnet18.x:hf-hub:nobody/evil"):
        with pytest.raises(UserError), backbone.without_pretrained():
            backbone._network(name, True)


SOURCES = [f for d in ("policies", "encoders", "datasets", "sim", "real_robot", "eval", "src/polyarm") for f in (REPO / d).rglob("*.py")]  # fmt: skip


def test_no_source_unpickles_or_unpacks():
    """`torch.load` says weights_only, `np.load` no allow_pickle; nothing is extracted. Mutation: take weights_only away."""
    assert len(SOURCES) > 50
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module in (
                "pickle",
                "dill",
                "joblib",
                "cloudpickle",
                "marshal",
            ):
                assert not {a.name for a in node.names} & {"load", "loads", "Unpickler"}, file
            if not isinstance(node, ast.Call):
                continue
            call, given_ = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
            assert call.rpartition(".")[2] not in ("extractall", "unpack_archive", "unsafe_load", "full_load"), file
            assert call not in ("eval", "exec", "pickle.load", "pickle.Unpickler"), file
            assert call != "pickle.loads" or ast.unparse(node) == "pickle.loads(pickle.dumps(error))", file
            assert call != "torch.load" or given_.get("weights_only") == "True", file
            assert given_.get("allow_pickle", "False") == "False", file
