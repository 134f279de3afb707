"""The sentence encoder MiniLM (Wang et al. 2020; sentence-transformers' all-MiniLM-L6-v2) out of its package on PyPI, which is
read and never run."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from polyarm.spec import UserError

PACKAGE, TOKENS = "all_minilm_l6_v2", 256
"""Tokens that a sentence may have, as it was trained."""


class MiniLM:
    """Called, (tokenizer, model), frozen; without a pooled feature of its own, so that it is the mean over tokens."""

    def __call__(self, name: str, download: bool) -> tuple[Any, Any]:
        found = find_spec(PACKAGE)
        try:
            if found is None or not found.submodule_search_locations:
                raise ImportError(f"there is no {PACKAGE}")
            from safetensors.torch import load
            from tokenizers import Tokenizer
            from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
        except ImportError as e:
            raise UserError(f"the text model {name} needs its package ({e}): pip install 'polyarm[minilm]'") from e
        with ZipFile(Path(found.submodule_search_locations[0]) / "model.zip") as files:
            weights = load(files.read("model.safetensors"))
            config = BertConfig(**json.loads(files.read("config.json")))
            tokenizer = Tokenizer.from_str(files.read("tokenizer.json").decode())
        tokenizer.no_truncation()
        tokenizer.no_padding()
        model = BertModel(config, add_pooling_layer=False)
        model.load_state_dict({key: weights[key] for key in model.state_dict()})
        read = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=TOKENS)
        return read, model.requires_grad_(False).eval()
