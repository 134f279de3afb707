"""Demonstrations at an arm, by hand or by a policy that a person may take it from: each episode is logged as it happens, and put
into the store once it is good.

    STORE            the demonstrations
    STORE.logs/      one log an episode, NUMBER.log; .redone, .stopped, .failed and .interrupted are those that are not in it
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces

from polyarm.datasets.store import Store
from polyarm.real_robot import closing, tape
from polyarm.real_robot.camera import fit
from polyarm.real_robot.episode_log import EpisodeLog, require_idle, survey
from polyarm.real_robot.link import ArmStopped
from polyarm.real_robot.manned import Manned, Told
from polyarm.real_robot.stand import Stand
from polyarm.real_robot.station import named
from polyarm.real_robot.tape import Tape
from polyarm.real_robot.teleop import REDO, SAVE, STOP, Teleop
from polyarm.real_robot.world import RobotWorld
from polyarm.spec import ObsSpace, Spec, UserError

if TYPE_CHECKING:
    from polyarm.eval.agent import Agent
    from polyarm.policies.policy import Policy

SAVED, REDONE, STOPPED, FAILED, CUT = "saved", "redone", "stopped", "failed", "interrupted"
"""How an episode may end; `FAILED` is a policy's, `CUT` what a recorder says whose command died."""
GIVE_UP = 20
"""Without a person: failures for each success, from which on trying on is no use."""
FRAME_S = 2.0
"""How old a camera's frame may be that a policy is shown."""


@dataclass(frozen=True)
class Recording:
    """`record` of configs/polyarm.yaml, where each line has its meaning."""

    path: Path
    episodes: int
    task: str = ""
    episode_s: float | None = None
    seed: int = 0
    image_size: tuple[int, int] | None = None
    recover: bool = False

    @property
    def logs(self) -> Path:
        return self.path.with_name(f"{self.path.name}.logs")


@dataclass
class Session:
    """One session at a brought-up arm. `mind`: who acts where the person does not; `waits`: a key begins each episode, as where a
    person lays the scene out."""

    stand: Stand
    how: Recording
    teleop: Teleop
    mind: Mind | None = None
    waits: bool = True
    say: Callable[[str], None] = print
    live: Callable[[Told, Tape], None] = lambda told, tape: None

    def run(self) -> dict[str, Any]:
        """Until the store has `episodes`, or the button `STOP`. {"episodes": in the store, "recorded": of them now, "tried", "path"}"""
        how, stand, hz = self.how, self.stand, self.stand.row_hz
        cameras = {name: tape.made(_maker(node)) for name, node in stand.robot.cameras.items()}
        if cameras and stand.lockstep:
            raise UserError("cameras see by the clock, and robot.clock=lockstep has none: give robot.clock=wall")
        sizes = {name: how.image_size or size for name, (_, size, _, _) in cameras.items()}
        self.spec = tape.store_spec(stand.spec, hz, stand.eye, sizes, stand.versions)
        if self.mind:
            self.mind.require(
                tape.store_spec(stand.spec, hz, stand.eye, sizes | self.mind.sizes(sizes), stand.versions)
            )
        for line in recovered(how, self.spec, stand):
            self.say(line)
        have, recorded, tried = _count(how.path), 0, 0
        eye = tape.eye_stream(stand.eye, hz) if stand.eye else None
        with ExitStack() as stack:
            self.tape = stack.enter_context(
                Tape(stand.robot.name, stand.spec, float(stand.robot.rate_hz), eye, cameras, stand.lockstep)
            )
            self.manned = Manned(stand.link, self.teleop, stand.tick_ns, stand.row_ns, self._tell)
            self.manned.open(stand.spec)
            stack.callback(self.teleop.close)
            while have + recorded < how.episodes:
                outcome = self._episode(first=not tried)
                if outcome == STOPPED:
                    break
                recorded, tried = recorded + (outcome == SAVED), tried + 1
                if not self.waits and tried - recorded >= GIVE_UP * max(1, recorded):
                    raise UserError(
                        f"{tried - recorded} of {tried} episodes were not done: nobody is there who would see why; stopped"
                    )
        return {"episodes": have + recorded, "recorded": recorded, "tried": tried, "path": str(how.path)}

    def _episode(self, first: bool) -> str:
        """How it ended, once the store has it if it is good."""
        stand, manned, path = self.stand, self.manned, _next(self.how.logs)
        self._recording = False
        self._spans: list[tuple[int, int]] = []
        self._since: int | None = None
        seed = self.how.seed + int(path.stem)
        if stand.scene is not None:
            stand.link.release()
            stand.scene.reset(seed)
        if stand.scene is not None or first:
            stand.link.enable()
        manned.start()
        if self.waits and not self._begun():
            return STOPPED
        about = {"robot": stand.robot.name, "task": self.how.task, "scene_seed": seed if stand.scene else None}
        self.tape.begin(path, manned.now(), self.spec, **about)
        self._recording, outcome, success = True, CUT, False
        try:
            outcome, success = self._by_mind(self.mind, seed) if self.mind else self._by_hand()
        finally:
            self._recording = False
            manned.release()
            self._let_go(manned.now())
            self.tape.end(manned.now(), outcome, success, self._spans if self.mind else ())
            for line in self.tape.resumed:
                self.say(line)
            self.tape.resumed.clear()
            if outcome != SAVED:
                os.replace(path, path.with_suffix(f".{outcome}"))
        if outcome == SAVED:
            self._keep(path)
        return outcome

    def _keep(self, path: Path) -> None:
        (closed,) = closing.close([path], _store(self.how, self.spec, self.stand), self.spec)
        seconds = closed.rows / self.spec.action.rate_hz
        self.say(f"episode {closed.episode}: {closed.rows} rows, {seconds:.1f} s, in {self.how.path}")
        for line in closed.told:
            self.say(line)

    def _begun(self) -> bool:
        """The person may move the arm, unrecorded, until he begins the episode; False where he wants no more of them."""
        self.say("lay out the scene; right: begin, escape: stop")
        while not self.manned.pressed & {SAVE, STOP}:
            self._turn()
        begin = STOP not in self.manned.pressed
        self.manned.pressed.clear()
        return begin

    def _turn(self) -> None:
        self.manned.wait(self.manned.now() + self.stand.tick_ns)
        self.stand.pace()

    def _by_hand(self) -> tuple[str, bool]:
        manned, bench, due = self.manned, Bench(self.stand, self.tape), self.manned.now()
        end = self._end(self.how.episode_s)
        while True:
            now = manned.now()
            if now >= due:
                bench.see()
                due = max(due + self.stand.row_ns, now)
            self._turn()
            if outcome := self._pressed():
                return outcome, outcome == SAVED
            if manned.now() >= end:
                return SAVED, True

    def _by_mind(self, mind: Mind, seed: int) -> tuple[str, bool]:
        manned, bench = self.manned, Bench(self.stand, self.tape, mind.sizes(self.stand.robot.cameras))
        limits = spaces.Box(
            np.asarray(self.stand.spec.low, np.float32), np.asarray(self.stand.spec.high, np.float32), dtype=np.float32
        )
        world = RobotWorld(manned, bench, Spec(mind.obs, self.spec.action), limits, max_steps=10**9)
        obs, _ = world.reset(seed=[seed], options={})
        end, fresh = self._end(self.how.episode_s or self.stand.robot.episode_s), True
        while True:
            if manned.person:  # who acts; the policy begins anew with what is seen after
                action, fresh = np.asarray(manned.last().q)[None], True
            else:
                if fresh:
                    mind.restart(seed)
                fresh, action = False, mind.act(obs)
            manned.taken = False
            obs, _, done, _, _ = world.step(action)
            self.stand.pace() if self.waits else None
            fresh = fresh or manned.taken
            if done[0]:
                return SAVED, True
            if outcome := self._pressed():
                return outcome, outcome == SAVED and self.stand.truth is None
            if manned.now() >= end:
                return FAILED, False

    def _end(self, seconds: float | None) -> float:
        return np.inf if seconds is None else self.manned.now() + 1e9 * seconds

    def _pressed(self) -> str:
        pressed = self.manned.pressed
        outcome = STOPPED if STOP in pressed else REDONE if REDO in pressed else SAVED if SAVE in pressed else ""
        pressed.clear()
        return outcome

    def _tell(self, told: Told) -> None:
        if self._recording and not self.manned.pressed & {SAVE, REDO, STOP}:  # what comes after is of no episode
            self.tape.mend()
            self.tape.put(told)
            if told.person and self._since is None:
                self._since = told.now_ns
            elif not told.person:
                self._let_go(told.now_ns)
        self.live(told, self.tape)

    def _let_go(self, now_ns: int) -> None:
        if self._since is not None:
            self._spans.append((self._since, now_ns))
            self._since = None


class Bench:
    """What is seen beside the arm: by a twin's eye, which the tape is told, and by cameras, at these sizes. A `world.Scene` that is
    laid out already."""

    def __init__(self, stand: Stand, taped: Tape, sizes: Mapping[str, tuple[int, int]] | None = None) -> None:
        self.stand, self.tape, self.sizes = stand, taped, dict(sizes or {})

    def reset(self, seed: int | None) -> None:
        pass

    def see(self) -> tuple[dict[str, np.ndarray], bool]:
        seen, done = self.stand.scene.see() if self.stand.scene else ({}, False)
        if self.stand.eye:
            self.tape.put_eye(self.stand.link.now(), [float(x) for s in self.stand.eye for x in seen[s.name]])
        frames = self.tape.newest() if self.sizes else {}
        for name, size in self.sizes.items():
            frame = frames[name]
            if frame is None or time.monotonic_ns() - frame.t_ns > FRAME_S * 1e9:
                raise ArmStopped(f"camera {name} shows nothing new: check its cable")
            seen = seen | {name: fit(frame.image, size)}
        return seen, done


class Mind:
    """A policy as it acts beside a person. `obs`: what it is shown."""

    def __init__(self, policy: Policy, agent: Agent) -> None:
        self.policy, self.agent = policy, agent
        self.obs = ObsSpace(tuple(replace(s, scale=None) for s in policy.obs_space.streams), policy.obs_space.rate_hz)

    def sizes(self, cameras: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
        """Of the pictures that it sees, (height, width)."""
        return {s.name: (s.shape[0], s.shape[1]) for s in self.obs.streams if s.kind == "image" and s.name in cameras}

    def require(self, arm: Spec) -> None:
        """Refuse an arm that shows or takes something else."""
        from polyarm.eval.rollout import require_spec

        require_spec(self.policy, arm)

    def restart(self, seed: int) -> None:
        """Nothing was seen or planned yet."""
        self.agent.restart(np.array([True]), [seed])

    def act(self, obs: Mapping[str, np.ndarray]) -> np.ndarray:
        return self.agent.act(obs)


def mind(run: str, settings: Sequence[str], beside: bool) -> Mind:
    """The policy of a run or a checkpoint, under these settings. `beside`: it plans while the arm moves on."""
    from polyarm.config import override
    from polyarm.eval import latency
    from polyarm.eval.agent import Agent
    from polyarm.eval.machine import pick_device
    from polyarm.eval.run import load_policy
    from polyarm.policies import checkpoint

    folder = checkpoint.find(Path(run))
    config = override(checkpoint.read_config(folder), settings)
    device = pick_device(config.eval.device)
    policy = load_policy([folder], config, settings, [1.0], device)
    if policy.goal_steps and config.eval.goals:
        raise UserError(
            f"policy {policy.name} takes goals, which nobody names at an arm: give eval.goals=false to act without one"
        )
    rows = latency.ahead(config, policy).rows
    return Mind(
        policy, Agent(policy, 1, config.eval.n_action_steps, device=device, ahead=rows, beside=beside and rows > 0)
    )


def recovered(how: Recording, spec: Spec, stand: Stand) -> list[str]:
    """Logs of a session that was killed: what was good is put into the store; what was cut off is told of and set aside, or with
    `recover` put there too. A sentence for each."""
    lines, good = [], []
    for path in sorted(how.logs.glob("*.log")):
        try:
            outcome, seconds = _finished(path)
        except UserError as error:
            os.replace(path, aside := path.with_suffix(f".{CUT}"))
            lines.append(f"{error}; it is set aside as {aside}")
            continue
        if outcome == SAVED or how.recover:
            good.append(path)
        else:
            os.replace(path, aside := path.with_suffix(f".{CUT}"))
            lines.append(
                f"{path} was cut off after {seconds:.1f} s: all of it up to there is kept in {aside} and none of it is in the store; "
                "name it .log again and give record.recover=true to have it there"
            )
    there = closing.close(good, _store(how, spec, stand), spec) if good else []
    return lines + [f"recovered: {c.log} is now episode {c.episode} of {how.path}, {c.rows} rows" for c in there]


def _finished(path: Path) -> tuple[str, float]:
    """(outcome, seconds) of a log that nobody writes; one without an end is given one."""
    require_idle(path)
    found = survey(path)
    if found.footer is None:
        log, _ = EpisodeLog.resume(path)
        log.finish(time.monotonic_ns(), CUT, False)
    times = [t for samples in found.samples for t in (samples.t_ns[:1] + samples.t_ns[-1:])]
    return (found.footer or {"outcome": CUT})["outcome"], (max(times, default=0) - min(times, default=0)) / 1e9


def _store(how: Recording, spec: Spec, stand: Stand) -> Path:
    """The store, made if it is not there."""
    if not how.path.exists():
        robot = {k: v for k, v in vars(stand.robot).items() if isinstance(v, str | int | float)}
        Store.create(how.path, spec, record={"task": how.task, "robot": robot}).close()
    return how.path


def _count(path: Path) -> int:
    return len(Store.open(path)) if path.exists() else 0


def _next(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    numbers = [int(p.stem) for p in folder.iterdir() if p.stem.isdigit()]
    return folder / f"{max(numbers, default=-1) + 1:06d}.log"


def _maker(node: Mapping[str, Any]) -> Callable[[], Any]:
    """What makes a camera of a station, in whichever process."""
    given = dict(node)
    return partial(named(given.pop("_target_")), **given)
