"""What a setting may be: `RANGES` by its whole name, `POLICY` by the end of its name within `policy`. Values that make no
sense are refused in one sentence before anything is done with them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf
from typing import Any

from polyarm.spec import UserError

Real = int | float


class Misfit(Exception):
    """A value that a rule does not take."""


@dataclass(frozen=True)
class Rule:
    """`take` gives a value as it is meant (1e4 steps are 10000), or raises Misfit; `expect` ends "give ..."."""

    expect: str
    take: Callable[[Any], Any]
    free: bool = False
    """Any text will do, so that a word which hydra cannot read is that text."""


def _span(low: Real, high: Real, above: Real, below: Real) -> str:
    show = lambda x: f"{int(x)}" if x == int(x) else f"{x:g}"
    least = f"{show(low)}" if low > -inf else f"above {show(above)}" if above > -inf else ""
    most = f"{show(high)}" if high < inf else f"below {show(below)}" if below < inf else ""
    if least and most:
        return f" {'' if above > -inf else 'from '}{least}{' and at most' if above > -inf else ' to'} {most}"
    if least:
        return f" {least}" if above > -inf else f" of at least {least}"
    return ""


def _either(choices: Any) -> str:
    *first, last = choices
    return f"{', '.join(first)} or {last}" if first else str(last)


def number(low: Real = -inf, high: Real = inf, above: Real = -inf, below: Real = inf) -> Rule:
    """A finite number: `low` and `high` belong to the range, `above` and `below` do not."""

    def take(value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Misfit
        if not (low <= value <= high and above < value < below):  # which nan and inf never are
            raise Misfit
        return value

    return Rule(f"a number{_span(low, high, above, below)}", take)


def whole(low: int, high: int = 10**9) -> Rule:
    def take(value: Any) -> int:
        value = number(low, high).take(value)
        if value != int(value):
            raise Misfit
        return int(value)

    return Rule(f"a whole number{_span(low, high if high < 10**9 else inf, -inf, inf)}", take)


def divided(rule: Rule, by: int, rest: int = 0) -> Rule:
    def take(value: Any) -> int:
        value = rule.take(value)
        if value % by != rest:
            raise Misfit
        return value

    return Rule(rule.expect.replace("a whole", "an odd whole" if rest else "an even whole"), take)


def words(*known: str) -> Rule:
    def take(value: Any) -> str:
        if value not in known or not isinstance(value, str):
            raise Misfit
        return value

    return Rule(_either(known), take)


def text(what: str) -> Rule:
    """A string that is not empty; a number where a name or a path is meant is a slip (a folder 2024 is ./2024)."""

    def take(value: Any) -> str:
        if not isinstance(value, str) or not value.strip():
            raise Misfit
        return value

    return Rule(what, take, free=True)


def mapping(what: str) -> Rule:
    def take(value: Any) -> Any:
        if not isinstance(value, dict):
            raise Misfit
        return value

    return Rule(what, take)


def several(rule: Rule, what: str, least: int = 1, most: int = 10**6, distinct: bool = False) -> Rule:
    def take(value: Any) -> list[Any]:
        if not isinstance(value, list) or not least <= len(value) <= most:
            raise Misfit
        value = [rule.take(x) for x in value]
        if distinct and len(set(value)) < len(value):
            raise Misfit
        return value

    return Rule(what, take)


def any_of(*rules: Rule) -> Rule:
    def take(value: Any) -> Any:
        for rule in rules:
            try:
                return rule.take(value)
            except Misfit:
                continue
        raise Misfit

    return Rule(_either([rule.expect for rule in rules]), take, any(rule.free for rule in rules))


def _take_null(value: Any) -> None:
    if value is not None:
        raise Misfit


def _take_switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise Misfit
    return value


def _take_cuda(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"cuda:\d+", value):
        raise Misfit
    return value


NULL = Rule("null", _take_null)
SWITCH = Rule("true or false", _take_switch)
SEED = whole(0, 2**31 - 1)
DEVICE = any_of(words("auto", "cpu", "cuda"), Rule("cuda:N", _take_cuda))
PAIR = several(number(), "two numbers, such as [0.2, 0.002]", 2, 2)
SCALE = words("limits", "gaussian", "identity")
CROP = any_of(number(above=0, high=1), several(whole(1), "[height, width] in pixels", 2, 2))
SHARE = number(0, 1)
MS = number(0, 10**6)
DROP = number(0, below=1)
SIZE = whole(1, 2**16)
COUNT = whole(1)
NAMED = any_of(text("a stream's name"), mapping("{channel: stream.channel}"), NULL)

HIDDEN = several(SIZE, "a list of widths, such as [64], or []", 0)
PART = mapping("a part by its group, such as sampler=euler or body=mlp")

RANGES: dict[str, Rule] = {
    "output_dir": text("a folder, such as runs/2024"),
    "data.val_ratio": DROP,
    "data.max_train_episodes": any_of(COUNT, NULL),
    "data.seed": SEED,
    "data.num_workers": whole(0, 1024),
    "data.ram_gib": number(0),
    "data.neighbours": COUNT,
    "data.cache_features": SWITCH,
    "data.pad_after": any_of(words("all"), whole(0)),
    "data.constant": words("refuse", "centre"),
    "train.steps": COUNT,
    "train.batch_size": whole(1, 10**6),
    "train.noise_samples": COUNT,
    "train.lr": number(above=0, high=1),
    "train.betas": several(DROP, "two numbers from 0 to below 1", 2, 2),
    "train.weight_decay": number(0, 10),
    "train.warmup_steps": whole(0),
    "train.grad_clip": any_of(number(above=0), NULL),
    "train.ema_decay": DROP,
    "train.ema_power": number(0, 10),
    "train.seed": SEED,
    "train.device": words("auto", "cpu", "cuda"),
    "train.mixed_precision": words("auto", "native", "no", "bf16"),
    "train.threads": whole(1, 1024),
    "train.log_every": COUNT,
    "train.val_every": whole(0),
    "train.val_batches": COUNT,
    "train.checkpoint_every": whole(0),
    "train.keep_states": COUNT,
    "train.rollout_every": whole(0),
    "train.rollout_episodes": whole(1, 10**6),
    "train.resume": SWITCH,
    "eval.episodes": whole(1, 10**6),
    "eval.seed": SEED,
    "eval.n_envs": whole(1, 10**4),
    "eval.workers": any_of(words("auto"), whole(0, 1024)),
    "eval.n_action_steps": any_of(COUNT, NULL),
    "eval.ahead": whole(0, 10**4),
    "eval.latency_ms": any_of(words("auto"), MS, NULL),
    "eval.latencies_ms": several(MS, "a list of different numbers of milliseconds, such as [0, 50, 100]", 0, 100, True),
    "eval.pick": whole(1, 10**4),
    "eval.samples": whole(1, 1000),
    "eval.goals": SWITCH,
    "eval.videos": whole(0, 10**4),
    "eval.device": DEVICE,
    "eval.threads": whole(1, 1024),
    "eval.allow_other_versions": SWITCH,
    "collect.path": any_of(text("the store to fill, such as data/mine.zarr"), NULL),  # null: demos that lie at no path
    "collect.episodes": whole(1, 10**6),
    "collect.seed": SEED,
    "collect.workers": any_of(words("auto"), whole(1, 1024)),
    "deploy.episodes": whole(1, 10**6),
    "deploy.seed": any_of(SEED, NULL),
    "record.path": any_of(text("a store, such as data/mine.zarr"), NULL),
    "record.episodes": whole(1, 10**6),
    "record.policy": any_of(text("a run or a checkpoint"), NULL),
    "record.episode_s": any_of(number(above=0, high=86_400), NULL),
    "record.image_size": any_of(several(whole(1, 10_000), "[height, width] in pixels", 2, 2), NULL),
    "record.seed": SEED,
    "record.recover": SWITCH,
    "replay.episode": whole(0),
    "policy.name": text("the policy's name"),
    "policy.sampler": PART,
    "policy.encoder": PART,
    "policy.body": PART,
    "task.name": text("the task's name"),
    "task.env_id": any_of(text("the id of a world, such as polyarm/PickPlace-v0"), NULL),
    "task.env_kwargs": mapping("a mapping of the world's own settings"),
    "task.streams": any_of(
        several(text(""), "a list of different streams, such as [joint_pos, cube]", distinct=True), NULL
    ),
    "task.derive": any_of(mapping("{stream: {_target_: polyarm.cloud.Cloud, ...}}"), NULL),
    "task.action_kind": words("trajectory", "keypose"),
    "task.keyposes": any_of(mapping("{_target_: polyarm.keypose.Keyposes, tip: ..., ...}"), NULL),
    "task.expert": any_of(text("the dotted path of an expert"), NULL),
    "task.demos": mapping("a mapping with the path of the demonstrations"),
    "task.demos.path": text("where the demonstrations are, such as data/mine.zarr"),
    "task.demos.also": several(text(""), "a list of more stores, such as [data/push_cube.zarr]"),
    "task.demos.fields": any_of(mapping("{stream: {key: ...}}"), NULL),
    "task.measure": words("success", "score", "action_error"),
    "task.success": words("ever", "last"),
    "task.obs_scale": SCALE,
    "task.action_scale": SCALE,
    "task.scales": any_of(mapping("{stream: limits, gaussian or identity}"), NULL),
    "task.action_rotation": any_of(text("a layout such as rot6d_rows"), NULL),
    "task.action_relative": NAMED,
}
"""By the whole name. What a yaml says beyond these is not looked at; those of the root file are all here."""

POLICY: dict[str, Rule] = {
    "horizon": whole(1, 10**4), "n_obs_steps": whole(1, 10**4), "n_action_steps": whole(1, 10**4), "span_width": divided(whole(2, 2**16), 2),
    "width": SIZE, "blocks": whole(1, 1000), "expand": whole(1, 64), "layers": whole(1, 1000), "cond_layers": whole(0, 1000),
    "heads": SIZE, "depth": whole(1, 1000), "tokens": SIZE, "token_width": SIZE, "hidden": SIZE, "clock_dim": divided(whole(4, 2**16), 2),
    "down_dims": several(SIZE, "a list of widths, such as [256, 512, 1024]"), "kernel_size": divided(whole(1, 999), 2, 1), "groups": SIZE,
    "dropout": DROP, "p_drop_attn": DROP, "p_drop_resid": DROP, "p_drop_emb": DROP,
    "channels": several(SIZE, "a list of widths, such as [32, 32, 32]"), "stride": whole(1, 64),
    "keypoints": SIZE, "features": any_of(SIZE, NULL), "crop": CROP, "short_side": whole(1, 2**16),
    "widths": several(SIZE, "a list of widths, such as [64, 128, 256]"), "last": any_of(SIZE, NULL), "keep": number(above=0, high=1), "noise_m": number(0),
    "state.hidden": HIDDEN, "goal.hidden": HIDDEN,
    "cross_layers": whole(0, 1000), "shared_layers": whole(0, 1000), "branch_layers": whole(0, 1000), "words_layers": whole(0, 1000),
    "gripper_layers": whole(0, 1000), "shared_words": whole(0, 1000), "branch_words": whole(0, 1000), "words_dropout": DROP, "thin": COUNT,
    "position": several(text("a channel"), "the three action channels that are a position, such as [x, y, z]", 3, 3, distinct=True),
    "resize": words("nearest", "bilinear"), "augment": any_of(PART, NULL),
    "places": any_of(several(text(""), "a list of different streams, such as [goal]", 0, distinct=True), NULL),
    "augment.low": number(above=0), "augment.high": number(above=0),
    "gripper": text("the state stream that says where the gripper is"),
    "weights": mapping("{position: ..., rotation: ..., opening: ...}"), "weights.position": number(0), "trunk.weights": any_of(text("a file of weights"), NULL), "weights.rotation": number(0),
    "weights.opening": number(0), **dict.fromkeys(("metres", "whole", "words_feed", "batch_statistics", "gripper_state"), SWITCH), "rotation_schedule": any_of(PART, NULL),
    "n_chunks": whole(1, 10**4), "reset_interval": COUNT, "orthogonal": number(0), "place_std": number(0),
    "gate_bias": any_of(PAIR, NULL), "gate_temperature": number(above=0),
    "goal_steps": whole(0, 10**4), "goals": whole(0, 10**4), "goal_dropout": SHARE, "guidance": number(),
    "goal_channels": any_of(several(whole(0), "a list of channels, such as [6, 7, 8]", 0), NULL),
    "steps": whole(1, 10**5), "extra": whole(0, 10**5), "act_steps": whole(1, 10**5), "limit": any_of(number(above=0), NULL),
    "rate": any_of(number(above=0), NULL), "temperature": any_of(number(above=0), NULL), "energy_limit": number(above=0),
    "momentum": DROP, "noise": any_of(several(number(0), "[first, last]", 2, 2), NULL), "rate_spread": number(above=0),
    "clamp": any_of(number(above=0), NULL), "min_gradient": any_of(number(0), NULL),
    "condition_weight": number(0), "sigma_min": number(above=0), "sigma_max": number(above=0), "form.scale": number(above=0),
    "law.width": number(above=0), "law.middle": number(above=0), "law.mean": number(), "law.std": number(above=0),
    "share": SHARE, "finest": whole(1, 10**5), "bins": whole(1, 10**5), "power": number(0, 10),
    **dict.fromkeys(("form", "law", "schedule", "objective", "memory", "descent", "angles", "solver", "energy"), PART),
    "temporal": any_of(PART, NULL),
    "teacher": any_of(text("the output_dir of a training run"), NULL),
}  # fmt: skip
"""By the end of the name, the longest that fits, in nodes whose `_target_` is polyarm's own; classes check what is left."""

BENCH: dict[str, Rule] = {
    "output_dir": RANGES["output_dir"],
    "core_seconds": number(above=0),
    "measure": words("speed", "pieces"),
    "steps": COUNT,
    "episodes": RANGES["eval.episodes"],
    "seed": SEED,
    "workers": RANGES["collect.workers"],
    "device": words("cpu", "cuda"),
    "only": any_of(several(text(""), "a list of entries, such as [flow, ebt]"), NULL),
    "tasks": any_of(several(text(""), "a list of tasks, such as [pick_place]"), mapping("{task: {settings: [...]}}")),
}
"""Of a file of configs/bench."""


def require(key: str, value: Any, rule: Rule, default: Any = None) -> Any:
    """`value` as `rule` takes it, or the sentence."""
    try:
        return rule.take(value)
    except (Misfit, OverflowError):
        like = f", such as {default}" if type(default) in (int, float, list) and "such as" not in rule.expect else ""
        shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else value
        raise UserError(f"{key}={shown}: give {rule.expect}{like}") from None


def policy_rules(node: dict[str, Any], prefix: str = "policy", ours: bool = False) -> Iterator[tuple[str, Any, Rule]]:
    """(name, value, rule) of everything in a policy's node that `POLICY` knows."""
    ours = str(node["_target_"]).startswith("polyarm.") if "_target_" in node else ours
    for name, value in node.items():
        key = f"{prefix}.{name}"
        rule = POLICY.get(f"{prefix.rpartition('.')[2]}.{name}") or POLICY.get(str(name))
        if isinstance(value, dict):
            yield from policy_rules(value, key, ours)
        elif ours and rule is not None:
            yield key, value, rule
