"""Instructions: bytes that pass through everything that moves streams, and the encoders that read them."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polyarm.datasets.info import info
from polyarm.datasets.scale import MOST_TEXTS, fit_spec, texts
from polyarm.datasets.store import Store
from polyarm.datasets.windows import Windows
from polyarm.encoders.fuse import Fuse
from polyarm.encoders.language import Instruction
from polyarm.sim.world import observation_space
from polyarm.spec import ActionSpace, ObsSpace, Spec, Stream, UserError
from polyarm.text import row_text, text_row
from tests.from_yaml import PretrainedText

TASK = Stream("task", "text", (24,))
SAID = ("put the cube away", "öffne die Schublade", "")


def rows(*texts, length=24):
    return torch.from_numpy(np.stack([text_row(text, length) for text in texts]))


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20))
def test_a_text_comes_back(text):
    """Mutations: characters counted in place of bytes, latin-1."""
    row = text_row(text, 80)
    assert row.shape == (80,) and row.dtype == np.uint8
    assert row_text(row) == text == row_text(torch.from_numpy(row.copy()))


def test_what_does_not_fit_is_refused():
    assert row_text(text_row("ö" * 12, 24)) == "ö" * 12
    with pytest.raises(UserError, match="has 26 bytes for a stream of 24: shorten it"):
        text_row("ö" * 13, 24)
    with pytest.raises(UserError, match="leave out the character 0"):
        text_row("a\0b", 24)
    with pytest.raises(UserError, match="is no UTF-8: write texts with polyarm.text.text_row"):
        row_text(np.array([255, 0], np.uint8))


def test_a_text_passes_through_store_and_windows(tmp_path):
    """Stored as bytes, never scaled, the same in every step of a window, told by `info`. Mutations: text stored as float32,
    listed as an image, fitted."""
    arm = Stream("arm", "state", (1,), ("x",), ("m",))
    spec = Spec(ObsSpace((arm, TASK), 10.0), ActionSpace(("x",), ("m",), "base", 10.0))
    rng = np.random.default_rng(0)
    with Store.create(tmp_path / "d.zarr", spec) as store:
        for seed, text in enumerate(SAID[:2]):
            told = np.repeat(text_row(text, 24)[None], 6, 0)
            x = rng.normal(size=(6, 1))
            episode = {"arm": x, "task": told, "action": x, "time_s": np.arange(6) / 10}
            store.append(episode, seed)
            with pytest.raises(UserError, match="'task' is float64: .*text's row; convert it first"):
                store.append(episode | {"task": told.astype(float)}, seed)
    demos = Store.open(tmp_path / "d.zarr")
    spec = fit_spec(demos, demos.spec, "limits", "limits", [0, 1])
    assert spec.obs["task"].scale is None
    clip = Windows(demos, spec, horizon=4, n_obs_steps=2, n_action_steps=2).__getitems__([0, 9])
    assert clip.obs["task"].dtype == torch.uint8 and clip.obs["task"].shape == (2, 1, 2, 24)
    assert [row_text(x) for x in clip.obs["task"][:, 0, 1]] == list(SAID[:2])
    found = info(demos)
    assert found["images"] == [] and found["texts"] == [{"stream": "task", "instructions": sorted(SAID[:2])}]
    assert observation_space(spec.obs)["task"].contains(text_row(SAID[0], 24))
    assert spec.obs["task"].texts == tuple(sorted(SAID[:2])) and demos.spec.obs["task"].texts == ()
    assert Spec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    assert "texts" not in json.dumps(demos.spec.to_json())


def test_a_hundred_texts_are_listed_and_more_are_a_language():
    """Mutations: the limit asked of each block; rows of other texts than the first of an episode left out."""
    many = rows(*(f"take {i}" for i in range(MOST_TEXTS)), "take 7").numpy()
    assert texts(many) == tuple(sorted(f"take {i}" for i in range(MOST_TEXTS)))
    assert texts(np.concatenate((many, rows("one more").numpy()))) == ()


def test_an_instruction_that_was_not_trained_on_is_refused():
    """Outside training, unless it is let pass or the stream does not say. Mutations: refused in training; not refused; `others`
    ignored."""
    known = replace(TASK, texts=("lift the blue cube", "lift the red cube"))
    encoder = Instruction(known, width=16, layers=1, heads=2, features=8)
    encoder(rows("raise it")), encoder.eval()
    assert encoder(rows("lift the red cube", "lift the blue cube")).shape == (2, 8)
    for text in ("lift the green cube", ""):
        says = f"instruction '{text}' is none of the 2 .*, 'lift the blue cube', 'lift the red cube': give one .*text=minilm"
        with pytest.raises(UserError, match=says):
            encoder.tokens(rows("lift the red cube", text))
    Instruction(known, width=16, layers=1, heads=2, others=True).eval()(rows("lift it"))
    Instruction(TASK, width=16, layers=1, heads=2).eval()(rows("lift it"))


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return Instruction(TASK, width=16, layers=2, heads=2, features=8)


def test_what_lies_behind_the_end_does_not_matter(encoder):
    """The same instruction in a longer stream gives the same feature. Mutations: no mask, a mean over all places."""
    torch.manual_seed(0)
    longer = Instruction(Stream("task", "text", (40,)), width=16, layers=2, heads=2, features=8)
    state = encoder.state_dict()
    state["places"] = torch.cat((state["places"], torch.randn(16, 16)))
    longer.load_state_dict(state)
    torch.testing.assert_close(longer(rows(*SAID, length=40)), encoder(rows(*SAID)))


def test_order_counts_and_neighbours_do_not(encoder):
    """An empty text is one like any other. Mutations: a bag of bytes, norms over the batch, rows returned in sorted order."""
    x = rows("ab", "ba", "", "ab", "c")
    out = encoder(x)
    torch.testing.assert_close(out[0], out[3])
    assert all(not torch.allclose(out[i], out[j]) for i in range(3) for j in range(i))
    assert out.isfinite().all()
    for i in range(5):
        torch.testing.assert_close(encoder(x[i : i + 1])[0], out[i])
    torch.testing.assert_close(encoder.train()(x), encoder.eval()(x))


def test_each_instruction_is_encoded_once_a_call(encoder):
    """Mutation: every row of every step through the transformer."""
    seen = []
    hook = encoder.body.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    Fuse(ObsSpace((TASK,), 10.0), text=lambda stream: encoder)({"task": rows(*SAID)[:, None].expand(-1, 5, -1)})
    hook.remove()
    assert seen == [3]


def test_it_learns_to_tell_instructions_apart():
    """Mutation: gradients that do not reach the bytes."""
    torch.manual_seed(0)
    net = Instruction(TASK, width=16, layers=1, heads=2, features=1)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    x, want = rows("take the red cube", "take the tin cube", "leave"), torch.tensor([[1.0], [-1.0], [0.0]])
    for _ in range(60):
        loss = (net(x) - want).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.01
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("stream", [Stream("front", "image", (8, 8, 3)), Stream("task", "text", (2, 24))])
def test_other_streams_are_refused(stream):
    with pytest.raises(UserError, match=r"takes text \(length,\), choose another encoder"):
        Instruction(stream)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="width=10, layers=2, heads=4.*width a multiple of heads"):
        Instruction(TASK, width=10)


def test_a_missing_package_names_its_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(UserError, match=r"needs transformers: install it with pip install 'polyarm\[language\]'"):
        PretrainedText(TASK, "anything")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A folder with a tiny CLIP text model and a tokeniser of single letters."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("clip")
    letters = [*"abcdefghijklmnopqrstuvwxyz"]
    words = ["!", '"', *letters, *(c + "</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: i for i, word in enumerate(words)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.CLIPTextConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=40, projection_dim=8, bos_token_id=len(words) - 2, eos_token_id=len(words) - 1,
    )  # fmt: skip
    transformers.CLIPTextModel(config).save_pretrained(folder)
    return str(folder)


def test_a_pretrained_model_is_asked_once_and_trained_never(clip):
    """Mutations: the model a submodule (saved, averaged, trained), no cache, padding among the tokens."""
    encoder = PretrainedText(TASK, clip, features=4)
    asked = []
    encoder._model[0][1].register_forward_hook(lambda *_: asked.append(1))
    out = encoder(rows("take", "leave", "take"))
    encoder(rows("leave", "take", "take"))
    assert len(asked) == 2
    out.sum().backward()
    assert {name for name, _ in encoder.named_parameters()} == {"head.weight", "head.bias"}
    assert set(encoder.state_dict()) == {"probe", "head.weight", "head.bias"}
    assert torch.equal(out[0], out[2]) and not torch.allclose(out[0], out[1])
    tokens = encoder.tokens(rows("take", "go"))
    assert tokens.each.shape == (2, 6, 16) and tokens.given.sum(1).tolist() == [6, 4]
    assert not tokens.each[1, 4:].any()
    torch.testing.assert_close(encoder.head(tokens.pooled[0]), out[0])


def test_an_instruction_longer_than_the_model_reads_is_refused(clip):
    """Two tokens beside the letters of each word. Mutation: cut off in silence."""
    long = Stream("task", "text", (80,))
    encoder = PretrainedText(long, clip, features=4)
    encoder(rows("a" * 38, length=80))
    with pytest.raises(
        UserError, match="the instruction 'aaa.*' is 41 tokens, .*clip.* reads 40: say it in fewer words"
    ):
        encoder(rows("a" * 39, length=80))


def test_other_weights_than_in_training_are_refused(clip):
    """Mutation: no probe."""
    encoder = PretrainedText(TASK, clip)
    again = PretrainedText(TASK, clip)
    again.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(again(rows("take")), encoder(rows("take")))
    again = PretrainedText(TASK, clip)
    again.load_state_dict({**encoder.state_dict(), "probe": encoder.probe + 1})
    with pytest.raises(UserError, match="has other weights than the one this policy was trained with"):
        again(rows("take"))


def test_a_model_that_is_not_here_is_one_sentence(clip, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        UserError, match="the text model nobody/nothing is not on this machine: give download=true once"
    ):
        PretrainedText(TASK, "nobody/nothing")
    fuse = Fuse(ObsSpace((TASK,), 10.0), text=partial(PretrainedText, name=clip))
    assert fuse({"task": rows(*SAID[:1])[:, None]}).shape == (1, 1, 64)
