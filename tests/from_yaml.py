"""Classes with the settings that polyarm's own yaml gives them, which no constructor repeats; a test gives what differs."""

from functools import partial
from typing import Any

import yaml
from hydra.utils import get_object

from polyarm.config import CONFIGS


def given(file: str, *keys: str) -> dict[str, Any]:
    """Plain settings at `keys` of configs/FILE.yaml: no parts, no name, nothing taken from elsewhere."""
    node = yaml.safe_load((CONFIGS / f"{file}.yaml").read_text())
    for key in keys:
        node = node[key]
    plain = lambda value: not isinstance(value, dict) and "${" not in str(value)
    return {k: v for k, v in node.items() if plain(v) and k not in ("name", "defaults")}


def made(file: str, *keys: str, only: tuple[str, ...] = (), **other: Any) -> Any:
    """The class that this node names, with its settings (`only` some) and others; those of a call count more."""
    settings = given(file, *keys)
    mine = {k: v for k, v in settings.items() if not k.startswith("_") and (not only or k in only)}
    return partial(get_object(settings["_target_"]), **mine | other)


ResidualMlp = made("body/mlp")
ChunkTransformer = made("body/transformer")
Unet1d = made("body/unet")
EnergyTransformer = made("body/energy_transformer")
ObsTransformer = made("experiment/ebt_released", "policy", "temporal")
Descent = made("policy/ebt", "descent")
ResNetKeypoints = made("encoder/scratch", "image")
ConvKeypoints = made("encoder/small", "image")
PointNet = made("encoder/scratch", "points")
ColourPointNet = partial(PointNet, **given("encoder/points_colour", "points"))
ResNetPooled = made("encoder/seed_image", "image")
PretrainedText = made("text/clip")
Backbone = made("encoder/timm", "image")
SeedPolicy = made("policy/seed", only=("forget",))

# at the published sizes, which the yaml, for one CPU core, says beside its own
Sega = made("policy/seed", "memory", tokens=60, depth=6, heads=8)
DiffusionGpt = made("body/gpt", goals=0, width=240, heads=12, p_drop_attn=0.05, p_drop_resid=0.05, causal=True)
BesoPolicy = made("policy/beso", only=("goal_dropout", "drop_rows", "goal_channels", "guidance"), goal_steps=1)
