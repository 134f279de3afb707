"""Instructions: streams of kind "text" (see `polyarm.text`), from scratch or by a pretrained text model.

An instruction stays the same for an episode and a batch holds few different ones: each is encoded once a call, by a pretrained
model once altogether.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Generator, Tensor, nn

from polyarm.encoders.backbone import may_download
from polyarm.spec import Stream, UserError
from polyarm.text import row_text

BYTES = 256


class Instruction(nn.Module):
    """Bytes -> embeddings and places -> a transformer, norms first -> the feature of a token put in front. No pretrained
    part, no vocabulary: any language, offline. It knows the instructions it was trained on: outside training it refuses others,
    unless the demonstrations held too many to list (`Stream.texts`) or `others` lets them pass."""

    def __init__(
        self, stream: Stream, width: int = 64, layers: int = 2, heads: int = 4, features: int = 64, others: bool = False
    ) -> None:
        super().__init__()
        length = _length(stream, "Instruction")
        if min(width, layers, heads, features) < 1 or width % heads:
            raise UserError(
                f"width={width}, layers={layers}, heads={heads}, features={features} of stream {stream.name!r}: each must be "
                "at least 1, and width a multiple of heads"
            )
        self.bytes = nn.Embedding(BYTES, width)
        self.places = nn.Parameter(0.02 * torch.randn(length + 1, width))
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, features)
        self.width, self.token_width = features, width
        self._known = () if others else stream.texts

    def forward(self, x: UInt8[Tensor, "n t"], generator: Generator | None = None) -> Float[Tensor, "n c"]:
        return self.tokens(x).pooled

    def tokens(self, x: UInt8[Tensor, "n t"]) -> Tokens:
        """One a byte, behind the one that is put in front."""
        texts, which = x.unique(dim=0, return_inverse=True)
        if self._known and not self.training:
            self._require_known(texts)
        tokens = torch.cat((self.places[:1].expand(len(texts), 1, -1), self.bytes(texts.long()) + self.places[1:]), 1)
        empty = nn.functional.pad(texts == 0, (1, 0), value=False)
        each = self.body(tokens, src_key_padding_mask=empty)
        return Tokens(each.masked_fill(empty[..., None], 0)[which], ~empty[which], self.head(each[:, 0])[which])

    def _require_known(self, texts: UInt8[Tensor, "n t"]) -> None:
        for text in map(row_text, texts.cpu()):
            if text not in self._known:
                raise UserError(
                    f"the instruction {text!r} is none of the {len(self._known)} that this policy was trained on, "
                    f"{', '.join(map(repr, self._known))}: give one of them, let it pass with policy.encoder.text.others=true, or "
                    "train with a pretrained text model, such as text=minilm"
                )


class Tokens(NamedTuple):
    """What a text model made of n instructions."""

    each: Float[Tensor, "n t c"]
    given: Bool[Tensor, "n t"]
    """False where an instruction has ended; there `each` is 0."""
    pooled: Float[Tensor, "n c"]


class PretrainedText(nn.Module):
    """A frozen text model of `transformers` by name or folder, such as CLIP's, then a trained linear map to `features`.

    `forward` takes the model's own pooled feature, or the mean over tokens where it has none; `tokens` gives all of them to a
    policy that attends to words. The model runs on the CPU, once for each instruction it has not seen; one longer than the model
    reads is refused. It is no part of the checkpoint, which holds `probe`, the pooled feature of an empty instruction, and refuses
    other weights when first asked.

    `download` allows fetching what is not on this machine, when training; a checkpoint's word does not. `load(name, download)` gives
    (tokenizer, model); None: those of `transformers`. Raises UserError for a missing package or model.
    """

    probe: Tensor

    def __init__(
        self,
        stream: Stream,
        name: str,
        features: int,
        download: bool,
        load: Callable[[str, bool], tuple[Any, Any]] | None = None,
    ) -> None:
        super().__init__()
        _length(stream, "PretrainedText")
        self.name = name
        # in a tuple, so that it is neither trained, averaged, saved nor moved
        self._model = ((load or _text_model)(name, download),)
        self._kept: dict[str, tuple[Tensor, Tensor]] = {}
        each, pooled = self._ask("")
        self.register_buffer("probe", pooled.clone())
        self._checked = False
        self.head = nn.Linear(len(pooled), features)
        self.width, self.token_width = features, each.shape[-1]

    def forward(self, x: UInt8[Tensor, "n t"], generator: Generator | None = None) -> Float[Tensor, "n c"]:
        texts, which = x.unique(dim=0, return_inverse=True)
        self._require_probe()
        return self.head(torch.stack([self._ask(row_text(row))[1] for row in texts]).to(self.probe))[which]

    @torch.no_grad()
    def tokens(self, x: UInt8[Tensor, "n t"]) -> Tokens:
        """Per-token features, padded to the longest instruction of the batch; not through the linear map."""
        self._require_probe()
        found = [self._ask(row_text(row)) for row in x]
        each = nn.utils.rnn.pad_sequence([tokens for tokens, _ in found], batch_first=True).to(self.probe)
        lengths = torch.tensor([len(tokens) for tokens, _ in found])
        given = torch.arange(each.shape[1]) < lengths[:, None]
        return Tokens(each, given.to(self.probe.device), torch.stack([p for _, p in found]).to(self.probe))

    @torch.no_grad()
    def _ask(self, text: str) -> tuple[Tensor, Tensor]:
        """(tokens [t c], pooled [c]) on the CPU."""
        if text not in self._kept:
            tokenizer, model = self._model[0]
            read = tokenizer(text, return_tensors="pt", verbose=False)
            most = min(tokenizer.model_max_length, model.config.max_position_embeddings)
            _require_short(text, read["input_ids"].shape[1], most, self.name)
            with torch.autocast("cpu", enabled=False):
                out = model(**read)
            pooled = getattr(out, "pooler_output", None)
            each = out.last_hidden_state[0].float()
            self._kept[text] = each, (each.mean(0) if pooled is None else pooled[0].float())
        return self._kept[text]

    def _require_probe(self) -> None:
        if not self._checked and not torch.allclose(self.probe.cpu().float(), self._ask("")[1], atol=1e-3, rtol=1e-3):
            raise UserError(
                f"the text model {self.name} has other weights than the one this policy was trained with: give that one"
            )
        self._checked = True


def _text_model(name: str, download: bool) -> tuple[Any, Any]:
    """(tokenizer, model), frozen."""
    try:
        from transformers import AutoConfig, AutoModel, AutoTokenizer, CLIPTextModel
    except ImportError as e:
        raise UserError(
            f"the text model {name} needs transformers: install it with pip install 'polyarm[language]'"
        ) from e
    only_here = {"local_files_only": not (download and may_download()), "trust_remote_code": False}
    try:
        clip = AutoConfig.from_pretrained(name, **only_here).model_type.startswith("clip")
        model = (CLIPTextModel if clip else AutoModel).from_pretrained(name, **only_here)
        return AutoTokenizer.from_pretrained(name, **only_here), model.requires_grad_(False).eval()
    except (OSError, ValueError) as e:
        raise UserError(
            f"the text model {name} is not on this machine: give download=true once, or the folder it lies in "
            f"({str(e).strip().partition(chr(10))[0]})"
        ) from e


def _require_short(text: str, tokens: int, most: int, name: str) -> None:
    if tokens > most:
        shown = text if len(text) <= 60 else f"{text[:57]}..."
        raise UserError(
            f"the instruction {shown!r} is {tokens} tokens, the text model {name} reads {most}: say it in fewer words"
        )


def _length(stream: Stream, taker: str) -> int:
    if stream.kind != "text" or len(stream.shape) != 1:
        raise UserError(
            f"stream {stream.name!r} of kind {stream.kind} has shape {stream.shape}: {taker} takes text (length,), choose "
            "another encoder for it"
        )
    return stream.shape[0]
