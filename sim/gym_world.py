"""Gymnasium environments as they are, made into worlds by saying what their numbers mean. Docs: docs/new_task.md.

    register(
        "mine/Swing-v0",
        "Pendulum-v1",
        streams=[numbers("state", {"cos": "1", "sin": "1", "speed": "rad/s"})],
        action={"torque": "N m"},
        rate_hz=20,
        success=lambda step: step.obs["state"][0] > 0.95,
    )

Nothing is guessed: what is not said is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from polyarm.sim.gym_fits import action_row, require_fits, require_shows
from polyarm.sim.world import build_world, command, find, maker, observation_space
from polyarm.spec import Spec, UserError
from polyarm.streams import spec_of


class Step(NamedTuple):
    """What a rule sees of a step: obs {stream: array} as policies see it, the rest as the environment gave it."""

    obs: dict[str, np.ndarray]
    reward: float
    terminated: bool
    truncated: bool
    info: Mapping[str, Any]


@dataclass(frozen=True)
class Said:
    """The arguments of `register`."""

    env: Any
    streams: Any
    action: Any
    rate_hz: Any
    success: Any
    score: Any
    max_steps: Any


def register(
    world_id: str,
    env: Any,
    *,
    streams: Any = None,
    action: Any = None,
    rate_hz: Any = None,
    success: Any = None,
    score: Any = None,
    max_steps: Any = None,
    nondeterministic: bool = False,
) -> None:
    """Register a gymnasium environment as the world `world_id`.

    env: its id, `Id` or `module:Id`, or a function that makes it, wrappers and all; task.env_kwargs are its arguments.
    streams: `numbers(...)` or `image(...)`, the one of a Box, or those wanted of a Dict, by its keys; {key: stream} where they
    are to have other names. action: {channel: unit}, or `actions(...)`. rate_hz: steps a second.
    success: the key of info that says so at every step, or a rule, `lambda step: step.reward > 0.9` (see `Step`).
    score: a rule that gives 0 to 1 for `task.measure: score`; success, if none. max_steps: after which an episode is over
    (default: the environment's own limit).

    What is missing or does not fit is said when the world is made.
    """
    said = Said(env, streams, action, rate_hz, success, score, max_steps)
    gym.register(
        world_id, f"{__name__}:GymWorld", kwargs={"said": said}, nondeterministic=nondeterministic,
        disable_env_checker=True,
    )  # fmt: skip


class GymWorld(gym.Env):
    """A world around `env`, the gymnasium environment itself, which experts may ask. Its info is kept where it is a number or a
    truth."""

    observation_space: spaces.Dict
    action_space: spaces.Box
    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012  as gymnasium declares it

    def __init__(self, said: Any, max_steps: Any = None, render_mode: str = "rgb_array", **kwargs: Any) -> None:
        if not isinstance(said, Said):
            raise UserError(
                f"said={said}: what an environment's numbers mean is said where it is registered; leave it out"
            )
        self.said, self.render_mode = said, render_mode
        self.max_steps = _whole(said.max_steps if max_steps is None else max_steps)
        self.env, self._name = _made(said.env, kwargs, self.max_steps)
        try:
            self._prepare()
        except BaseException:
            self.env.close()
            raise
        self._steps = 0

    def _prepare(self) -> None:
        said, inner = self.said, self.env
        if self.max_steps is None and (inner.spec is None or inner.spec.max_episode_steps is None):
            raise UserError(f"{self._name} has no limit of steps: give max_steps, after which an episode is over")
        if not isinstance(said.success, str) and not callable(said.success):
            raise UserError(
                f"success={said.success}: give the key of {self._name}'s info that says so, or a rule such as "
                "success=lambda step: step.terminated"
            )
        named = said.streams if isinstance(said.streams, Mapping) else None
        streams = tuple(named.values()) if named is not None else said.streams
        dt = getattr(inner.unwrapped, "dt", None)
        known = isinstance(dt, int | float) and 0 < dt < np.inf
        hint = f"; its dt is {dt:g} s, which would be rate_hz={1 / dt:.4g}" if dt and known else ""
        spec = spec_of(streams, said.action, said.rate_hz, hint)
        self._keys = dict(zip(named if named is not None else spec.obs.names, spec.obs.streams, strict=True))
        require_shows(inner.observation_space, self._keys, self._name)
        self.action_space = action_row(inner.action_space, spec, self._name)
        self.observation_space = observation_space(spec.obs)
        self.metadata = self.metadata | {"render_fps": spec.action.rate_hz}
        self._spec = Spec(spec.obs, spec.action, {"env": self._name, **_package(inner)})

    @property
    def world_spec(self) -> Spec:
        return self._spec

    @property
    def time_s(self) -> float:
        return self._steps / self._spec.action.rate_hz

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        obs, info = self.env.reset(seed=seed, options=options)
        self._steps = 0
        return self._obs(obs), {**_plain(info), "is_success": False}

    def step(self, action: np.ndarray):
        inner = self.env.action_space
        wanted = command(action, self.action_space, self._name)
        obs, reward, terminated, truncated, info = self.env.step(wanted.reshape(inner.shape).astype(inner.dtype))
        self._steps += 1
        truncated = bool(truncated) or self._steps == self.max_steps
        step = Step(self._obs(obs), float(reward), bool(terminated), truncated, info)
        success = self._succeeds(step)
        score = float(success) if self.said.score is None else self._scored(step)
        return step.obs, score, step.terminated, truncated, {**_plain(info), "is_success": success}

    def render(self) -> np.ndarray:
        picture = self.env.render()
        if (
            not isinstance(picture, np.ndarray)
            or picture.dtype != np.uint8
            or picture.ndim != 3
            or picture.shape[2] != 3
        ):
            given = f"{picture.dtype} {picture.shape}" if isinstance(picture, np.ndarray) else type(picture).__name__
            raise UserError(
                f"{self._name} draws {given}, not a picture uint8 (height, width, 3): make it with render_mode='rgb_array', or give "
                "eval.videos=0"
            )
        return picture

    def close(self) -> None:
        self.env.close()

    def _obs(self, obs: Any) -> dict[str, np.ndarray]:
        if not isinstance(self.env.observation_space, spaces.Dict):
            obs = dict.fromkeys(self._keys, obs)
        found = {}
        for key, stream in self._keys.items():
            if not isinstance(obs, Mapping) or key not in obs:
                given = ", ".join(map(str, obs)) if isinstance(obs, Mapping) else f"a {type(obs).__name__}"
                raise UserError(
                    f"{self._name} gave {given} and no {key!r}, which its observation_space has: correct one of them"
                )
            x = np.asarray(obs[key])
            require_fits(x.shape, x.dtype, stream, f"the observation {key!r} of {self._name}")
            found[stream.name] = x.astype(stream.dtype)
        return found

    def _succeeds(self, step: Step) -> bool:
        rule = self.said.success
        if not isinstance(rule, str):
            return bool(self._number("success", rule, step))
        if rule not in step.info:
            raise UserError(
                f"{self._name} says no {rule!r} in the info of step {self._steps}, it holds {', '.join(map(str, step.info)) or 'nothing'}: "
                "give the key that says success at every step, or a rule such as success=lambda step: step.terminated"
            )
        return bool(self._number("success", lambda step: step.info[rule], step))

    def _scored(self, step: Step) -> float:
        score = self._number("score", self.said.score, step)
        if not 0 <= score <= 1:
            raise UserError(f"the score of {self._name} is {score:g}: give 0 to 1, which is all that there was to do")
        return score

    def _number(self, what: str, rule: Callable[[Step], Any], step: Step) -> float:
        """What a rule of the user's gives for a step."""
        try:
            value = np.asarray(rule(step))
        except Exception as e:  # whatever it raises
            raise UserError(f"the rule of {what} of {self._name} raises {type(e).__name__} ({e}): correct it") from e
        if value.ndim or value.dtype.kind not in "biuf" or not np.isfinite(value):
            raise UserError(f"{what} of {self._name} is {value}: give True or False, or one number")
        return float(value)


def _made(env: Any, kwargs: dict[str, Any], max_steps: int | None) -> tuple[gym.Env, str]:
    """(the environment, what to call it)."""
    if isinstance(env, str):
        near = lambda: get_close_matches(env.rpartition(":")[2], gym.registry, n=5, cutoff=0.3)
        spec = find(env, near)
        metadata = getattr(maker(spec), "metadata", None)
        modes = metadata.get("render_modes") or () if isinstance(metadata, Mapping) else ()
        drawn = {"render_mode": "rgb_array"} if "rgb_array" in modes else {}
        limit = {} if max_steps is None else {"max_episode_steps": -1}
        return build_world(spec, {"disable_env_checker": True, **drawn, **limit, **kwargs}), spec.id
    if not callable(env):
        raise UserError(f"env={env}: give the id of a gymnasium environment, or a function that makes one")
    made = env(**kwargs)
    if not isinstance(made, gym.Env):
        raise UserError(f"env gives a {type(made).__name__}: give a function that makes a gymnasium.Env")
    return made, made.spec.id if made.spec is not None else type(made.unwrapped).__name__


def _whole(steps: Any) -> int | None:
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
        raise UserError(f"max_steps={steps}: give a whole number of at least 1")
    return steps


def _plain(info: Mapping[str, Any]) -> dict[str, Any]:
    return {name: x for name, x in info.items() if isinstance(x, bool | int | float | np.number | np.bool_)}


def _package(env: gym.Env) -> dict[str, str]:
    """The version of the package that an environment comes from, where it has one."""
    package = type(env.unwrapped).__module__.partition(".")[0]
    try:
        return {package: version(package)}
    except PackageNotFoundError:
        return {}
