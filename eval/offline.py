"""How far a policy's chunks lie from what was done, on episodes that it was not trained on: no success rate, and no world.

A policy is shown the recorded observations every Ta rows, as it would be while acting, and draws several chunks from each.
Errors are root mean squares in the units of the actions; where channels are taken together, each is counted in standard
deviations of the training actions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float

from polyarm.datasets.demos import ACTION, Demos
from polyarm.policies.policy import GOAL, Policy, plan, require_chunk

ROWS = 256
"""Of a batch at most: samples of episodes that are judged together."""
SEEN = 1 << 24
"""Numbers in the observations of a batch at most, beyond one window: what an encoder makes of pictures is many times larger."""


@dataclass(frozen=True)
class Judged:
    """One held-out episode. w windows, s samples, r rows of a chunk from the newest observation on."""

    episode: int
    drawn: Float[np.ndarray, "w s r d"]
    recorded: Float[np.ndarray, "w r d"]
    last: Float[np.ndarray, "w d"]
    """What had been executed last; the training mean where nothing had."""
    there: Bool[np.ndarray, "w r"]
    """Whether a row lies within the episode."""


def judge(
    policy: Policy, demos: Demos, episodes: Sequence[int], mean: Float[np.ndarray, "d"], *, samples: int, seed: int,
    n_action_steps: int | None = None, goals: bool = True, device: str | torch.device = "cpu",
    progress: Callable[[int], None] = lambda done: None,
) -> list[Judged]:  # fmt: skip
    """`mean`: of the training actions. Goals are the last observation of each episode. What is drawn for an episode depends on
    `seed` and its number alone."""
    steps = n_action_steps or policy.n_action_steps
    require_chunk(policy.action_space.horizon, policy.n_obs_steps, steps)
    found: list[Judged] = []
    numbers = (policy.n_obs_steps + policy.goal_steps) * sum(prod(stream.shape) for stream in policy.obs_space.streams)
    each = max(1, min(ROWS // samples, SEEN // numbers))
    for i in range(0, len(episodes), each):
        found += _judge(policy, demos, episodes[i : i + each], mean, samples, seed, steps, goals, torch.device(device))
        progress(len(found))
    return found


def _judge(
    policy: Policy, demos: Demos, episodes: Sequence[int], mean: np.ndarray, samples: int, seed: int, steps: int,
    goals: bool, device: torch.device,
) -> list[Judged]:  # fmt: skip
    n_obs, rows = policy.n_obs_steps, policy.action_space.horizon - policy.n_obs_steps + 1
    begin = np.insert(demos.episode_ends, 0, 0)[list(episodes)]
    end = demos.episode_ends[list(episodes)]
    most, n = int((end - begin).max()), len(episodes)
    generators = [
        torch.Generator(device).manual_seed(seed + int(e) * samples + s) for e in episodes for s in range(samples)
    ]
    actions = demos.stream(ACTION)

    def seen(name: str, at: np.ndarray) -> torch.Tensor:
        stream = policy.obs_space[name]
        rows = np.asarray(demos.stream(name)[at.reshape(-1)], stream.dtype)
        return torch.from_numpy(rows.reshape(*at.shape, *stream.shape)).to(device)

    state = tuple(x.to(device) for x in policy.start(n))
    drawn, recorded, last, there = [], [], [], []
    for t in range(0, most, steps):
        newest = np.minimum(begin + t, end - 1)  # an episode that is over waits for the others
        at = np.maximum(newest[:, None] + np.arange(1 - n_obs, 1), begin[:, None])
        obs = {name: seen(name, at) for name in policy.obs_space.names}
        if policy.goal_steps and goals:
            final = np.repeat(end[:, None] - 1, policy.goal_steps, 1)
            obs |= {GOAL + name: seen(name, final) for name in policy.obs_space.names}
        if policy.past_rows:
            past = newest[:, None] + np.arange(-policy.past_rows, 0)
            done = np.asarray(actions[np.maximum(past, 0).reshape(-1)], np.float32).reshape(*past.shape, -1)
            done = np.where((past < begin[:, None])[..., None], np.float32(np.nan), done)
            obs[ACTION] = torch.from_numpy(done).to(device)
        with torch.no_grad():
            planned = plan(policy, obs, state, generators, samples=samples)
        state = planned.state
        drawn.append(planned.action[:, n_obs - 1 :].cpu().double().numpy().reshape(n, samples, rows, -1))
        ahead = (begin + t)[:, None] + np.arange(rows)
        there.append(ahead < end[:, None])
        recorded.append(
            np.asarray(actions[np.minimum(ahead, end[:, None] - 1).reshape(-1)], float).reshape(n, rows, -1)
        )
        before = np.asarray(actions[np.maximum(newest - 1, 0)], float)
        last.append(np.where((newest == begin)[:, None], mean, before))
    stacked = [np.stack(x, 1) for x in (drawn, recorded, last, there)]
    windows = -(-(end - begin) // steps)
    return [Judged(int(e), *(x[i, : windows[i]] for x in stacked)) for i, e in enumerate(episodes)]


def summary(
    judged: Sequence[Judged], names: Sequence[str], units: Sequence[str], mean: np.ndarray, std: np.ndarray, steps: int
) -> dict[str, Any]:
    """What result.json holds of the errors; `mean` and `std`: of the training actions, `steps`: the rows that are executed.

    Of what is compared: "policy" is one chunk drawn; "best_of_samples" in each window the one nearest to what was done, a
    measure of whether the right mode is among them; "repeat" the last executed action again; "mean" the training actions'.
    """
    scale = np.where(std > 0, std, 1)
    per = [_squares(j, mean, scale, steps) for j in judged]
    every = {kind: np.concatenate([p[kind] for p in per]) for kind in per[0]}  # [w r d], nan past an episode's end
    overall = {kind: together(x[:, :steps], scale) for kind, x in every.items()}
    episodes = [
        {"episode": j.episode, "rows": int(j.there[:, :steps].sum())}
        | {kind: together(x[:, :steps], scale) for kind, x in p.items() if kind != "spread"}
        for j, p in zip(judged, per, strict=True)
    ]
    baselines = {kind: overall[kind] for kind in BASELINES}
    best = min(BASELINES, key=lambda kind: baselines[kind])
    return {
        "measure": "action_error",
        "error": "root mean square, in standard deviations of the training actions; by channel and row in their units",
        "action_error": overall["policy"],
        "best_of_samples": overall["best_of_samples"],
        "spread": overall["spread"],
        "baselines": baselines,
        "best_baseline": best,
        "better_than_baselines": overall["policy"] < baselines[best],
        **_difference([e["policy"] - e[best] for e in episodes]),
        "better_episodes": sum(e["policy"] < e[best] for e in episodes),
        "n": len(judged),
        "windows": sum(len(j.drawn) for j in judged),
        "samples": judged[0].drawn.shape[1],
        "executed_rows": steps,
        "channels": [
            {"name": name, "unit": unit, "std": float(std[i])}
            | {kind: _root(x[:, :steps, i]) for kind, x in every.items()}
            for i, (name, unit) in enumerate(zip(names, units, strict=True))
        ],
        "rows": [
            {"row": r, "windows": int(np.isfinite(every["repeat"][:, r, 0]).sum())}
            | {kind: [_root(x[:, r, i]) for i in range(len(names))] for kind, x in every.items()}
            for r in range(every["repeat"].shape[1])
            if np.isfinite(every["repeat"][:, r, 0]).any()
        ],
        "per_episode": episodes,
    }


BASELINES = ("repeat", "mean")
LEVEL = 0.95


def _difference(off: Sequence[float]) -> dict[str, Any]:
    """How much larger the policy's error is than the best baseline's: mean over episodes, Student's interval of it (None of one
    episode), and whether all of that lies below zero."""
    mean, n = float(np.mean(off)), len(off)
    if n < 2:
        return {"difference": mean, "difference_interval": None, "clearly_better": False}
    from scipy.stats import t

    half = float(t.ppf((1 + LEVEL) / 2, n - 1) * np.std(off, ddof=1) / np.sqrt(n))
    return {
        "difference": mean,
        "difference_interval": [mean - half, mean + half],
        "clearly_better": mean + half < 0,
    }


def _squares(j: Judged, mean: np.ndarray, scale: np.ndarray, steps: int) -> dict[str, np.ndarray]:
    """{what: squared errors [w r d]}, nan where the episode is over."""
    gone = ~j.there[..., None]
    off = np.where(gone[:, None], np.nan, (j.drawn - j.recorded[:, None]) ** 2)
    nearest = np.nansum(off[:, :, :steps] / scale**2, (2, 3)).argmin(1)
    return {
        "policy": off.mean(1),
        "best_of_samples": off[np.arange(len(off)), nearest],
        "spread": np.where(gone, np.nan, j.drawn.var(1)),
        "repeat": np.where(gone, np.nan, (j.last[:, None] - j.recorded) ** 2),
        "mean": np.where(gone, np.nan, (mean - j.recorded) ** 2),
    }


def _root(squares: np.ndarray) -> float:
    return float(np.sqrt(np.nanmean(squares)))


def together(squares: Float[np.ndarray, "*rows d"], scale: np.ndarray) -> float:
    """One number of all channels, in standard deviations of the training actions."""
    return _root(squares / scale**2)


def said(result: dict[str, Any]) -> str:
    """The first line of a report: what the number is not, and whether the policy beats doing nothing clever."""
    best, mine, n = result["best_baseline"], result["action_error"], result["n"]
    other = {"repeat": "repeating the last action", "mean": "the mean training action"}[best]
    theirs = f"{result['baselines'][best]:.3g}"
    where = f"on {n} held-out episode{'s' if n > 1 else ''}"
    if result["clearly_better"]:
        verdict = f"error {mine:.3g} against {theirs} of {other} {where}, nearer in {result['better_episodes']} of them"
    elif result["better_than_baselines"]:
        between = result["difference_interval"]
        verdict = f"the policy is NOT CLEARLY BETTER than {other}: error {mine:.3g} against {theirs} {where}, " + (
            f"a difference between {between[0]:.2g} and {between[1]:.2g} (95 %)"
            if between
            else "from which no interval follows"
        )
    else:
        verdict = f"the policy is NO BETTER than {other}: error {mine:.3g} against {theirs} {where}"
    if not result["clearly_better"] and result["samples"] > 1 and result["best_of_samples"] < result["baselines"][best]:
        verdict += f" (the best of {result['samples']} chunks drawn: {result['best_of_samples']:.3g})"
    return f"This is no success rate but an action error, judged offline: {verdict}."
