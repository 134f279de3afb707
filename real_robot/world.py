"""A real arm as the worlds of a rollout (`eval.rollout.Worlds`), one row of them.

`RobotWorld` knows no clock but its link's: `link.Inline` is lock-step and deterministic, and with the arm `mujoco` equal to the
simulator to the bit; `daemon.Daemon` is the arm's own process by the wall clock. It owns the grid of action slots, and moves it when
a slot begins late.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from gymnasium import spaces

from polyarm.real_robot.link import ArmStopped, Link, Seen
from polyarm.real_robot.plan import Chunk
from polyarm.real_robot.plant import Plant
from polyarm.real_robot.states import STOPPED, State
from polyarm.sim.world import command
from polyarm.spec import Spec

TOLD_AFTER_S = 2.0
"""An arm that is held for so long by one thing will not go on: whoever acts is told."""


@runtime_checkable
class Scene(Protocol):
    """Who lays out the task and says what is seen beside the arm, and what is done: on a table a person and cameras."""

    def reset(self, seed: int | None) -> None: ...
    def see(self) -> tuple[dict[str, np.ndarray], bool]: ...


class RobotWorld:
    """`stream`: the arm's own, beside the scene's. `slip`: a slot that begins later than this share of it moves the grid.

    After an episode `late_ms` [T], `slips` and `holds` ({why: slots}) say how it was kept to.
    """

    num_envs = 1
    look = True
    stages = ()
    replays = False

    def __init__(
        self, link: Link, scene: Scene, spec: Spec, action_space: spaces.Box, max_steps: int,
        stream: str = "joint_pos", slip: float = 0.5,
    ) -> None:  # fmt: skip
        self.link, self.scene, self.action_space, self.max_steps = link, scene, action_space, max_steps
        self._spec, self._stream = spec, stream
        self._dt_ns = round(1e9 / spec.action.rate_hz)
        self._slip_ns = int(slip * self._dt_ns)
        self._number = self._steps = self._held = 0
        self._forget()
        self._over = True

    @property
    def world_spec(self) -> Spec:
        return self._spec

    def reset(self, *, seed: Any, options: dict[str, Any] | None = None):
        """The arm is limp while the task is laid out, then enabled where it stands."""
        mask = (options or {}).get("reset_mask", [True])
        if mask[0]:
            self.link.release()
            self.scene.reset(seed[0])
            self.link.enable()
            self._forget()
            self._next = self.link.now()
            self._see()
        return self._obs, {"is_success": np.array([self._done])}

    def step(self, actions: np.ndarray):
        """The row of the slot that begins now; returns what is seen at its end. One that is over stays as it is."""
        if self._over:
            return self._said(0.0)
        row = command(actions[0], self.action_space, "the robot")
        late = self.link.now() + self.link.lead_ns - self._next
        self.late_ms.append(late / 1e6)
        if late > self._slip_ns:
            self.slips += 1
            self._next += late
        self._number += 1
        self.link.submit(Chunk(self._number, self._seen_ns, self._next, self._dt_ns, (tuple(row.tolist()),)))
        self._next += self._dt_ns
        self._steps += 1
        self.link.wait(self._next - self.link.lead_ns)
        self._see()
        self._over = self._done or self._steps >= self.max_steps
        return self._said(float(self._done))

    def close(self) -> None:
        self.link.close()

    def _said(self, reward: float) -> tuple[Any, ...]:
        done = np.array([self._done])
        cut = np.array([self._steps >= self.max_steps])
        return self._obs, np.array([reward]), done, cut, {"is_success": done}

    def _see(self) -> None:
        arm = self.link.look()
        if arm.state in STOPPED:
            raise ArmStopped(f"the arm is in {arm.state}: {arm.why}")
        self._tell(arm)
        streams, self._done = self.scene.see()
        self._seen_ns = self.link.now()
        seen = streams | {self._stream: np.asarray(arm.q, np.float32)}
        self._obs = {name: np.asarray(seen[name])[None] for name in self._spec.obs.names}

    def _tell(self, arm: Seen) -> None:
        """An arm that is held says why in the end; never silently for ever."""
        held = arm.why if arm.state is State.HOLD and self._steps else ""
        self._held = self._held + 1 if held else 0
        if held:
            self.holds[held] += 1
        if self._held * self._dt_ns > TOLD_AFTER_S * 1e9:
            raise ArmStopped(f"the arm has been held for {TOLD_AFTER_S:g} s: {held}")

    def _forget(self) -> None:
        self.late_ms: list[float] = []
        self.slips = self._steps = self._held = 0
        self.holds: Counter[str] = Counter()
        self._over = self._done = False


class PlantScene:
    """What the world of a plant lays out and shows, with an eye that sees all."""

    def __init__(self, plant: Plant) -> None:
        self.plant = plant

    def reset(self, seed: int | None) -> None:
        self.plant.reset(0 if seed is None else seed)

    def see(self) -> tuple[dict[str, np.ndarray], bool]:
        world = self.plant.world
        return world.set_state(world.get_state()), world.is_success


class TwinScene:
    """The same of a twin in another process, by its control socket. `streams`: those that the task is seen by."""

    def __init__(self, remote: Callable[..., dict[str, Any]], streams: Sequence[str]) -> None:
        self.remote, self.streams = remote, tuple(streams)

    def reset(self, seed: int | None) -> None:
        self.remote("reset", seed=0 if seed is None else seed)

    def see(self) -> tuple[dict[str, np.ndarray], bool]:
        truth = self.remote("truth")
        return {name: np.asarray(truth[name], np.float32) for name in self.streams}, bool(truth["is_success"])
