"""What every policy is: noisy action chunk + noise angle + what was seen -> clean actions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from polyarm import relative
from polyarm.policies.generate.forms import Noise, normal
from polyarm.policies.generate.sample import Sampler
from polyarm.spec import ActionSpace, Clip, ObsSpace, Stream, UserError, require_actions

Obs = dict[str, Tensor]
"""{stream: [b o ...]} in raw units"""

GOAL = "goal."
"""`obs["goal.cube"]` are future rows of stream "cube"; `obs["goal.given"]` [b] says which rows of the batch have a goal."""
ACTION = "action"
"""`obs["action"]` [b o d]: what was executed at the observation steps before the newest, raw units (less the base where actions
are relative); NaN before an episode began."""

Cond = Any
"""What `encode` made of the observations, once a chunk; only the policy that made it reads it."""

State = tuple[Tensor, ...]
"""What is carried from chunk to chunk, rows first; () when stateless. A value: nothing is kept inside a policy."""


@runtime_checkable
class Policy(Protocol):
    """One file a policy, read top to bottom; see `policies/diffusion.py` for the pattern."""

    name: str
    obs_space: ObsSpace
    action_space: ActionSpace
    n_obs_steps: int  # To
    n_action_steps: int  # Ta, the rows executed of each chunk unless told otherwise
    sampler: Sampler

    # What only some policies do; `Plain` says no to all of it.
    goal_steps: int  # rows of a goal that it is shown, obs["goal.<stream>"]
    past_rows: int  # executed actions before the newest observation that it is shown, obs["action"]
    n_chunks: int  # consecutive chunks that training learns through, for a policy with memory
    reset_interval: int  # chunks after which training forgets, for a policy with memory
    parts: tuple[Policy, ...]  # the policies that it is made of
    bodies: tuple[torch.nn.Module, ...]  # the networks whose calls are its network evaluations; (): it does not say

    @property
    def energy(self) -> Callable[..., Tensor] | None:
        """(scaled chunks [b h d], cond) -> [b]: how unlike the demonstrations it holds them."""
        ...

    def prepare(self) -> None:
        """Load what only training needs, such as a teacher; called before anything is written."""
        ...

    def start(self, b: int) -> State: ...
    def encode(self, obs: Obs, state: State, generator: torch.Generator | None = None) -> tuple[Cond, State]:
        """Once a chunk. With a generator it may augment (training); without, it is deterministic (acting)."""
        ...

    def denoise(self, x: Float[Tensor, "b h d"], phi: Tensor, cond: Cond) -> Float[Tensor, "b h d"]:
        """Once a step: clean, scaled actions."""
        ...


class Plain:
    """What a policy does not do unless it says so: inherit it, and give what differs."""

    goal_steps: int = 0
    past_rows: int = 0
    n_chunks: int = 0
    reset_interval: int = 0
    energy: Any = None
    parts: tuple[Any, ...] = ()
    bodies: tuple[torch.nn.Module, ...] = ()

    def prepare(self) -> None: ...


class Trained(Policy, Protocol):
    """A policy that demonstrations train; a mixture of policies is none."""

    def loss(
        self, action: Float[Tensor, "b h d"], cond: Cond, generator: torch.Generator
    ) -> Tensor | Mapping[str, Tensor]:
        """Of scaled actions: a number, or several by name, of which training minimises the sum."""
        ...


def require_policy(policy: Any) -> Any:
    """`policy` if it has all that the protocol names; otherwise a `UserError` that says what is missing."""
    named = [*Policy.__annotations__, "energy", "prepare", "start", "encode", "denoise"]
    for name in named:
        if not hasattr(policy, name):
            raise UserError(
                f"{type(policy).__name__} has no {name!r}, which policies.policy.Policy asks of every policy: give it, or inherit "
                "policies.policy.Plain for what this policy does not do"
            )
    return policy


def leaves(policy: Policy) -> list[Any]:
    """The trained policies that a policy is made of, each once; itself where it is made of none."""
    if not policy.parts:
        return [policy]
    return list({id(p): p for part in policy.parts for p in leaves(part)}.values())


def device_of(policy: Policy) -> torch.device:
    """Where a policy's weights lie; the CPU for one without any."""
    weights = (p for leaf in leaves(policy) if isinstance(leaf, torch.nn.Module) for p in leaf.parameters())
    return next((p.device for p in weights), torch.device("cpu"))


def seen_by(part: Policy, obs: Obs) -> Obs:
    """What a part is shown of what the whole is: its own streams, and as many rows of them, of goals and of past actions as
    it takes."""
    own = {name: obs[name][:, -part.n_obs_steps :] for name in part.obs_space.names}
    if part.goal_steps:
        goals = {GOAL + name for name in part.obs_space.names}
        own |= {name: x[:, -part.goal_steps :] for name, x in obs.items() if name in goals}
        own |= {name: x for name, x in obs.items() if name == f"{GOAL}given"}
    if part.past_rows and ACTION in obs:
        own[ACTION] = obs[ACTION][:, -part.past_rows :]
    return own


def require_limit(policy: Policy) -> None:
    """Refuse a sampler that would cut actions which the demonstrations hold. (Scales that are older than their `reach` do
    not tell.)"""
    reach, bound = require_scale(policy.action_space).reach, policy.sampler.bound
    if reach is not None and bound is not None and reach > bound * (1 + 1e-4):
        raise UserError(
            f"policy.sampler clips scaled actions at {bound:g}, the demonstrations' reach {reach:.3g} as they are scaled: give "
            "policy.sampler.limit=null and a sampler that does not clip by itself, or train with task.action_scale=limits"
        )


LOSS = "loss"
"""The name of a policy's only loss, and of the sum of several."""


def clip_losses(
    policy: Trained,
    clip: Clip,
    generator: torch.Generator,
    state: State | None = None,
    augment: bool = True,
    noise_samples: int = 1,
) -> tuple[dict[str, Tensor], State]:
    """Mean losses by name over the k windows of a clip, their sum as "loss" first, and the state after the clip. Relative
    actions are made so here. Without `augment`, as in validation, what is seen is neither cropped at random nor hidden.
    `noise_samples`: the loss is a mean over so many noises and angles for each window, which is encoded once.

    The state is carried from window to window and restarted at reset flags; `state` is what the clip before left, so
    that gradients are cut at clips while memory is not (truncated back-propagation through k chunks).
    """
    scale = require_scale(policy.action_space)
    state = policy.start(len(clip.action)) if state is None else state
    losses: list[dict[str, Tensor]] = []
    for k in range(clip.action.shape[1]):
        state = restart(policy, state, clip.reset[:, k])
        obs = {name: x[:, k] for name, x in clip.obs.items()}
        cond, state = policy.encode(obs, state, generator if augment else None)
        under = base(policy, obs)
        action = clip.action[:, k] if under is None else clip.action[:, k] - under
        action, cond = repeat_rows(scale.do(action), noise_samples), repeat_rows(cond, noise_samples)
        losses.append(_named(policy.loss(action, cond, generator), policy.name))
    return {name: torch.stack([loss[name] for loss in losses]).mean() for name in losses[0]}, state


def clip_loss(
    policy: Trained, clip: Clip, generator: torch.Generator, state: State | None = None
) -> tuple[Tensor, State]:
    """(what training minimises, state after the clip) of `clip_losses`."""
    losses, state = clip_losses(policy, clip, generator, state)
    return losses[LOSS], state


def repeat_rows(cond: Cond, n: int) -> Cond:
    """What was seen, every row n times in place: tensors, and whatever tuples, lists and dicts hold them."""
    if n == 1:
        return cond
    return tree_map_only(Tensor, lambda x: x.repeat_interleave(n, 0), cond)


def _named(loss: Tensor | Mapping[str, Tensor], policy: str) -> dict[str, Tensor]:
    if isinstance(loss, Tensor):
        return {LOSS: loss}
    if not loss or LOSS in loss:
        raise UserError(
            f"policy {policy} returned the losses {', '.join(loss) or 'none'}: return one number, or several by names other than "
            f"{LOSS!r}, which is their sum"
        )
    return {LOSS: torch.stack(tuple(loss.values())).sum(), **loss}


def restart(policy: Policy, state: State, rows: Tensor) -> State:
    """The state with the flagged rows [b] as at the start of an episode; the others untouched."""
    fresh = policy.start(len(rows))
    return tuple(
        torch.where(rows.view(-1, *[1] * (old.ndim - 1)), new.to(old), old)
        for new, old in zip(fresh, state, strict=True)
    )


class Planned(NamedTuple):
    """One action chunk in raw units, the next state, and for a policy with an `energy` how unlike the demonstrations it
    holds the chunk."""

    action: Float[Tensor, "b h d"]
    state: State
    energy: Float[Tensor, "b"] | None


def plan(
    policy: Policy, obs: Obs, state: State, generator: Noise, sampler: Sampler | None = None, samples: int = 1
) -> Planned:
    """Observe, denoise from noise, and leave the network's units. Row To - 1 is the action for the newest observation.

    `samples` chunks of each row, next to each other, with noise of their own; what was seen is encoded once for all of them, and
    the next state is a row's."""
    space, under = policy.action_space, base(policy, obs)
    if under is not None and ACTION in obs:
        obs = {**obs, ACTION: obs[ACTION] - under}
    b = len(next(iter(obs.values())))
    cond, after = policy.encode(obs, state)
    if samples > 1 and not _has_rows(cond, b):
        cond, _ = policy.encode(repeat_rows(obs, samples), repeat_rows(state, samples))
    else:
        cond = repeat_rows(cond, samples)
    under = repeat_rows(under, samples)
    like = torch.empty(b * samples, space.horizon, space.width, device=next(iter(obs.values())).device)
    x = (sampler or policy.sampler)(policy.denoise, normal(like, generator), cond, generator)
    energy = policy.energy(x, cond) if policy.energy is not None else None
    action = require_scale(space).undo(x)
    return Planned(action if under is None else action + under, after, energy)


def _has_rows(cond: Cond, b: int) -> bool:
    """Whether what was seen is tensors of b rows, and holds nothing else that might be about rows."""
    return all(
        x.ndim > 0 and len(x) == b if isinstance(x, Tensor) else x is None or isinstance(x, int | float | str)
        for x in tree_leaves(cond)
    )


def chunk(
    policy: Policy, obs: Obs, state: State, generator: Noise, sampler: Sampler | None = None
) -> tuple[Float[Tensor, "b h d"], State]:
    """(actions, next state) of `plan`."""
    return plan(policy, obs, state, generator, sampler)[:2]


def base(policy: Policy, obs: Obs) -> Float[Tensor, "b 1 d"] | None:
    """What the rows of a chunk are relative to; None for a policy of absolute actions."""
    if policy.action_space.relative is None:
        return None
    newest = {name: obs[name][:, -1] for name in policy.obs_space.names}
    return relative.base(policy.action_space, policy.obs_space, newest)[:, None]


def require_scale(space: ActionSpace) -> Any:
    if space.scale is None:
        raise UserError("the action space has no scale: fit one on the demonstrations before training (datasets.scale)")
    return space.scale


def require_chunk(horizon: int, n_obs_steps: int, n_action_steps: int) -> None:
    """Refuse a To, Ta, Tp that do not fit: the executed rows To - 1 .. To - 2 + Ta must lie inside the chunk."""
    if min(horizon, n_obs_steps, n_action_steps) < 1:
        raise UserError(
            f"horizon={horizon}, n_obs_steps={n_obs_steps}, n_action_steps={n_action_steps}: each must be at least 1"
        )
    most = horizon - n_obs_steps + 1
    if n_action_steps > most:
        raise UserError(
            f"n_action_steps={n_action_steps} rows are more than a chunk of horizon={horizon} has after n_obs_steps={n_obs_steps}: "
            + (
                f"give at most {most} (horizon - n_obs_steps + 1), or a longer horizon"
                if most > 0
                else "give a longer horizon"
            )
        )


def require_alike(first: Policy, other: Policy) -> None:
    """Refuse two policies whose chunks mean different things, naming what differs first and the remedy."""
    a, b = first.action_space, other.action_space
    mine, theirs = f"policy {first.name}", f"policy {other.name}"
    require_actions(a, b, mine, theirs)
    for name, one, two in zip(a.names, a.relative or ("",) * a.width, b.relative or ("",) * b.width, strict=True):
        if one != two:
            raise UserError(
                f"action channel {name!r} is {relative.describe(one)} in {mine}, {relative.describe(two)} in {theirs}: train both with the same "
                "task.action_relative"
            )
    if a.horizon != b.horizon or first.n_obs_steps != other.n_obs_steps:
        raise UserError(
            f"{mine} has horizon {a.horizon} and n_obs_steps {first.n_obs_steps}, {theirs} {b.horizon} and {other.n_obs_steps}: "
            "their chunks start at other times; train them with the same"
        )
    s, t = require_scale(a), require_scale(b)
    for i, name in enumerate(a.names):
        if (s.gain[i], s.offset[i]) != (t.gain[i], t.offset[i]):
            raise UserError(
                f"action channel {name!r} is scaled by {s.gain[i]:g} and {s.offset[i]:g} in {mine}, by {t.gain[i]:g} and "
                f"{t.offset[i]:g} in {theirs}: train both on the same demonstrations with the same task.action_scale and data.seed"
            )


def union(spaces: Sequence[ObsSpace]) -> ObsSpace:
    """All streams of all parts; one that several name must be the same thing in each."""
    streams: dict[str, Stream] = {}
    for space in spaces:
        if space.rate_hz != spaces[0].rate_hz:
            raise UserError(f"parts observe at {spaces[0].rate_hz:g} and {space.rate_hz:g} Hz: train them at one rate")
        for stream in space.streams:
            known = streams.setdefault(stream.name, stream)
            if replace(known, scale=None) != replace(stream, scale=None):
                raise UserError(
                    f"observation stream {stream.name!r} differs between the parts: train them on the same task"
                )
    return ObsSpace(tuple(streams.values()), spaces[0].rate_hz)
