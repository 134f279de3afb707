"""All streams of an observation to one feature vector a step."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from polyarm.spec import CACHED, FRAMES, KINDS, ObsSpace, Stream, UserError, unknown


@runtime_checkable
class Encoder(Protocol):
    """A module of one stream: [n ...] scaled or raw pixels -> [n width]. It augments only when given a generator."""

    width: int

    def __call__(self, x: Tensor, generator: Generator | None = None) -> Tensor: ...


class Fuse(nn.Module):
    """One encoder a stream, concatenated in the order of `obs_space` (published policies list images first).

    `encoders` are makers by stream name or, for all other streams of that kind, by kind: `Fuse(space, state=State)`.
    Every step is encoded by itself. Low-dim streams and named points are scaled here, images are not.
    Raises UserError for a stream without encoder, an encoder for no stream or kind, a stream that lacks its scale,
    and observations that lack a stream or have another shape.
    """

    def __init__(self, obs_space: ObsSpace, **encoders: Callable[[Stream], Any]) -> None:
        super().__init__()
        known = {*KINDS, *obs_space.names}
        for name in encoders:
            if name not in known:
                raise unknown("stream or kind to encode", name, known)
        self.obs_space = obs_space
        self.encoders = nn.ModuleList(_maker(stream, encoders)(stream) for stream in obs_space.streams)
        self.width = sum(encoder.width for encoder in self._encoders())

    def forward(self, obs: Mapping[str, Tensor], generator: Generator | None = None) -> Float[Tensor, "b o c"]:
        """obs: {stream: [b o ...]} in raw units, images uint8; streams beyond `obs_space` are ignored. Where obs says which
        frames are one, as `FRAMES` [b o], their images, depths and points are encoded once; `CACHED` and a stream's name [b o c] is what its frozen
        network made of it already."""
        features, frames = [], _once(obs.get(FRAMES))
        for stream, encode in zip(self.obs_space.streams, self._encoders(), strict=True):
            cached = CACHED + stream.name in obs
            if not cached and stream.name not in obs:
                raise unknown("observation stream", stream.name, obs)
            x = obs[CACHED + stream.name if cached else stream.name]
            if not cached and tuple(x.shape[2:]) != stream.shape:
                raise UserError(
                    f"observation stream {stream.name!r} comes as {tuple(x.shape)}, which should be [b o ...] of "
                    f"{stream.shape}: use the data or task it was trained on"
                )
            if stream.scale is not None and stream.scaled:
                x = stream.scale.do(x.float())
            flat = rearrange(x, "b o ... -> (b o) ...")
            if cached:
                feature = encode.head(flat)  # type: ignore[attr-defined]
            elif frames is None or not stream.dear:
                feature = encode(flat, generator)
            else:
                feature = encode(flat[frames.first], generator)[frames.copy]
            features.append(rearrange(feature, "(b o) c -> b o c", b=len(x)))
        return torch.cat(features, dim=-1)

    def frozen(self) -> list[tuple[str, Encoder]]:
        """(stream, its encoder) where that is frozen: of those, what is before the head can be had once and for all."""
        pairs = zip(self.obs_space.names, self._encoders(), strict=True)
        return [(name, encoder) for name, encoder in pairs if getattr(encoder, "frozen", False)]

    def _encoders(self) -> list[Encoder]:
        return list(self.encoders)  # type: ignore[arg-type]


class _Frames(NamedTuple):
    first: Int[Tensor, "n"]
    """Of frames that are one, one."""
    copy: Int[Tensor, "m"]
    """For every frame, which of `first` it is."""


def _once(rows: Int[Tensor, "b o"] | None) -> _Frames | None:
    if rows is None:
        return None
    each, copy = torch.unique(rows.flatten(), return_inverse=True)
    if len(each) == len(copy):
        return None
    first = copy.new_empty(len(each)).scatter_(0, copy, torch.arange(len(copy), device=copy.device))
    return _Frames(first, copy)


def _maker(stream: Stream, encoders: Mapping[str, Callable[[Stream], Any]]) -> Callable[[Stream], Any]:
    if stream.scaled and stream.scale is None:
        raise UserError(f"stream {stream.name!r} has no scale: fit it on the demonstrations, or give Scale.identity")
    maker = encoders.get(stream.name) or encoders.get(stream.kind)
    if maker is None:
        known = ", ".join(sorted(encoders)) or "none"
        raise UserError(
            f"stream {stream.name!r} of kind {stream.kind} has no encoder, given are {known}: "
            f"give one under {stream.kind!r} or {stream.name!r}, or leave the stream out"
        )
    return maker
