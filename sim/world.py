"""What every world promises, and the few lines all of them share."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec, load_env_creator

from polyarm.derive import RESERVED
from polyarm.keypose import RESERVED as KEYPOSES
from polyarm.spec import ObsSpace, Spec, UserError, unknown


@runtime_checkable
class World(Protocol):
    """A `gymnasium.Env` that says what its numbers mean.

    - Observations are a dict keyed by stream name: float32 `(width,)` low-dim streams, uint8 `(height, width, 3)` images.
    - `info["is_success"]` is a bool at reset and at every step; the reward lies in [0, 1].
    - The world truncates itself at its `max_steps` constructor argument.
    - Actions are clipped to `action_space`; one that is not finite raises `UserError`.
    - A world whose reward is the share done of several subtasks names them in `stages`.
    - While its attribute `look` is set to False a step may show the pictures of before: nobody will look at them. A reset looks.
    - A world of which there is only one, such as an arm, says `only_one = True`: it is then played alone and in this process.
    """

    observation_space: spaces.Dict
    action_space: spaces.Box

    @property
    def world_spec(self) -> Spec:
        """Streams and action channels with names, units, frame and rate, and the package versions that matter."""
        ...

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]: ...

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]: ...


@runtime_checkable
class Simulated(World, Protocol):
    """What only a simulator promises, on top.

    All randomness comes from `reset(seed=...)`: the same seed and the same actions give the same observations to the bit, so
    that an episode can be played again, to be filmed. A world that cannot promise this, such as a real arm, is registered
    with gymnasium's `nondeterministic=True`.

    Its time stands still between steps. A world that is simulated at times and played by the clock at others says which it is now
    with an attribute `simulated_time`.
    """

    @property
    def time_s(self) -> float:
        """Simulated seconds since the reset."""
        ...

    def render(self) -> np.ndarray:
        """A picture for people, uint8 `(height, width, 3)` rgb."""
        ...


@runtime_checkable
class Goaled(Protocol):
    """A world that can say what is to be seen at the end; goal-conditioned policies need it."""

    def goal(self) -> dict[str, np.ndarray]: ...


@runtime_checkable
class Recorder(Protocol):
    """A world that keeps pictures of what it plays: there comes the clip from of an episode that cannot be played again."""

    def recording(self, seed: int) -> tuple[list[np.ndarray], float] | None:
        """(frames, frames a second) of the last episode of this seed; None where nothing was kept."""
        ...


def simulated_time(world: Any) -> bool:
    """Whether a world promises that its time stands still between steps."""
    return bool(getattr(world, "simulated_time", isinstance(world, Simulated)))


PARTS = ("gymnasium", "gymnasium_robotics", "gym_pusht")
"""Packages that worlds are built from; the names that they register themselves keep no `World` contract."""


def known_worlds() -> list[str]:
    """Names of the project's worlds and the user's."""
    home = lambda spec: (
        str(getattr(spec.entry_point, "__module__", spec.entry_point)).partition(":")[0].partition(".")[0]
    )
    return [name for name, spec in gym.registry.items() if home(spec) not in PARTS]


class Missing(UserError):
    """A world that cannot be had or seen here for want of a package or of OpenGL; its name and settings may be right."""


def find(env_id: Any, known: Callable[[], Iterable[str]] = known_worlds) -> EnvSpec:
    """The registered world of this name: `Id`, or `module:Id`, gymnasium's way to say which module registers it when imported.
    Raises `UserError` with the nearest of `known`."""
    if not isinstance(env_id, str):
        raise UserError(f"task.env_id={env_id}: give the name of a world, one of {', '.join(known())}")
    module, _, name = env_id.rpartition(":")
    if module:
        _import(module, env_id)
    try:
        return gym.spec(name)
    except gym.error.Error as error:
        raise unknown(f"world of module {module}" if module else "world", name, known()) from error


def _import(module: str, env_id: str) -> None:
    if not all(part.isidentifier() for part in module.split(".")):
        raise UserError(
            f"the world {env_id} names the module {module!r}: give it as Python imports it, such as my_worlds:mine/Reach-v0"
        )
    try:
        importlib.import_module(module)
    except Exception as error:
        raise _unloadable(env_id, module, error) from error


def _unloadable(name: str, module: str, error: Exception) -> UserError:
    """Why a world's module cannot be imported: it does not exist, a package that it needs does not, or it has a fault."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, ModuleNotFoundError) and error.name and f"{module}.".startswith(f"{error.name}."):
        return UserError(
            f"the world {name} needs the module {module}, which does not exist here: correct the name, or say where it lies with "
            "--configs DIR or PYTHONPATH"
        )
    needed = (getattr(error, "name", None) or "").partition(".")[0]
    ours = needed in ("polyarm", module.partition(".")[0]) or "cannot import name" in str(error)
    if isinstance(error, gym.error.DependencyNotInstalled) or (isinstance(error, ImportError) and not ours):
        return Missing(f"{name} cannot be loaded ({_line(error)}): install what is missing")
    return UserError(
        f"the world {name} cannot be loaded, {module} raises {type(error).__name__} ({_line(error)}): correct it"
    )


def _line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no more is said")


def make_world(env_id: Any, kwargs: Mapping[str, Any]) -> Any:
    """One world, by its registered name and constructor arguments."""
    return build_world(find(env_id), kwargs)


def build_world(spec: EnvSpec, kwargs: Mapping[str, Any]) -> Any:
    """The world of a registration. What it cannot be built with is a `UserError`, for want of a package `Missing`. `derive` among
    `kwargs`, {stream: polyarm.derive.Derivation}, is what it shows beside what it shows itself; `keyposes`, a
    `polyarm.keypose.Keyposes`, how it moves between the poses that it is then told."""
    kwargs = dict(kwargs)
    made, how = kwargs.pop(RESERVED, None), kwargs.pop(KEYPOSES, None)
    world = bare = _built(spec, kwargs)
    try:
        if made:
            from polyarm.sim.derived import Derived

            world = Derived(world, made, spec.id)
        if how:
            from polyarm.sim.keyposes import Moved

            world = Moved(world, how, spec.id)
    except BaseException:
        bare.close()
        raise
    return world


def _built(spec: EnvSpec, kwargs: Mapping[str, Any]) -> Any:
    _require_kwargs(spec, kwargs)
    try:
        return gym.make(spec, **kwargs)
    except UserError:
        raise
    except (ImportError, gym.error.DependencyNotInstalled) as error:
        raise _unloadable(spec.id, maker(spec).__module__, error) from error
    except Exception as error:  # whatever its constructor raises
        given = ", ".join(f"{name}={value}" for name, value in kwargs.items())
        why = _line(error) if isinstance(error, gym.error.Error) else f"{type(error).__name__}: {_line(error)}"
        raise UserError(
            f"{spec.id} cannot be made with task.env_kwargs {given or 'empty'} ({why}): correct them"
        ) from error


def maker(spec: EnvSpec) -> Any:
    """The class or function that makes the worlds of a registration."""
    entry: Any = spec.entry_point
    if not isinstance(entry, str):
        return entry
    try:
        return load_env_creator(entry)
    except Exception as error:
        raise _unloadable(spec.id, entry.partition(":")[0], error) from error


def _require_kwargs(spec: EnvSpec, kwargs: Mapping[str, Any]) -> None:
    takes = inspect.signature(maker(spec)).parameters
    if any(p.kind is p.VAR_KEYWORD for p in takes.values()):
        return
    for name in kwargs:
        if name not in takes and name not in inspect.signature(gym.make).parameters:
            raise unknown(f"setting of {spec.id} in task.env_kwargs", name, takes)


def spec_of(world: Any, name: str) -> Spec:
    """What the numbers of a world mean. Raises `UserError` for one that does not say, or whose spaces are of other numbers."""
    spec = world.get_wrapper_attr("world_spec") if world.has_wrapper_attr("world_spec") else None
    if not isinstance(spec, Spec):
        raise UserError(
            f"{name} has no world_spec, so nobody knows what its numbers mean: give it one (sim.world.World), or say what they are "
            "with polyarm.sim.gym_world (docs/new_task.md)"
        )
    _require_action_space(world.action_space, spec.action.width, name)
    shown = world.observation_space
    if not isinstance(shown, spaces.Dict):
        raise UserError(f"{name} shows {kind(shown)}: give a Dict with a Box for each of {', '.join(spec.obs.names)}")
    for stream in spec.obs.streams:
        if stream.name not in shown.spaces:
            raise unknown(f"stream in the observation_space of {name}", stream.name, shown.spaces)
        box = shown.spaces[stream.name]
        if not isinstance(box, spaces.Box) or box.shape != stream.shape or box.dtype != np.dtype(stream.dtype):
            raise UserError(
                f"{name} shows {stream.name!r} as {kind(box)}, its world_spec says {stream.dtype} {stream.shape}: make them agree"
            )
    for rate in (spec.obs.rate_hz, spec.action.rate_hz):
        if not isinstance(rate, int | float) or not 0 < rate < np.inf:
            raise UserError(f"{name} says rate_hz={rate}: give the steps a second, a number above 0")
    return spec


def _require_action_space(space: Any, width: int, name: str) -> None:
    if not isinstance(space, spaces.Box) or space.dtype is None or space.dtype.kind != "f":
        raise UserError(
            f"{name} takes actions of {kind(space)}: policies give rows of real numbers; choose a world with a Box of floats, or "
            "wrap it in one"
        )
    if space.shape != (width,):
        raise UserError(f"{name} takes actions of shape {space.shape}, its world_spec names {width}: make them agree")


def kind(space: Any) -> str:
    """Box float32 (3,), Discrete(4), ..."""
    return f"Box {space.dtype} {space.shape}" if isinstance(space, spaces.Box) else str(space).splitlines()[0]


def require_shown(obs: Any, streams: spaces.Dict, who: str) -> None:
    """Refuse an observation that is not what `streams` say; numbers may be of another precision."""
    for name, box in streams.spaces.items():
        there = isinstance(obs, Mapping)
        if not there or name not in obs or np.shape(obs[name]) != box.shape:
            given = f"only {', '.join(obs)}" if there else f"a {type(obs).__name__}"
            given = str(np.shape(obs[name])) if there and name in obs else given
            raise UserError(
                f"{who} was to show the stream {name!r} as {box.shape}, it gave {given}: correct the world, or its "
                "observation_space"
            )
        dtype = np.asarray(obs[name]).dtype
        if box.dtype is not None and not np.can_cast(dtype, box.dtype, "same_kind"):
            raise UserError(
                f"{who} was to show the stream {name!r} as {box.dtype}, it gave {dtype}: convert it in the world, pictures to "
                "uint8 from 0 to 255"
            )


def without_success(who: str, info: Mapping[str, Any]) -> UserError:
    """The error for a world whose episode ended without a word about success."""
    return UserError(
        f"{who} ended an episode and never said info['is_success'], its last info holds {', '.join(map(str, info)) or 'nothing'}: say "
        "it at every step, or say what counts with polyarm.sim.gym_world (docs/new_task.md)"
    )


def observation_space(obs: ObsSpace) -> spaces.Dict:
    """The gymnasium space of these streams. Low-dim bounds are open: physics overshoots whatever one would write."""
    return spaces.Dict({s.name: spaces.Box(*s.range, s.shape, np.dtype(s.dtype).type) for s in obs.streams})


def command(action: np.ndarray, space: spaces.Box, world: str) -> np.ndarray:
    """`action` as float64 within `space`. Raises `UserError` for a wrong shape and for values that are not finite."""
    action = np.asarray(action, np.float64)
    if action.shape != space.shape:
        raise UserError(f"{world} was given an action of shape {action.shape}: give one row of shape {space.shape}")
    if not np.isfinite(action).all():
        channel = int(np.argmin(np.isfinite(action)))
        raise UserError(
            f"{world} was given the action {action[channel]} in channel {channel}: give finite numbers, check the policy"
        )
    return np.clip(action, space.low.astype(np.float64), space.high.astype(np.float64))


def choose(names: tuple[str, ...], known: Mapping[str, Any], what: str) -> tuple[str, ...]:
    """`names` if each is one of `known`, otherwise a `UserError` that lists them."""
    for name in names:
        if name not in known:
            raise unknown(what, name, known)
    return tuple(names)
