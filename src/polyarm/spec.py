"""What passes between floors: spaces, scales and batches. Free of torch and numpy, so that
drivers and `--help` can import it.

One table of letters for every shape in the project:

    b batch   k clip window   o observation step   h horizon   d action channel   n points
    v camera  t token         c feature

Units are SI unless a space says otherwise; time is `*_ns` (monotonic) or `*_s`; poses name their frames
(`base_from_camera`); quaternions are wxyz.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from functools import lru_cache
from math import inf, isfinite
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

if TYPE_CHECKING:
    import numpy as np
    import torch

Array = TypeVar("Array")

SCHEMA = 1
"""Version of `spec.json` and of the demo store's attributes; a change brings a migration and a golden file."""

ActionKind = Literal["trajectory", "keypose"]


Dtype = Literal["float32", "uint8", "uint16"]


class Kind(NamedTuple):
    """What every value of a stream of one kind is."""

    dtype: Dtype
    range: tuple[int | float, int | float]
    """The values a stream may hold, both ends included."""
    low_dim: bool = False
    """One named channel a number."""
    scaled: bool = False
    """Its named channels, which come last, are scaled by what demonstrations hold."""
    dear: bool = False
    """Dear to look at, so that a frame which comes twice is encoded once."""
    hidden: bool = False
    """Said of a row for people and programs, and never shown to a policy: who acts does not know it."""


KINDS: Mapping[str, Kind] = {
    "state": Kind("float32", (-inf, inf), low_dim=True, scaled=True),
    "goal": Kind("float32", (-inf, inf), low_dim=True, scaled=True),
    "image": Kind("uint8", (0, 255), dear=True),
    "depth": Kind("uint16", (0, 65535), dear=True),  # mm along the camera's axis, 0 where nothing was measured
    "camera": Kind("float32", (-inf, inf)),  # fx fy cx cy, px, then base_from_camera row by row, m (see polyarm.camera)
    "segmentation": Kind("uint16", (0, 65535)),  # the number of the object that a pixel shows
    "points": Kind("float32", (-inf, inf), scaled=True, dear=True),
    "text": Kind("uint8", (0, 255)),
    "label": Kind(
        "float32", (-inf, inf), low_dim=True, hidden=True
    ),  # such as intervention: 1 while a person had the arm
}
"""The kinds of streams there are. A new one is a line here."""


FRAMES = "frames.row"
"""What training knows a frame by, beside the streams of an observation: int64 [b k o], its row in the demonstrations. Frames of
one row are one picture or cloud, so encoders need to look at it once."""
CACHED = "cached."
"""Before a stream's name: what a frozen network makes of it, in place of its pixels."""


class UserError(ValueError):
    """Bad input. The message is one sentence: the value, what was expected, the remedy. The command line prints it bare."""


def unknown(what: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that does not exist: says the nearest one and lists all that do."""
    known = sorted(set(known))
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return UserError(f"unknown {what} {name!r}: {hint}known are {', '.join(known) or 'none'}")


@dataclass(frozen=True)
class Scale:
    """Per-channel affine map `y = x * gain + offset`, fitted on demonstrations and saved with the weights."""

    gain: tuple[float, ...]
    offset: tuple[float, ...]
    reach: float | None = field(default=None, compare=False)
    """The largest absolute value that this map gives the demonstrations it was fitted on; None: not known."""

    def __post_init__(self) -> None:
        if len(self.gain) != len(self.offset):
            raise UserError(
                f"a scale with {len(self.gain)} gains and {len(self.offset)} offsets: give one of each a channel"
            )
        bad = [
            i
            for i, (g, o) in enumerate(zip(self.gain, self.offset, strict=True))
            if not (isfinite(g) and isfinite(o) and g)
        ]
        if bad:
            raise UserError(
                f"scale of channel {bad[0]} is gain {self.gain[bad[0]]}: fit it on data that varies and is finite"
            )

    @classmethod
    def identity(cls, width: int) -> Scale:
        return cls((1.0,) * width, (0.0,) * width)

    def do(self, x: Array) -> Array:
        """Raw units -> the network's. `x`: numpy or torch, channels last."""
        gain, offset = _constants(self, x)
        return x * gain + offset

    def undo(self, y: Array) -> Array:
        """The network's -> raw units."""
        gain, offset = _constants(self, y)
        return (y - offset) / gain

    @property
    def hash(self) -> str:
        """Sixteen hex digits that name this map; equal only for equal maps."""
        return hashlib.sha256(json.dumps([self.gain, self.offset]).encode()).hexdigest()[:16]


def _constants(scale: Scale, like: Any) -> Any:
    if hasattr(like, "device") and type(like).__module__.startswith("torch"):
        return _torch_constants(scale, like.device, like.dtype)
    return _numpy_constants(scale, like.dtype.str)


@lru_cache(maxsize=256)
def _numpy_constants(scale: Scale, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    import numpy as np

    kind = np.dtype(dtype) if np.dtype(dtype).kind == "f" else np.dtype("f4")
    return np.asarray(scale.gain, kind), np.asarray(scale.offset, kind)


@lru_cache(maxsize=256)
def _torch_constants(scale: Scale, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    # inference_mode(False): a constant first made while acting must still be usable in training
    with torch.inference_mode(False):
        return torch.tensor(scale.gain, device=device, dtype=dtype), torch.tensor(
            scale.offset, device=device, dtype=dtype
        )


@dataclass(frozen=True)
class Stream:
    """One named observation. `shape` is one time step's; low-dim streams are `(width,)` with one name a channel, points
    `(n, channels)` with x y z first and, where they are to be scaled, one name a channel.

    Images are `(height, width, 3)` uint8. `scale` is set once demonstrations were seen; images are never fitted.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    names: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    frame: str = ""
    scale: Scale | None = None
    made_of: str = ""
    """What a stream that is computed of others was made of, in words that differ where it would; "" for one that is recorded."""
    texts: tuple[str, ...] = ()
    """Of a stream of kind text, all that demonstrations hold, set once they were seen; () where they are too many to list."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown(f"kind of stream {self.name!r}", self.kind, KINDS)
        if self.low_dim and len(self.names) != self.shape[0]:
            raise UserError(
                f"stream {self.name!r} is {self.shape[0]} wide with {len(self.names)} channel names: name every channel"
            )
        if self.kind == "points" and self.names and len(self.names) != self.shape[-1]:
            raise UserError(
                f"points {self.name!r} have {self.shape[-1]} channels and {len(self.names)} channel names: name every channel"
            )

    @property
    def low_dim(self) -> bool:
        return KINDS[self.kind].low_dim

    @property
    def scaled(self) -> bool:
        """Whether its channels are scaled by what demonstrations hold: low-dim ones, and points whose channels are named."""
        return KINDS[self.kind].scaled and bool(self.names)

    @property
    def gaps(self) -> bool:
        """Whether nan may stand for what was not measured: in maps with a point for each pixel."""
        return self.kind == "points" and len(self.shape) == 3

    @property
    def dear(self) -> bool:
        return KINDS[self.kind].dear

    @property
    def hidden(self) -> bool:
        return KINDS[self.kind].hidden

    @property
    def dtype(self) -> Dtype:
        return KINDS[self.kind].dtype

    @property
    def range(self) -> tuple[int | float, int | float]:
        """The least and the largest value it may hold."""
        return KINDS[self.kind].range


@dataclass(frozen=True)
class ObsSpace:
    """The named streams that are seen, at `rate_hz`."""

    streams: tuple[Stream, ...]
    rate_hz: float

    def __getitem__(self, name: str) -> Stream:
        for stream in self.streams:
            if stream.name == name:
                return stream
        raise unknown("observation stream", name, self.names)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(s.name for s in self.streams)

    def pick(self, names: Iterable[str]) -> ObsSpace:
        """The same space with only these streams, in this order."""
        return replace(self, streams=tuple(self[n] for n in names))


@dataclass(frozen=True)
class ActionSpace:
    """What one action row means. `horizon` is the rows of a chunk (Tp); a world that takes single rows says 1."""

    names: tuple[str, ...]
    units: tuple[str, ...]
    frame: str
    rate_hz: float
    horizon: int = 1
    kind: ActionKind = "trajectory"
    rotation: str = "none"
    """Layout of rotation channels: none | quat_wxyz | rotvec | rot6d_rows | rot6d_columns (see `polyarm.rotation`)."""
    scale: Scale | None = None
    rotations: tuple[int, ...] = ()
    """The first channel of each rotation."""
    relative: tuple[str, ...] | None = None
    """What a policy's chunk is relative to, "stream.channel" or "" a channel (see `polyarm.relative`); None: absolute. Data and
    worlds are always absolute."""

    @property
    def width(self) -> int:
        return len(self.names)


@dataclass
class Clip:
    """A batch of k consecutive windows (k = 1 for stateless policies). Arrays are numpy or torch.

    obs: {stream: [b k o ...]} raw units; action: [b k h d] raw units; reset: [b k] true where a window starts an episode.
    """

    obs: dict[str, Any]
    action: Any
    reset: Any

    def to(self, device: torch.device) -> Clip:
        obs = {name: x.to(device, non_blocking=True) for name, x in self.obs.items()}
        return Clip(obs, self.action.to(device, non_blocking=True), self.reset.to(device, non_blocking=True))


def require_obs(want: ObsSpace, got: ObsSpace, wanter: str, giver: str) -> None:
    """Refuse unless `got` offers every stream of `want`, channel by channel, at the same rate.

    Scales are not compared: `wanter` carries its own.
    """
    for stream in want.streams:
        if stream.name not in got.names:
            raise UserError(
                f"{wanter} needs observation stream {stream.name!r}, {giver} gives {', '.join(got.names)}: "
                "choose the task it was trained on, or train on these streams"
            )
        other = got[stream.name]
        if stream.scaled:
            _require_channels(f"observation stream {stream.name!r}", stream.names, other.names, wanter, giver)
        for what, a, b in (
            ("kind", stream.kind, other.kind),
            ("shape", stream.shape, other.shape),
            ("units", stream.units, other.units),
            ("frame", stream.frame, other.frame),
        ):
            if a != b:
                raise UserError(
                    f"observation stream {stream.name!r} has {what} {a} in {wanter}, {b} in {giver}: make them agree"
                )
        if stream.made_of != other.made_of:
            made = lambda s: f"is made of {s.made_of}" if s.made_of else "is recorded as it is"
            raise UserError(
                f"observation stream {stream.name!r} {made(stream)} in {wanter}, and {made(other)} in {giver}: give "
                f"task.derive.{stream.name} as it was trained with, or train again"
            )
    _require_rate(want.rate_hz, got.rate_hz, wanter, giver)


def require_actions(want: ActionSpace, got: ActionSpace, wanter: str, giver: str) -> None:
    """Refuse unless both spaces mean the same action row. Horizon and scale are not compared (see `policies.mixture`)."""
    _require_channels("the action", want.names, got.names, wanter, giver)
    if want.kind != got.kind:
        raise UserError(
            f"the action has kind {want.kind} in {wanter}, {got.kind} in {giver}: give task.action_kind={want.kind}, or train again"
        )
    for what, a, b in (
        ("units", want.units, got.units),
        ("frame", want.frame, got.frame),
        ("rotation", want.rotation, got.rotation),
        ("rotations from channels", list(want.rotations), list(got.rotations)),
    ):
        if a != b:
            raise UserError(
                f"the action has {what} {a} in {wanter}, {b} in {giver}: convert one of them before training"
            )
    _require_rate(want.rate_hz, got.rate_hz, wanter, giver)


def _require_channels(what: str, want: tuple[str, ...], got: tuple[str, ...], wanter: str, giver: str) -> None:
    if want == got:
        return
    missing = [n for n in want if n not in got]
    extra = [n for n in got if n not in want]
    if missing:
        detail = f"misses channel {missing[0]!r}"
    elif extra:
        detail = f"has the extra channel {extra[0]!r}"
    else:
        i = (
            next(i for i, (a, b) in enumerate(zip(want, got, strict=False)) if a != b)
            if len(want) == len(got)
            else len(want)
        )
        detail = f"has other channels from index {i} on"
    raise UserError(
        f"{what} is {len(want)} channels in {wanter} and {len(got)} in {giver}, which {detail}: "
        "use the data or task it was trained on, or train again"
    )


def _require_rate(want: float, got: float, wanter: str, giver: str) -> None:
    if want != got:
        raise UserError(
            f"{wanter} runs at {want:g} Hz, {giver} at {got:g} Hz: resample the demonstrations or set the world's rate"
        )


@dataclass(frozen=True)
class Spec:
    """`spec.json` of a checkpoint and the attributes of a demo store: what the numbers beside it mean."""

    obs: ObsSpace
    action: ActionSpace
    versions: Mapping[str, str] = field(default_factory=dict)
    schema: int = SCHEMA

    def to_json(self) -> dict[str, Any]:
        """Plain data. Scales carry their hash, so that an edit by hand is noticed."""
        data = asdict(self)
        scales = [self.action.scale, *(stream.scale for stream in self.obs.streams)]
        for part, scale in zip([data["action"], *data["obs"]["streams"]], scales, strict=True):
            if scale is not None:
                part["scale"]["hash"] = scale.hash
                if scale.reach is None:  # younger than the schema
                    del part["scale"]["reach"]
        young = [(data["action"], name) for name in ("rotations", "relative")]
        young += [(stream, name) for stream in data["obs"]["streams"] for name in ("made_of", "texts")]
        for part, name in young:
            if not part[name]:  # younger than the schema: written only where they say something
                del part[name]
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str = "spec.json") -> Spec:
        if data.get("schema") != SCHEMA:
            raise UserError(
                f"{where} has schema {data.get('schema')}, this polyarm reads {SCHEMA}: use the polyarm that wrote it"
            )
        streams = tuple(Stream(**_space(s, f"stream {s['name']!r} of {where}")) for s in data["obs"]["streams"])
        obs = ObsSpace(streams, data["obs"]["rate_hz"])
        return cls(obs, ActionSpace(**_space(data["action"], f"the action of {where}")), dict(data["versions"]))


def _space(data: Mapping[str, Any], where: str) -> dict[str, Any]:
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
    if data.get("scale") is not None:
        scale = Scale(tuple(data["scale"]["gain"]), tuple(data["scale"]["offset"]), data["scale"].get("reach"))
        if scale.hash != data["scale"].get("hash"):
            raise UserError(
                f"the scale of {where} does not match its hash: the file was edited; restore it or train again"
            )
        if len(scale.gain) != len(data["names"]):
            raise UserError(
                f"the scale of {where} has {len(scale.gain)} channels for {len(data['names'])} names: restore it or train again"
            )
        fields["scale"] = scale
    return fields
