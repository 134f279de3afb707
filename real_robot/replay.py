"""Recorded actions, sent again: through the same link, loop and filter, row by row, and how far the arm then was from where it had
been."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from polyarm.datasets.demos import ACTION
from polyarm.datasets.store import Store
from polyarm.real_robot.arm import Row
from polyarm.real_robot.episode_log import survey
from polyarm.real_robot.link import ArmStopped, Seen
from polyarm.real_robot.plan import Chunk
from polyarm.real_robot.stand import Stand
from polyarm.real_robot.states import STOPPED
from polyarm.real_robot.tape import JOINTS
from polyarm.spec import UserError, require_actions

APPROACH = 0.15
"""The share of its joints' velocities at which the arm goes to where an episode began."""


def replay(stand: Stand, path: str | Path, episode: int = 0) -> dict[str, Any]:
    """{"rows", "seconds", "worst": {joint: largest difference}, "rms": {joint: ...}, "bit_equal", "slips", "holds"}. Differences are
    of the joints at the begin of each row, in the joint's unit. A twin's scene is laid out as it was recorded, where the log says
    how; any other arm goes to where the episode began."""
    store = Store.open(path)
    actions, want = _rows(stand, store, episode)
    seed = scene_seed(Path(path), int(store.seeds[episode]))
    stand.link.release()
    if stand.scene is not None and seed is not None:
        stand.scene.reset(seed)
    stand.link.enable()
    if stand.scene is None or seed is None:
        _approach(stand, tuple(want[0].tolist()))
    seen, slips, holds = _play(stand, actions)
    away = np.abs(np.asarray(seen, np.float32).astype(float) - want.astype(float))
    names = stand.spec.joints
    return {
        "rows": len(actions), "seconds": len(actions) * stand.row_ns / 1e9, "worst": dict(zip(names, away.max(0).tolist(), strict=True)),
        "rms": dict(zip(names, np.sqrt((away**2).mean(0)).tolist(), strict=True)), "bit_equal": not away.any(), "slips": slips,
        "holds": holds,
    }  # fmt: skip


def scene_seed(path: Path, number: int) -> int | None:
    """By what the scene of the store's episode of this seed was laid out: simulated ones by their own, recorded ones as their log
    says."""
    if number >= 0:
        return number
    for log in sorted(path.with_name(f"{path.name}.logs").glob("*.log")):
        try:
            header = survey(log).header
        except UserError:
            continue
        if -2 - int(header["id"]) == number:
            return header.get("scene_seed")
    return None


def _rows(stand: Stand, store: Store, episode: int) -> tuple[np.ndarray, np.ndarray]:
    """(actions, joints) of the episode."""
    if not 0 <= episode < len(store):
        raise UserError(
            f"replay.episode={episode}: {store.path} has {len(store)} episodes, give one from 0 to {len(store) - 1}"
        )
    from polyarm.real_robot.tape import store_spec

    arm = store_spec(stand.spec, store.spec.action.rate_hz)
    require_actions(store.spec.action, arm.action, str(store.path), f"robot={stand.robot.name}")
    if store.spec.action.rate_hz != stand.row_hz:
        raise UserError(
            f"{store.path} was recorded at {store.spec.action.rate_hz:g} rows a second, robot.action_hz is {stand.row_hz:g}: give "
            f"robot.action_hz={store.spec.action.rate_hz:g}"
        )
    end = int(store.episode_ends[episode])
    rows = slice(end - int(store.lengths[episode]), end)
    if JOINTS not in store.spec.obs.names:
        raise UserError(f"{store.path} holds no {JOINTS!r}, where the arm was: there is nothing to compare with")
    return store.stream(ACTION)[rows], store.stream(JOINTS)[rows]


def _play(stand: Stand, actions: np.ndarray) -> tuple[list[Row], int, int]:
    """(joints at the begin of each row, slots that began late, slots in which the arm was held)."""
    link, due, slips, holds = stand.link, stand.link.now(), 0, 0
    seen: list[Row] = []
    for k, row in enumerate(actions):
        late = link.now() + link.lead_ns - due
        if late > stand.row_ns // 2:
            due, slips = due + late, slips + 1
        begin = link.now()
        link.submit(Chunk(k + 1, begin, due, stand.row_ns, (tuple(row.tolist()),)))
        link.wait(due + stand.tick_ns)
        seen.append(_moving(link.last()).q)
        due += stand.row_ns
        link.wait(due - link.lead_ns)
        holds += _moving(link.last()).state == "HOLD"
    return seen, slips, holds


def _approach(stand: Stand, to: Row) -> None:
    """Straight in the joints, slowly."""
    link, spec = stand.link, stand.spec
    at = link.last().q
    share = max(abs(b - a) / (APPROACH * v) for a, b, v in zip(at, to, spec.velocity, strict=True))
    n = max(1, int(np.ceil(share * 1e9 / stand.row_ns)))
    for k in range(n):
        row = tuple(a + (b - a) * (k + 1) / n for a, b in zip(at, to, strict=True))
        now = link.now()
        link.submit(Chunk(k - n, now, now, stand.row_ns, (row,)))
        link.wait(now + stand.row_ns)
        _moving(link.last())


def _moving(seen: Seen) -> Seen:
    if seen.state in STOPPED:
        raise ArmStopped(f"the arm is in {seen.state}: {seen.why}")
    return seen
