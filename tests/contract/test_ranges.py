"""Every setting has a range as well as a type: none of these words trains, none ends in a traceback, each is one sentence.

Mutations that turn it red: take a rule out of `RANGES` or `POLICY`; let `number` take inf (`above <= value <= below`); count `true` as 1; check after the
folder is claimed; let `_Made` catch TypeError alone.
"""

import pytest
from omegaconf import OmegaConf

from polyarm.cli import main
from polyarm.config import SECTIONS, compose, make, override
from polyarm.ranges import BENCH, POLICY, RANGES
from polyarm.spec import UserError

WORDS = """
train.steps=0 train.steps=-5 train.steps=1e30 train.steps=1.5 train.steps=many train.steps=null train.steps=
train.steps=[5] train.steps=true train.steps=nan train.steps=inf train.grad_clip=inf data.ram_gib=inf train.lr=-1
train.lr=0 train.lr=nan train.lr=fast train.lr=1e30 train.lr=[1 train.lr={a:1} train.betas=[0.9]
train.betas=[0.9,0.99,0.999] train.betas=[1.0,0.9] train.betas=[-0.1,0.9] train.betas=0.9 train.betas=[a,b]
train.betas=0.9,0.99 train.betas=null train.seed=-1 train.seed=1e12 train.seed=0,1 train.threads=0 train.log_every=0
train.log_every=-3 train.val_every=-1 train.val_batches=0 train.checkpoint_every=-1 train.grad_clip=0
train.ema_decay=2 train.ema_decay=1 train.ema_power=-1 train.warmup_steps=-1 train.batch_size=0 train.batch_size=1e12
train.weight_decay=-1 train.rollout_every=-1 train.rollout_episodes=0 train.resume=maybe train.device=tpu
train.mixed_precision=fp8 data.val_ratio=-1 data.val_ratio=1 data.num_workers=-1 data.seed=-1 data.ram_gib=-1
data.pad_after=some data.pad_after=-1 data.constant=ignore data.max_train_episodes=0 eval.episodes=0 eval.seed=-1
eval.n_envs=0 eval.workers=-1 eval.workers=many eval.n_action_steps=0 eval.pick=0 eval.videos=-1 eval.device=gpu
eval.threads=0 eval.ahead=-1 eval.ahead=1.5 eval.ahead=null eval.latency_ms=-1 eval.latency_ms=soon eval.latency_ms=nan
eval.latency_ms=[5] eval.latencies_ms=5 eval.latencies_ms=null eval.latencies_ms=[-1] eval.latencies_ms=[5,5]
eval.latencies_ms=[auto] eval.latencies_ms=[inf] eval.goals=2 collect.episodes=0 collect.seed=-1 collect.workers=0 collect.path=5 task.streams=[]
task.streams=cube task.streams=[cube,cube] task.streams=[1] task.streams=[nope] task.env_id=null task.env_id=
task.measure=foo task.demos.path=null task.demos.path=2024 task.demos=5 task.obs_scale=log task.action_scale=5
task.env_kwargs=5 task.name=null task.expert=5 ~task.streams ~task ~policy ~train ~train.steps ~output_dir policy=null
policy=5 task=null train=5 policy.name=7 output_dir=2024 output_dir= output_dir=null output_dir=true =5 train.=5
.steps=5 train..steps=5 train.steps.x=5 trän=5 +train.nope=1 nope=1 nope/x=1 hydra.nope=1 train.steps=choice(1,2)
train.steps=${nope} train.lr=${oc.env:POLYARM_NOPE} policy.horizon=0 policy.horizon=1.5 policy.n_obs_steps=0
policy.n_action_steps=0 policy.n_action_steps=99 policy.body.width=-3 policy.body.width=null policy.body.width=1e12
policy.body.blocks=0 policy.body.expand=0 +policy.body.dropout=1 +policy.body.dropout=-0.5 +policy.body.nope=3
policy.sampler.limit=-1 policy.sampler.limit=0 policy.sampler.angles.steps=0 policy.sampler.angles.steps=lots
policy.sampler=null policy.body=5 policy.form=null policy.form.law=null ~policy.horizon policy._target_=nope
policy._target_=os.system policy.form._target_=subprocess.run policy.form.predict=5 policy.form.condition_weight=-1
sampler=ddpm
"""
BAD = WORDS.split()
TOGETHER = """
body=transformer policy.body.heads=3 ; body=transformer policy.body.width=5 policy.body.heads=1 ; body=unet policy.body.down_dims=[]
body=unet policy.body.down_dims=8 ; body=unet policy.body.kernel_size=4 ; body=unet policy.body.clock_dim=5
policy=beso policy.guidance=nan ; policy=beso policy.form.sigma_min=100 ; policy=beso policy.goal_steps=-1
policy=seed policy.n_chunks=0 ; policy=seed policy.memory.heads=7 ; policy=ebt policy.descent.steps=0
policy=ebt policy.descent.noise=[1] ; policy=ebt policy.descent.momentum=1 ; policy=shortcut policy.objective.finest=100
policy=meanflow policy.span_width=1 ; policy=diffusion policy.form.schedule.steps=0
policy=diffusion policy.sampler.angles.steps=1000
"""
TOGETHER = [line.split() for line in TOGETHER.replace("\n", " ; ").split(" ; ") if line.strip()]


@pytest.mark.parametrize("words", [*([word] for word in BAD), *TOGETHER], ids=" ".join)
def test_a_bad_word_is_one_sentence(words, demos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = [] if any("demos" in w or w.startswith("~task") for w in words) else [f"task.demos.path={demos}"]
    assert main(["train", "train.device=cpu", *data, *words]) == 2
    error = capsys.readouterr().err.splitlines()
    assert error[-1].startswith("polyarm: ") and not any("Traceback" in line for line in error)
    assert not list(tmp_path.iterdir()), "nothing is written"


@pytest.mark.parametrize("word", [w for w in BAD if w.startswith(("train.s", "eval.", "data.", "task.m", "policy.s"))])
def test_and_at_evaluation_too(word):
    with pytest.raises(UserError):
        override(compose([]), [word])


@pytest.mark.parametrize(
    "word, value",
    [
        ("train.steps=1e4", 10_000),
        ("train.steps=200.0", 200),
        ("train.grad_clip=null", None),
        ("train.val_every=0", 0),
        ("train.checkpoint_every=0", 0),
        ("train.rollout_every=0", 0),
        ("train.weight_decay=0", 0),
        ("train.ema_decay=0", 0),
        ("data.val_ratio=0", 0),
        ("data.pad_after=7", 7),
        ("eval.videos=0", 0),
        ("eval.workers=0", 0),
        ("eval.device=cuda:1", "cuda:1"),
        ("collect.workers=2", 2),
        ("policy.sampler.limit=null", None),
        ("policy.n_action_steps=1", 1),
        ("policy.body.width=32.0", 32),
    ],
)
def test_what_makes_sense_is_taken(word, value):
    for config in (compose([word]), override(compose([]), [word])):
        found = OmegaConf.select(config, word.partition("=")[0])
        assert found == value and type(found) is type(value)


def test_every_setting_of_the_root_file_has_a_rule():
    config = compose([])
    for section in SECTIONS:
        assert not {f"{section}.{name}" for name in config[section]} - RANGES.keys()


def test_every_number_of_every_policy_has_a_rule():
    """A yaml with a number that nothing holds to a range is found here; the few that may be anything are named."""
    from polyarm.choices import options
    from polyarm.ranges import policy_rules

    anything: set[str] = set()
    for group in ("policy", "body", "encoder"):
        for name in options(group):
            more = ["policy.teacher=x"] if name == "consistency" else []
            node = OmegaConf.to_container(compose([f"{group}={name}", *more]).policy, resolve=True)
            ruled = {key for key, _, _ in policy_rules(node)}
            anything |= {key.rpartition(".")[2] for key in numbers(node, "policy") - ruled}
    assert anything == set()


def numbers(node, prefix):
    found = set()
    for key, value in node.items():
        if isinstance(value, dict):
            found |= numbers(value, f"{prefix}.{key}")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found.add(f"{prefix}.{key}")
    return found


def test_rules_of_polyarm_are_not_those_of_a_users_policy():
    config = compose(["policy._target_=mine.Policy", "policy.horizon=0", "policy.n_obs_steps=all"])
    assert config.policy.horizon == 0 and config.policy.n_obs_steps == "all"
    with pytest.raises(UserError, match="policy.body.width=-3"):
        compose(["policy._target_=mine.Policy", "policy.body.width=-3"])


class Refuses:
    def __init__(self, error, **_):
        raise {"zero": ZeroDivisionError, "key": KeyError, "assert": AssertionError, "value": ValueError}[error]("a\nb")


@pytest.mark.parametrize("error", ["zero", "key", "assert", "value"])
def test_whatever_a_constructor_raises_is_one_sentence(error):
    node = {"_target_": f"{__name__}.Refuses", "error": error, "size": 3}
    for call in (
        lambda: make(OmegaConf.create(node))(),
        lambda: make(OmegaConf.create({"_target_": "builtins.dict", "part": node})),
    ):
        with pytest.raises(UserError) as refused:
            call()
        assert "Refuses" in str(refused.value) and "size=3" in str(refused.value) and "\n" not in str(refused.value)


def test_a_rule_says_what_it_takes():
    """What is expected stands in the sentence, for every rule."""
    for rule in (*RANGES.values(), *POLICY.values(), *BENCH.values()):
        assert rule.expect and not rule.expect.endswith(" ")
    assert RANGES["train.lr"].expect == "a number above 0 and at most 1"
    assert RANGES["train.batch_size"].expect == "a whole number from 1 to 1000000"
    assert RANGES["eval.workers"].expect == "auto or a whole number from 0 to 1024"


@pytest.mark.parametrize(
    "words, said",
    [
        (["nope"], "unknown bench 'nope'"),
        ([], "name of one bench"),
        (["memory", "horizon"], "name of one bench"),
        (["memory", "core_seconds=0"], "core_seconds=0"),
        (["memory", "episodes=-1"], "episodes=-1"),
        (["memory", "episods=1"], "did you mean 'episodes'"),
        (["memory", "tasks=recall"], "a list of tasks"),
        (["memory", "tasks=[nope]"], "unknown task of this bench 'nope'"),
        (["memory", "only=[nope]"], "unknown entry of this bench 'nope'"),
        (["memory", "only=flow"], "a list of entries"),
        (["memory", "device=gpu"], "cpu or cuda"),
        (["memory", "workers=0"], "workers=0"),
        (["memory", "output_dir="], "a folder"),
        (["memory", "seed=[1"], "cannot be read"),
    ],
)
def test_a_bad_word_of_a_bench_is_one_sentence(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", *words]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())
