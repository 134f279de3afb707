"""Demonstrations of one's own, without a world: trained by their path alone, judged on episodes that training did not see.

Mutations that turn it red: the default task's streams asked of every store; judged on training episodes; rows past an episode's
end counted; chunks compared from their first row; the best chunk of all windows taken together; the line about success left out;
an error that ignores units; a store from a world trained as one without.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from polyarm.cli import main
from polyarm.config import build, compose, override, read_yaml
from polyarm.datasets.arrays import image, numbers, write_store
from polyarm.datasets.scale import fit_spec
from polyarm.datasets.store import Store, open_store
from polyarm.eval import held_out, offline
from polyarm.policies import checkpoint
from polyarm.policies.mixture import Mixture
from polyarm.policies.pick import Picked
from polyarm.policies.policy import Plain
from polyarm.spec import ActionSpace, ObsSpace, Scale, Spec, UserError
from polyarm.task import fitting, open_demos
from polyarm.train import fit

SMALL = [
    "policy.body.width=32", "policy.body.blocks=1", "train.steps=20", "train.batch_size=16", "train.device=cpu", "eval.device=cpu",
]  # fmt: skip
UNITS = {"x": "m", "grip": "deg"}


def episode(seed, t=30):
    rng = np.random.default_rng(seed)
    x = np.arange(t) / 10 * rng.uniform(0.5, 1.5) + rng.uniform(0, 6)
    return {"pose": np.stack([np.sin(x), np.cos(x)], 1), "action": np.stack([np.sin(x + 0.1), 30 * np.cos(x + 0.1)], 1)}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "mine.zarr"
    streams = [numbers("pose", {"x": "m", "y": "m"})]
    return write_store(path, [episode(i, 20 + i) for i in range(8)], streams=streams, action=UNITS, rate_hz=10)


@pytest.fixture(scope="module")
def run(store, tmp_path_factory):
    out = tmp_path_factory.mktemp("own") / "run"
    assert (
        main(["train", "policy=flow", f"task.demos.path={store}", f"output_dir={out}", "data.val_ratio=0.25", *SMALL])
        == 0
    )
    return out


def result(folder):
    return json.loads((folder / "result.json").read_text())


def test_a_store_of_other_streams_trains_by_its_path_alone(run):
    config = read_yaml(run / "config.yaml")
    assert config.task.name == "own" and config.task.env_id is None and config.task.streams is None
    assert checkpoint.load(run).obs_space.names == ("pose",)


def test_the_default_task_stays_where_a_store_is_its_world_s(demos, store, tmp_path):
    assert fitting([f"task.demos.path={demos}"]) == [f"task.demos.path={demos}"]
    assert fitting([f"task.demos.path={store}"])[0] == "task=own"
    for words in (
        ["task=recall", f"task.demos.path={store}"],
        ["policy=flow"],
        [f"task.demos.path={tmp_path}/none.zarr"],
    ):
        assert fitting(words) == words
    names = {name: {"a": "1"} for name in compose([]).task.streams}  # its names, not its world
    alike = write_store(
        tmp_path / "alike.zarr", [{**dict.fromkeys(names, np.eye(3)[:, :1]), "action": np.eye(3)[:, :1]}],
        streams=[numbers(name, units) for name, units in names.items()], action={"a": "1"}, rate_hz=5,
    )  # fmt: skip
    assert fitting([f"task.demos.path={alike}"])[0] == "task=own"


def test_eval_judges_the_run_s_own_held_out_episodes(run, store, capsys):
    assert main(["eval", str(run), "eval.samples=3"]) == 0
    said, found = (
        capsys.readouterr().err,
        result(run / "eval_samples_3" if (run / "eval_samples_3").exists() else run / "eval"),
    )
    card = checkpoint.read_train_state(checkpoint.find(run))["data"]
    assert [e["episode"] for e in found["per_episode"]] == card["val"] and found["n"] == 2
    assert (
        found["measure"] == "action_error" and set(found["baselines"]) == {"repeat", "mean"} and found["samples"] == 3
    )
    assert [(c["name"], c["unit"]) for c in found["channels"]] == list(UNITS.items())
    assert found["said"] in said and found["said"].startswith("This is no success rate")
    assert sum(e["rows"] for e in found["per_episode"]) == sum(
        20 + i for i in card["val"]
    )  # each row once, none past an end
    page = next(run.glob("eval*/report.html")).read_text()
    assert found["said"] in page and "success rate," not in page and "Predicted and recorded" in page
    assert page.index("no success rate") < page.index("<h2>")


def _copied(run, place, *left_out):
    """The newest checkpoint of a run, copied elsewhere without some of its files."""
    return Path(shutil.copytree(checkpoint.find(run), place, ignore=shutil.ignore_patterns(*left_out)))


def test_a_copied_checkpoint_knows_what_it_held_out(run, store, tmp_path, capsys):
    """Also after the store has grown and moved. Mutation: do not write split.json; split again by the settings."""
    card = checkpoint.read_train_state(checkpoint.find(run))["data"]
    alone = _copied(run, tmp_path / "alone", "train_state.pt")
    assert checkpoint.read_split(alone) == card
    grown = tmp_path / "grown.zarr"
    streams = [numbers("pose", {"x": "m", "y": "m"})]
    write_store(grown, [episode(i, 20 + i % 8) for i in [*range(8), 30, 31]], streams=streams, action=UNITS, rate_hz=10)
    assert main(["eval", str(alone), f"task.demos.path={grown}", f"output_dir={tmp_path / 'out'}"]) == 0
    assert [e["episode"] for e in result(tmp_path / "out")["per_episode"]] == card["val"]
    assert "split again" not in capsys.readouterr().err


def test_an_older_checkpoint_has_its_split_in_the_training_state_or_is_split_again(run, tmp_path, capsys):
    held_out = checkpoint.read_split(checkpoint.find(run))["val"]
    older = _copied(run, tmp_path / "older", "split.json")
    assert main(["eval", str(older)]) == 0 and "split again" not in capsys.readouterr().err
    oldest = _copied(run, tmp_path / "oldest", "split.json", "train_state.pt")
    assert main(["eval", str(oldest)]) == 0 and "split again" in capsys.readouterr().err
    for folder in (older, oldest):
        assert [e["episode"] for e in result(folder / "eval")["per_episode"]] == held_out


@pytest.mark.parametrize(
    "text",
    [
        "", "[1]", "{}", '{"train": [0]}', '{"episodes": 8, "fingerprint": 3, "train": [0], "val": [1]}',
        '{"episodes": 8, "fingerprint": "a", "train": [0, 1], "val": [1]}',
        '{"episodes": 8, "fingerprint": "a", "train": [0], "val": [8]}', '{"episodes": 8, "fingerprint": "a", "train": 0, "val": 1}',
    ],
)  # fmt: skip
def test_a_split_that_is_none_is_one_sentence(run, tmp_path, capsys, text):
    """Mutation: take what the file says."""
    folder = _copied(run, tmp_path / "copy")
    (folder / "split.json").write_text(text)
    assert main(["eval", str(folder)]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "split.json cannot be read" in said and "restore it" in said


def test_a_split_that_somebody_edited_is_said(run, tmp_path, capfd):
    """Mutation: leave it out of the hashes."""
    folder = _copied(run, tmp_path / "copy")
    card = checkpoint.read_split(folder)
    assert "as it was saved" not in capfd.readouterr().err
    (folder / "split.json").write_text(json.dumps({**card, "val": card["val"][:1]}))
    assert checkpoint.read_split(folder)["val"] == card["val"][:1]
    assert "split.json is not as it was saved" in capfd.readouterr().err


def test_a_tenth_of_one_s_own_episodes_is_held_out(store):
    """Mutation: the share of a benchmark, 0.02."""
    assert compose(["task=own"]).data.val_ratio == 0.1 and compose([]).data.val_ratio == 0.02
    assert compose(["task=own", "data.val_ratio=0.5"]).data.val_ratio == 0.5
    assert override(compose([]), ["task=own"]).data.val_ratio == 0.02  # of a run that was trained with it


def test_a_sweep_and_a_mixture_of_such_runs_work(run, store, tmp_path):
    other = tmp_path / "other"
    words = [f"task.demos.path={store}", f"output_dir={other}", "data.val_ratio=0.25", "train.seed=1", *SMALL]
    assert main(["train", "policy=flow", *words]) == 0
    assert main(["eval", str(run), str(other), "--weights", "0.5", "0.5", f"output_dir={tmp_path / 'mix'}"]) == 0
    assert result(tmp_path / "mix")["weights"] == [0.5, 0.5]


def test_other_demonstrations_are_all_unseen(run, tmp_path):
    streams = [numbers("pose", {"x": "m", "y": "m"})]
    more = write_store(tmp_path / "more.zarr", [episode(50), episode(51)], streams=streams, action=UNITS, rate_hz=10)
    assert main(["eval", str(run), f"task.demos.path={more}", f"output_dir={tmp_path / 'out'}"]) == 0
    assert [e["episode"] for e in result(tmp_path / "out")["per_episode"]] == [0, 1]
    feet = write_store(
        tmp_path / "feet.zarr",
        [episode(50)],
        streams=[numbers("pose", {"x": "ft", "y": "m"})],
        action=UNITS,
        rate_hz=10,
    )
    with pytest.raises(UserError, match="ft"):
        from polyarm.eval.run import evaluate

        evaluate([run], [f"task.demos.path={feet}"])


def test_a_run_that_held_out_nothing_is_one_sentence(store, tmp_path, capsys):
    words = [f"task.demos.path={store}", f"output_dir={tmp_path / 'run'}", "data.val_ratio=0.0", *SMALL]
    assert main(["train", *words]) == 0
    assert main(["eval", str(tmp_path / "run")]) == 2
    assert "data.val_ratio=0.1" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    "words, said",
    [
        (["task=own", "task.demos.path=x", "task.measure=success"], "action_error"),
        (["task=pick_place", "task.env_id=null"], "action_error"),
        (["task=own", "task.demos.path=x", "train.rollout_every=5"], "rollout_every=5"),
        (["~task.env_id"], "task.env_id"),
    ],
)
def test_a_task_without_a_world_says_what_it_cannot(words, said):
    with pytest.raises(UserError, match=said):
        compose(words)


@pytest.mark.parametrize(
    "words, said",
    [
        (["task=own", "task.streams=[front]"], ["'front'", "holds pose", "task.streams="]),
        (["task=pick_place"], ["'joint_pos'", "holds pose", "task=own"]),
    ],
)
def test_streams_that_the_store_does_not_hold_are_one_sentence(store, tmp_path, capsys, words, said):
    """Mutation: leave it to where the streams are picked."""
    assert main(["train", *words, f"task.demos.path={store}", f"output_dir={tmp_path / 'run'}", *SMALL]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert all(words in error for words in said) and not (tmp_path / "run").exists()


@pytest.mark.parametrize("rate, step, said", [(0.0, 0.1, "rate_hz=0"), (10.0, 0.04, "25 Hz"), (10.0, 100.0, "0.01 Hz")])
def test_a_store_whose_rate_is_missing_or_false_is_not_trained_on(tmp_path, capsys, rate, step, said):
    """One that was written without `write_store`. Mutation: take the store's word; count the steps between episodes."""
    space = ActionSpace(tuple(UNITS), tuple(UNITS.values()), "", rate)
    with Store.create(
        tmp_path / "s.zarr", Spec(ObsSpace((numbers("pose", {"x": "m", "y": "m"}),), rate), space)
    ) as store:
        for i in range(4):
            store.append({**episode(i, 2), "time_s": 7 + np.arange(2) * step}, 0)
    words = ["task=own", f"task.demos.path={tmp_path / 's.zarr'}", f"output_dir={tmp_path / 'run'}", *SMALL]
    assert main(["train", *words]) == 2
    assert said in capsys.readouterr().err.splitlines()[-1] and not (tmp_path / "run").exists()


def test_a_single_episode_leaves_nothing_to_judge_on(tmp_path, capsys):
    streams = [numbers("pose", {"x": "m", "y": "m"})]
    path = write_store(tmp_path / "one.zarr", [episode(0)], streams=streams, action=UNITS, rate_hz=10)
    assert main(["train", f"task.demos.path={path}", f"output_dir={tmp_path / 'run'}", *SMALL]) == 0
    assert main(["eval", str(tmp_path / "run")]) == 2
    assert "record more" in capsys.readouterr().err.splitlines()[-1]


def test_demonstrations_that_are_not_there_are_to_be_made_of_arrays():
    with pytest.raises(UserError, match="polyarm.datasets.arrays"):
        open_demos(compose(["task=own"]).task)


class Given(Plain):
    """A policy of one number: it draws `chunks` in turn, and remembers what it was shown."""

    name, n_obs_steps, n_action_steps = "given", 2, 3
    obs_space = ObsSpace((numbers("pose", {"x": "m"}),), 10.0)

    def __init__(self, offsets):
        self.action_space = ActionSpace(("a",), ("m",), "", 10.0, horizon=5, scale=Scale.identity(1))
        self.offsets, self.seen = torch.tensor(offsets, dtype=torch.float32), []
        self.sampler = lambda denoise, x, cond, generator: (
            cond + self.offsets.repeat(len(x) // len(offsets)).view(-1, 1, 1)
        )

    def start(self, b):
        return (torch.zeros(b, 1),)

    def encode(self, obs, state, generator=None):
        self.seen.append((obs["pose"][:, :, 0].numpy().copy(), state[0][:, 0].numpy().copy()))
        rows = obs["pose"][:, -1:, :] + torch.arange(-1, 4).view(1, 5, 1)  # what will be done, row To - 1 at the newest
        return rows, (state[0] + 1,)

    def denoise(self, x, phi, cond):
        return cond


class Counted:
    """Episodes whose action is the row's number."""

    spec = Spec(Given.obs_space, ActionSpace(("a",), ("m",), "", 10.0))
    episode_ends = np.array([7, 11])
    rows = np.concatenate([np.arange(7.0), 100 + np.arange(4.0)])[:, None]

    def stream(self, name):
        return self.rows


def test_errors_are_those_of_arithmetic():
    """Predictions that are off by 1 and by -3 of what is done: errors by hand."""
    policy = Given([1.0, -3.0])
    judged = offline.judge(policy, Counted(), [0, 1], np.array([10.0]), samples=2, seed=0)
    assert [j.drawn.shape for j in judged] == [(3, 2, 4, 1), (2, 2, 4, 1)]
    assert [j.there.sum(1).tolist() for j in judged] == [[4, 4, 1], [4, 1]]
    first, second = policy.seen[0][0], policy.seen[1][0]
    assert first[0].tolist() == [0, 0] and second[0].tolist() == [2, 3] and second[1].tolist() == [102, 103]
    assert policy.seen[2][1].tolist() == [2] * 2  # memory is carried from chunk to chunk
    found = offline.summary(judged, ["a"], ["m"], np.array([10.0]), np.array([2.0]), 3)
    assert np.isclose(found["channels"][0]["policy"], np.sqrt((1 + 9) / 2))
    assert np.isclose(found["action_error"], np.sqrt(5) / 2)  # in deviations of 2
    assert np.isclose(found["channels"][0]["best_of_samples"], 1) and np.isclose(found["channels"][0]["spread"], 2)
    squares = [(10 - a) ** 2 for a in (0, 1, 2)] + [1, 4, 9, 1]  # the mean where nothing was done, then the row before
    more = [(10 - a) ** 2 for a in (100, 101, 102)] + [1]
    assert np.isclose(found["channels"][0]["repeat"], np.sqrt(np.mean(squares + more)))
    assert [row["windows"] for row in found["rows"]] == [5, 3, 3, 3]
    assert np.isclose(found["rows"][1]["policy"][0], np.sqrt(5))


class Rising(Counted):
    """Episodes of seven rows whose action rises by one a row, from `starts`."""

    def __init__(self, starts):
        self.rows = np.concatenate([start + np.arange(7.0) for start in starts])[:, None]
        self.episode_ends = 7 * np.arange(1, len(starts) + 1)


@pytest.mark.parametrize(
    "offsets, starts, words",
    [
        ([0.1], [2, 3, 4, 3], ": error 0.05 against 0.876 of repeating the last action on 4 held-out episodes, nearer in 4 of them"),
        ([900.0], [2, 3, 4, 3], ": the policy is NO BETTER than repeating the last action: error 450 against 0.876 on 4"),
        ([2.2], [0, 3, 9, 3], (": the policy is NOT CLEARLY BETTER than repeating the last action: error 1.1 against 1.44 on 4 held-out "
         "episodes, a difference between -1.4 and 1 (95 %)")),
        ([0.1], [2], (": the policy is NOT CLEARLY BETTER than repeating the last action: error 0.05 against 0.779 on 1 held-out "
         "episode, from which no interval follows")),
        ([0.1, 900.0], [2, 3, 4, 3], "(the best of 2 chunks drawn: 0.05)"),
    ],
)  # fmt: skip
def test_the_first_line_says_where_a_policy_beats_no_baseline(offsets, starts, words):
    """Mutations: compare the two errors alone; let one episode be an interval; forget the best chunk."""
    mean, demos = np.array([3.0]), Rising(starts)
    judged = offline.judge(Given(offsets), demos, range(len(starts)), mean, samples=len(offsets), seed=0)
    found = offline.summary(judged, ["a"], ["m"], mean, np.array([2.0]), 3)
    line = offline.said(found)
    assert line.startswith("This is no success rate") and words in line
    assert ("BETTER" in line) == (not found["clearly_better"])


@pytest.mark.parametrize("n", [2, 3, 9])
def test_the_interval_of_the_difference_is_student_s(n):
    from scipy.stats import ttest_1samp

    off = np.random.default_rng(n).normal(-1, 1, n).tolist()
    low, high = offline._difference(off)["difference_interval"]
    assert np.allclose((low, high), ttest_1samp(off, 0).confidence_interval(0.95))
    assert (
        offline._difference(off)["clearly_better"] == (high < 0) and not offline._difference(off[:1])["clearly_better"]
    )


def test_what_is_drawn_depends_on_the_episode_alone(run, store):
    policy, demos = checkpoint.load(run), open_store(store)
    mean, _ = held_out.action_moments(demos, [0])
    alone = offline.judge(policy, demos, [2], mean, samples=2, seed=5)[0]
    among = offline.judge(policy, demos, [1, 2, 7], mean, samples=2, seed=5)[1]
    assert np.allclose(alone.drawn, among.drawn, atol=1e-4) and not np.allclose(alone.drawn[:, 0], alone.drawn[:, 1])


@dataclass
class Opaque:
    """What only the policy that made it can read."""

    seen: torch.Tensor


class OfOwn(Given):
    """Its condition is no tensor, and it is drawn around by the noise."""

    def __init__(self):
        super().__init__([0.0])
        self.sampler = lambda denoise, x, cond, generator: denoise(x, 1, cond)

    def encode(self, obs, state, generator=None):
        rows, state = super().encode(obs, state)
        return Opaque(rows), state

    def denoise(self, x, phi, cond):
        return x + cond.seen


def _built(words, demos):
    torch.manual_seed(3)
    config = compose(["task=own", *words])
    spec = fit_spec(demos, demos.spec, "gaussian", "limits", range(len(demos.episode_ends)))
    policy = build(config.policy, spec).eval()
    for x in policy.parameters():  # bodies begin at zero, where what was seen does not matter
        x.data += 0.05 * torch.randn_like(x)
    return policy


KINDS = {
    "flow": ["policy=flow"],
    "memory": ["policy=seed"],
    "goals": ["policy=beso"],
    "energy": ["policy=ebt"],
}


@pytest.mark.parametrize("kind", [*KINDS, "mixture", "picked", "opaque"])
def test_a_window_is_seen_once_for_all_its_chunks(store, kind, monkeypatch):
    """Chunks are those of one sample at a time. Mutations: encode each sample; leave a row of the condition, a base or the state
    where it was; tile the rows instead of repeating each."""
    demos = open_store(store) if kind != "opaque" else Counted()
    if kind == "opaque":
        policy = OfOwn()
    elif kind == "mixture":
        policy = Mixture([_built(KINDS["flow"], demos), _built(["policy=diffusion"], demos)], [0.4, 0.6])
    elif kind == "picked":
        policy = Picked(*[_built(KINDS["energy"], demos)] * 2, 2)
    else:
        policy = _built(KINDS[kind], demos)
    width, rows, real = policy.action_space.width, [], policy.encode
    monkeypatch.setattr(
        policy, "encode", lambda obs, state: (rows.append(len(next(iter(obs.values())))), real(obs, state))[1]
    )
    mean, some, n = np.zeros(width), [0, 1], 3
    judged = offline.judge(policy, demos, some, mean, samples=n, seed=5)
    assert set(rows) == ({2, 6} if kind == "opaque" else {2})
    for j in judged:
        assert not np.allclose(j.drawn[:, 0], j.drawn[:, 1])
        for s in range(n):
            alone = offline.judge(policy, demos, [j.episode], mean, samples=1, seed=5 + j.episode * (n - 1) + s)[0]
            assert np.allclose(alone.drawn[:, 0], j.drawn[:, s], rtol=1e-4, atol=1e-4)


def test_large_pictures_are_judged_few_at_a_time(monkeypatch):
    """Mutation: leave the observations out of what a batch may hold."""
    policy, several = Given([0.0]), []
    monkeypatch.setattr(offline, "_judge", lambda policy, demos, episodes, *more: several.append(len(episodes)) or [])
    offline.judge(policy, Counted(), range(300), np.zeros(1), samples=1, seed=0)
    policy.obs_space = ObsSpace((image("front", 480, 640),), 10.0)
    offline.judge(policy, Counted(), range(300), np.zeros(1), samples=1, seed=0)
    assert several[0] == 256 and max(several[2:]) * 2 * 480 * 640 * 3 <= offline.SEEN


def test_a_run_with_a_world_is_judged_offline_when_asked(settings, tmp_path):
    from polyarm.eval.run import evaluate
    from polyarm.train import fit

    out = fit(settings(tmp_path / "run"))
    found = evaluate([out], ["task.measure=action_error", "eval.samples=2"])
    assert found["measure"] == "action_error" and found["n"] == 2


def test_pictures_are_judged_too(tmp_path):
    pictures = lambda seed: np.random.default_rng(seed).integers(0, 256, (20, 40, 40, 3), dtype=np.uint8)
    path = write_store(
        tmp_path / "mine.zarr", [{**episode(i, 20), "front": pictures(i)} for i in range(4)],
        streams=[numbers("pose", {"x": "m", "y": "m"}), image("front", 40, 40)], action=UNITS, rate_hz=10,
    )  # fmt: skip
    words = [
        f"task.demos.path={path}",
        f"output_dir={tmp_path / 'run'}",
        "data.val_ratio=0.25",
        *SMALL,
        "train.steps=2",
        "train.batch_size=4",
    ]
    assert main(["train", *words]) == 0
    assert main(["eval", str(tmp_path / "run"), "eval.samples=1"]) == 0


def test_other_demonstrations_are_judged_less_what_was_trained_on(settings, demos, tmp_path, capsys):
    """Two episodes copied out of the training's and two that it never saw, in another store. Mutations: all of them judged; those
    held out left away too."""
    from polyarm import resume

    run = fit(settings(tmp_path / "run", "train.steps=2"))
    card = checkpoint.read_split(checkpoint.find(run))
    kept = Store.open(demos)
    begin = np.insert(kept.episode_ends, 0, 0)
    other = tmp_path / "other.zarr"
    with Store.create(other, kept.spec) as store:
        for i in (card["train"][0], card["val"][0], card["train"][2]):
            rows = slice(int(begin[i]), int(begin[i + 1]))
            store.append({name: kept.read(name)[rows] for name in (*kept.spec.obs.names, "action", "time_s")}, 1)
        last = {name: kept.read(name)[rows] for name in (*kept.spec.obs.names, "action", "time_s")}
        store.append({**last, "action": last["action"] * 0.5}, 1)
    assert resume.trained_on(card, Store.open(other)).tolist() == [0, 2]
    assert resume.trained_on({k: v for k, v in card.items() if k != "each"}, Store.open(other)).tolist() == []
    more = ["task.measure=action_error", f"task.demos.path={other}", "eval.samples=2"]
    assert main(["eval", str(run), *more]) == 0
    assert "was trained on 2 of the 4 episodes" in capsys.readouterr().err
