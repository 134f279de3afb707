"""`polyarm deploy`: a trained policy on an arm, by the rollout that judges it in simulation; what came of it, and how the arm kept time."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from polyarm.config import override
from polyarm.eval import place, run
from polyarm.eval.effect import require_effect
from polyarm.eval.judge import terms
from polyarm.eval.latency import PERCENTILE, Ahead, ahead, of_latency
from polyarm.eval.machine import machine, pick_device, policy_versions
from polyarm.eval.rollout import Played, rollout
from polyarm.eval.score import summary
from polyarm.eval.seeds import demonstrated
from polyarm.eval.timing import chunk_times
from polyarm.policies import checkpoint
from polyarm.policies.policy import Policy
from polyarm.progress import Bar
from polyarm.real_robot.bringup import before, bring_up, said
from polyarm.real_robot.link import ArmStopped
from polyarm.real_robot.robot import Robot
from polyarm.real_robot.world import RobotWorld
from polyarm.rotation import space_as
from polyarm.spec import Spec, UserError, require_actions, require_obs

TELL_S = 0.25
MANY = 1000


def deploy(source: Path, overrides: Sequence[str], robot: Robot, command: str) -> dict[str, Any]:
    """Play deploy.episodes episodes with a checkpoint on an arm; returns what result.json holds. Nothing is opened before policy and
    station fit. An arm that stops ends it with a UserError, Ctrl-C with a KeyboardInterrupt, each after the arm is at rest and the
    episodes that were whole are written."""
    began = time.perf_counter()
    folder = checkpoint.find(source)
    own = checkpoint.read_config(folder)
    config = override(own, overrides)
    require_effect([own], config, overrides)
    torch.set_num_threads(int(config.eval.threads))
    device = pick_device(config.eval.device)
    policy = run.load_policy([folder], config, overrides, (1.0,), device)
    world = before(robot, config.task, policy.obs_space)
    require_station(policy, config, robot, world.world_spec)
    notes = run.require_versions([folder], world.world_spec, config.eval.allow_other_versions)
    judged = in_time(config, policy, overrides, robot, device)
    first = config.eval.seed if config.deploy.seed is None else config.deploy.seed
    seeds = list(range(first, first + config.deploy.episodes))
    made = {"date": run.now(), "command": command}
    wanted = identity(folder, own, config, robot) | ({"date": made["date"]} if robot.clock == "wall" else {})
    with place.claim(places(folder, config, overrides, robot), wanted) as out:
        config.output_dir = str(out)
        with bring_up(robot, world) as arm:
            kept = Kept(arm)
            played, stopped = play(policy, kept, seeds, config, judged, device, robot)
            at_end = said(arm)
        if not played:
            raise stopped or UserError("0 episodes were played: give deploy.episodes of at least 1")
        found = summary([p.outcome for p in played], "success")
        for row, about in zip(found["per_seed"], kept.episodes, strict=False):
            row |= about
        result = {
            **made,
            "policy": policy.name,
            "task": config.task.name,
            **run.sources_said([folder], (1.0,), out),
            **found,
            "mean_steps": run.headline(found)["mean_steps"],
            "robot": asdict(robot),
            "estimator": robot.estimator,
            "slips": sum(e["slips"] for e in kept.episodes),
            "holds": dict(sum((Counter(e["holds"]) for e in kept.episodes), Counter[str]())),
            "lateness_ms": figures(kept.late_ms),
            "loop_lateness_ms": at_end["late_ms"] or None,
            "priority": at_end["priority"],
            "counts": at_end["counts"],
            "stopped": _why(stopped),
            "simulator": simulated(folder, found["seeds"]) if robot.estimator else None,
            "demonstrated": demonstrated([config.task], seeds) if robot.estimator else None,
            "n_action_steps": config.eval.n_action_steps or policy.n_action_steps,
            "ahead": judged.rows,
            "latency_ms": judged.latency_ms,
            "replays": False,
            "acting": run.acting(policy, config, device),
            "overrides": [w for w in overrides if place.key_of(w) != "output_dir"],
            "identity": wanted,
            "seconds": {"deploy": round(time.perf_counter() - began, 2)},
            "versions": {**policy_versions(), **world.world_spec.versions},
            "trained_with": [dict(checkpoint.read_spec(folder).versions)],
            "machine": machine(device),
            "notes": notes,
        }
        result = json.loads(json.dumps(result))  # as it will be read: yaml's and the loop's own kinds of words are text
        run.keep(out, result, played)
        write = lambda: run.report(out, result, played, [config], [folder], [])
        run.attempt("report", write, notes)
        run.tell(result, out)
        if (sim := result["simulator"]) is not None:
            say = f"mean steps {result['mean_steps']:.1f}; the simulator on the same seeds: {sim['success_rate']:.3f} in {sim['mean_steps']:.1f}"
            print(say, file=sys.stderr)
    if stopped:
        raise type(stopped)(f"{_why(stopped)}; {len(played)} of {len(seeds)} episodes are in {out}") from stopped
    return result


def require_station(policy: Policy, config: DictConfig, robot: Robot, spec: Spec) -> None:
    """Refuse a policy that sees or does what this station does not."""
    mine, theirs = f"policy {policy.name}", f"robot {robot.name}"
    if config.task.get("action_kind") == "keypose":
        raise UserError(f"{mine} gives keyposes, {theirs} takes rows at {spec.action.rate_hz:g} Hz: deploy one trained with task.action_kind=trajectory")  # fmt: skip
    require_actions(policy.action_space, space_as(spec.action, policy.action_space.rotation), mine, theirs)
    require_obs(policy.obs_space, spec.obs, mine, theirs)
    if policy.goal_steps and config.eval.goals:
        raise UserError(f"{mine} is shown a goal, which {theirs} cannot name: give eval.goals=false to act without one")


def in_time(config: DictConfig, policy: Policy, overrides: Sequence[str], robot: Robot, device: torch.device) -> Ahead:
    """Rows ahead of their use that chunks are planned. By the clock, where no word says how many: as planning takes here, for an arm
    does not wait."""
    asked = any(place.key_of(word) in ("eval.ahead", "eval.latency_ms") for word in overrides)
    if config.eval.latency_ms != "auto" and (asked or config.eval.ahead or config.eval.latency_ms is not None or robot.clock == "lockstep"):  # fmt: skip
        return ahead(config, policy)
    nothing = {s.name: np.zeros((1, *s.shape), s.dtype) for s in policy.obs_space.streams}
    measured = float(np.percentile(chunk_times(policy, nothing, device), PERCENTILE))
    return of_latency(config, policy, measured, "eval.latency_ms=auto, measured as ")


def identity(folder: Path, own: DictConfig, config: DictConfig, robot: Robot) -> dict[str, Any]:
    return place.identity([folder], (1.0,), place.acting(override(own, []), config)) | {"robot": asdict(robot)}


def places(folder: Path, config: DictConfig, overrides: Sequence[str], robot: Robot) -> list[Path]:
    """A folder of its own for each time that an arm plays by the clock: no two are the same."""
    if any(place.key_of(word) == "output_dir" for word in overrides):
        return [Path(config.output_dir)]
    base = place.home(folder) / f"deploy_{robot.name}"
    return [base, *(base.with_name(f"{base.name}_{k}") for k in range(2, MANY))]


class Kept:
    """The arm's worlds, and what each episode was like; `told` hears of it now and then."""

    num_envs, look = 1, True

    def __init__(self, world: RobotWorld) -> None:
        self.world = world
        self.episodes: list[dict[str, Any]] = []
        self.late_ms: list[float] = []
        self.told: Callable[[str], None] = lambda line: None
        self._told_s, self._over = 0.0, True

    @property
    def world_spec(self) -> Spec:
        return self.world.world_spec

    def reset(self, *, seed: Any, options: dict[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        self._over = False
        return self.world.reset(seed=seed, options=options)

    def step(self, actions: np.ndarray) -> tuple[Any, ...]:
        found = self.world.step(actions)
        self._over = bool(found[2][0] or found[3][0])
        if self._over:
            self.late_ms += self.world.late_ms
            self.episodes.append({"slips": self.world.slips, "holds": dict(self.world.holds)})
        if time.monotonic() - self._told_s > TELL_S:
            self._told_s = time.monotonic()
            self.told(self.line())
        return found

    def line(self) -> str:
        """State, lateness, motors, slips: for a person who watches."""
        now, world = said(self.world), self.world
        seen, loop = now["seen"] or {}, now["late_ms"]
        motors = [f"{f(seen[k]):.{d}f} {unit}" for k, f, d, unit in (("temperature_c", max, 0, "°C"), ("voltage_v", min, 1, "V")) if seen.get(k)]  # fmt: skip
        ticks = [f"ticks {loop['p99']:.2f} ms late (p99)"] if loop else []
        slips = sum(e["slips"] for e in self.episodes) + (0 if self._over else world.slips)
        return ", ".join([str(now["state"]), *ticks, *motors, f"{slips} slips"])


def play(
    policy: Policy, kept: Kept, seeds: Sequence[int], config: DictConfig, judged: Ahead, device: torch.device, robot: Robot
) -> tuple[list[Played], BaseException | None]:  # fmt: skip
    """The episodes that were whole, and what ended them before all were played."""
    played: list[Played] = []
    rules = {name: value for name, value in terms(config).items() if name != "measure"}
    with Bar(f"{policy.name} on {robot.name}", len(seeds)) as bar:
        kept.told = lambda line: bar.at(len(played), line)
        try:
            for seed in seeds:
                played += rollout(policy, kept, [seed], device=device, ahead=judged.rows, **rules | {"goals": False})
                won = sum(p.outcome.success for p in played)
                bar.at(len(played), f"{won} of {len(played)} solved, {kept.line()}")
        except ArmStopped as stopped:
            return played, UserError(f"{stopped} (in episode {len(played) + 1} of {len(seeds)})")
        except KeyboardInterrupt:
            return played, KeyboardInterrupt("interrupted, the arm is at rest")
    return played, None


def figures(late_ms: Sequence[float]) -> dict[str, float]:
    """Of action slots: how much later than its turn each row was there."""
    p50, p99 = np.percentile(late_ms, [50, 99]) if late_ms else (0.0, 0.0)
    return {"p50": round(float(p50), 3), "p99": round(float(p99), 3), "max": round(max(late_ms, default=0.0), 3)}


def simulated(folder: Path, seeds: Sequence[int]) -> dict[str, Any] | None:
    """What the same checkpoint did on the same seeds in simulation, where the run's evaluation played them all."""
    home, model = place.home(folder), place.digest(folder / "model.safetensors")
    for file in (home / place.RESULT, home / "eval" / place.RESULT):
        try:
            result = json.loads(file.read_text())
        except (OSError, ValueError):
            continue
        rows = {row["seed"]: row for row in result.get("per_seed", ())}
        same = result.get("identity", {}).get("models") == [model] and not result.get("ahead")
        if same and "success_rate" in result and set(seeds) <= rows.keys():
            some = [rows[seed] for seed in seeds]
            won = sum(row["success"] for row in some)
            return {
                "success_rate": won / len(some),
                "mean_steps": float(np.mean([r["steps"] for r in some])),
                "n": len(some),
            }
    return None


def beside(out: Path, result: dict[str, Any]) -> dict[str, Any]:
    """The short of a deployment, put into the result.json of the evaluation in `out` too."""
    names = ("estimator", "success_rate", "interval", "mean_steps", "n", "slips", "lateness_ms", "simulator", "ahead")
    short = {name: result[name] for name in names} | {
        "robot": result["robot"]["name"],
        "clock": result["robot"]["clock"],
    }
    there = json.loads((out / place.RESULT).read_text())
    place.write_result(out, there | {"deployment": short})
    return short


def _why(stopped: BaseException | None) -> str:
    return "" if stopped is None else str(stopped)
