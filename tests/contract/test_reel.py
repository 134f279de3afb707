"""`polyarm film` shows the episodes that were judged, side by side, and says in one sentence what it cannot show."""

import json
import shutil
from itertools import pairwise

import av
import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from polyarm.cli import main
from polyarm.eval.reel import ACROSS, GAP, WIDE, mosaic, thinned
from polyarm.sim.world import make_world

STEPS = 9


@pytest.fixture(scope="module")
def judged(tmp_path_factory, words):
    """A run, hardly trained, and the evaluation of three short episodes in its eval/."""
    from polyarm.config import compose
    from polyarm.eval.run import evaluate
    from polyarm.train import fit

    run = tmp_path_factory.mktemp("reel") / "run"
    fit(compose(words(run, "train.steps=1", f"+task.env_kwargs.max_steps={STEPS}")))
    evaluate([run], ["eval.episodes=3", "eval.videos=0", "eval.workers=0"])
    return run


@pytest.fixture
def copy(judged, tmp_path):
    shutil.copytree(judged, tmp_path / "run", symlinks=True)
    return tmp_path / "run"


def replay(run, seed):
    """Frames of an episode from its recorded actions."""
    world = make_world("polyarm/PickPlace-v0", {"max_steps": STEPS})
    world.reset(seed=seed)
    frames = [world.render()]
    for action in np.load(run / "eval" / "episodes.npz")[f"seed_{seed}"]:
        world.step(action)
        frames.append(world.render())
    world.close()
    return frames


def test_a_gif_of_the_episodes_that_were_judged(judged, tmp_path, capsys):
    """Mutations: another seed's actions; the last frame left out; the same episode thrice."""
    assert main(["film", str(judged), str(tmp_path / "new" / "a.gif"), "eval.videos=3", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    with Image.open(tmp_path / "new" / "a.gif") as gif:
        assert gif.info["loop"] == 0 and gif.size[0] <= WIDE and list(gif.size[::-1]) == told["size"]
        assert gif.n_frames == told["frames"] == -(-STEPS // 2) + 1 and told["fps"] == 10
        first = np.asarray(gif.convert("RGB")).astype(int)
        gif.seek(gif.n_frames - 1)
        last = np.asarray(gif.convert("RGB")).astype(int)
        assert gif.info["duration"] == 1600, "it stays before it begins again"
    assert told["bytes"] == (tmp_path / "new" / "a.gif").stat().st_size < 300_000
    assert told["seeds"] == [100_000, 100_001, 100_002]
    height, width = first.shape[0], (WIDE + GAP) // ACROSS - GAP
    for i, seed in enumerate(told["seeds"]):
        frames = replay(judged, seed)
        for whole, frame in ((first, frames[0]), (last, frames[-1])):
            tile = whole[:, i * (width + GAP) : i * (width + GAP) + width]
            wanted = Image.fromarray(frame).resize((width, height), Image.Resampling.BOX)
            assert np.abs(tile - np.asarray(wanted)).mean() < 3
            assert np.abs(tile - np.asarray(wanted)).max() < 60


def test_an_mp4_has_every_frame(judged, tmp_path):
    """Mutation: thinned as a GIF is."""
    assert main(["film", str(judged / "eval"), str(tmp_path / "a.mp4"), "eval.videos=1"]) == 0
    with av.open(str(tmp_path / "a.mp4")) as file:
        stream = file.streams.video[0]
        assert float(stream.average_rate) == 20 and sum(1 for _ in file.decode(stream)) == STEPS + 1 + 30
        assert (stream.width, stream.height) == (320, 240)


def refused(capsys, *words):
    assert main(["film", *map(str, words)]) == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_what_cannot_be_filmed_is_a_sentence(copy, tmp_path, capsys):
    gif = tmp_path / "a.gif"
    assert "needs an evaluated run and the file to write" in refused(capsys, copy)
    assert "a.webm is neither a GIF nor an mp4: give a name that ends with" in refused(
        capsys, copy, tmp_path / "a.webm"
    )
    assert "holds no evaluation: make one with `polyarm eval" in refused(capsys, copy / "checkpoints", gif)
    assert "eval.videos=0: give the number" in refused(capsys, copy, gif)
    assert "task.obs_scale=limits would change nothing" in refused(capsys, copy, gif, "task.obs_scale=limits")
    found = json.loads((copy / "eval" / "result.json").read_text())
    gym.register("test/Real-v1", "polyarm.sim.mujoco.pick_place:PickPlace", nondeterministic=True)
    try:
        assert "does not promise" in refused(capsys, copy, gif, "eval.videos=1", "task.env_id=test/Real-v1")
    finally:
        del gym.registry["test/Real-v1"]
    with np.load(copy / "eval" / "episodes.npz") as kept:
        np.savez(tmp_path / "few.npz", seed_100000=kept["seed_100000"])
    for damage in (b"", b"PK\3\4 and no more", (tmp_path / "few.npz").read_bytes()):
        (copy / "eval" / "episodes.npz").write_bytes(damage)
        assert "episodes.npz cannot be read" in refused(capsys, copy, gif, "eval.videos=1")
    (copy / "eval" / "episodes.npz").unlink()
    assert "episodes.npz cannot be read" in refused(capsys, copy, gif, "eval.videos=1")
    for text, words in (
        (json.dumps(found | {"measure": "action_error"}), "was judged offline"),
        ("[1]", "is no result of an evaluation"), ("{", "cannot be read"),
    ):  # fmt: skip
        (copy / "eval" / "result.json").write_text(text)
        assert words in refused(capsys, copy, gif)
    assert not gif.exists()


@given(n=st.integers(1, 8), lengths=st.data(), height=st.integers(1, 40), width=st.integers(1, 900))
@settings(max_examples=40, deadline=None)
def test_each_film_has_its_place_and_stays_as_it_ended(n, lengths, height, width):
    """Mutations: a film that is over goes black, or begins again; columns before rows; wider than the page."""
    shade = lambda i, t: 10 + 20 * i + t
    films = [[np.full((height, width, 3), shade(i, t), np.uint8) for t in range(lengths.draw(st.integers(1, 5)))] for i in range(n)]  # fmt: skip
    frames = mosaic(films)
    assert len(frames) == max(map(len, films)) and len({f.shape for f in frames}) == 1
    across = min(n, ACROSS)
    rows = -(-n // across)
    h, w = (frames[0].shape[0] + GAP) // rows - GAP, (frames[0].shape[1] + GAP) // across - GAP
    assert frames[0].shape[1] <= WIDE and w <= width and abs(h - max(1, height * w / width)) <= 1
    for t, frame in enumerate(frames):
        for i, film in enumerate(films):
            y, x = i // across * (h + GAP), i % across * (w + GAP)
            assert (frame[y : y + h, x : x + w] == shade(i, min(t, len(film) - 1))).all()


@given(n=st.integers(1, 30), skip=st.integers(1, 7))
def test_thinning_keeps_the_first_and_the_last(n, skip):
    """Mutation: every n-th alone, which may cut off the end."""
    kept = [int(frame[0]) for frame in thinned([np.array([i]) for i in range(n)], skip)]
    assert kept[0] == 0 and kept[-1] == n - 1
    assert kept[:-1] == list(range(0, n - 1, skip))[: len(kept) - 1] and all(b > a for a, b in pairwise(kept))
