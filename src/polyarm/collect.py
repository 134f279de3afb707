"""Demonstrations from a scripted expert: many processes play, one writes, and the result does not depend on how many.

Seeds are tried one after another from the first and stored in that order, so a run that was stopped, or killed, goes on
where it was and ends with the same episodes.
"""

from __future__ import annotations

import json
import multiprocessing
import pkgutil
import signal
import sys
import time
import traceback
from collections.abc import Generator, Mapping
from contextlib import closing, suppress
from dataclasses import replace
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyarm.keypose import MARKED
from polyarm.progress import Bar
from polyarm.spec import Spec, Stream, UserError, require_actions, require_obs

if TYPE_CHECKING:
    from polyarm.datasets.store import Store
    from polyarm.sim.experts.episode import Episode

GIVE_UP = 100
"""Failures in a row after which the expert is not worth waiting for."""
AHEAD = 2
"""Seeds a worker is given at a time, so that it need not wait for the writer."""


def collect_task(config: Any) -> dict[str, Any]:
    """`collect` with the settings of a composed configuration: its `task` and `collect` parts."""
    from polyarm.task import count_workers

    task, c = config.task, config.collect
    if task.expert is None:
        raise UserError(f"task {task.name} has no scripted expert: choose one that has, or record demonstrations")
    if c.path is None:
        raise UserError("collect.path has no value: give the store to write as collect.path=...")
    return collect(*_player(task), c.path, c.episodes, c.seed, count_workers(c.workers, c.episodes))


def frames_per_s(config: Any, workers: int) -> float:
    """What `collect_task` comes to with so many workers, by the wall's clock, once all of them play; nothing is stored."""
    with closing(_play_all(_player(config.task), config.collect.seed, workers)) as played:
        for _ in range(AHEAD * workers):
            next(played)
        began = time.perf_counter()
        frames = sum(len(next(played)) for _ in range(config.collect.episodes))
        return frames / (time.perf_counter() - began)


def _player(task: Any) -> Player:
    from polyarm.task import world_kwargs

    return task.env_id, world_kwargs(task, derived=False, moved=False), task.expert


def collect(
    env_id: str,
    env_kwargs: Mapping[str, Any],
    expert: str,
    path: str | Path,
    episodes: int,
    seed: int = 0,
    workers: int = 1,
    keep_failures: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Fills the store at `path` up to `episodes` successful episodes, playing seeds seed, seed + 1, ...

    expert: dotted path of a class that is built on the unwrapped world (see `sim.experts.episode`). An existing store goes
    on; one of another world, version, expert or first seed raises `UserError`. Failures are stored too, marked, if they are
    to be kept. One worker plays in this process. Returns {episodes, successes, tried, frames: of the store, seconds}.
    """
    if workers < 1 or episodes < 1:
        raise UserError(f"workers={workers}, episodes={episodes}: give at least 1 of each")
    origin = json.loads(
        json.dumps({"env_id": env_id, "env_kwargs": dict(env_kwargs), "expert": expert, "first_seed": seed})
    )
    player, began = (env_id, dict(env_kwargs), expert), time.perf_counter()
    with _open(Path(path), _world_spec(*player), origin) as store:
        try:
            _fill(store, player, episodes, seed, workers, keep_failures, progress)
        except KeyboardInterrupt:
            have = int(store.successes.sum())
            print(f"stopped with {have} of {episodes} episodes in {path}: run it again to go on", file=sys.stderr)
            raise
        return {
            "episodes": len(store),
            "successes": int(store.successes.sum()),
            "tried": int(store.seeds[-1]) - seed + 1 if len(store) else 0,
            "frames": store.frames,
            "seconds": round(time.perf_counter() - began, 2),
        }


Player = tuple[str, dict[str, Any], str]
"""(env_id, env_kwargs, expert)"""


def _fill(
    store: Store, player: Player, episodes: int, seed: int, workers: int, keep_failures: bool, progress: bool
) -> None:
    done, failed, frames, began = int(store.successes.sum()), 0, 0, time.perf_counter()
    if done >= episodes:
        return
    first = int(store.seeds[-1]) + 1 if len(store) else seed
    with closing(_play_all(player, first, workers)) as played, Bar("collect", episodes, done, show=progress) as bar:
        for episode in played:
            failed = 0 if episode.success else failed + 1
            if episode.success or keep_failures:
                arrays: dict[str, Any] = {**episode.obs, "action": episode.action, "time_s": episode.time_s}
                if MARKED in store.spec.obs.names:
                    arrays[MARKED] = episode.keypose
                store.append(arrays, episode.seed, episode.success)
            done, frames = done + episode.success, frames + len(episode.action)
            speed = frames / (time.perf_counter() - began)
            bar.at(done, f"success {done / (episode.seed - seed + 1):.1%}  {speed:,.0f} frames/s")
            if done >= episodes:
                return
            if failed >= GIVE_UP:
                raise UserError(
                    f"{player[2]} failed {failed} times in a row in {player[0]}, up to seed {episode.seed}: "
                    "correct the expert or the world's settings"
                )


def _play_all(player: Player, first: int, workers: int) -> Generator[Episode]:
    """Episodes of seeds first, first + 1, ... in that order, without end; `close` ends the processes."""
    if workers == 1:
        play = _stage(player)
        yield from map(play, count(first))
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    try:
        for _ in range(workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, player), daemon=True)
            process.start()
            processes.append(process)
            theirs.close()
            pipes.append(ours)
        for i in range(AHEAD * workers):
            pipes[i % workers].send(first + i)
        for i in count():
            pipe = pipes[i % workers]
            yield _received(pipe)
            with suppress(OSError):  # a worker that is gone has sent why
                pipe.send(first + i + AHEAD * workers)
    finally:
        for process in processes:
            process.kill()
            process.join()


def _received(pipe: Connection) -> Episode:
    try:
        answer = pipe.recv()
    except (EOFError, ConnectionResetError):
        raise UserError(
            "a worker died: a script needs `if __name__ == '__main__':` around collect; "
            "if memory ran out, run it again with fewer workers, it goes on"
        ) from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _work(pipe: Connection, player: Player) -> None:
    """A worker's life: seeds in, episodes out, until the other end closes, which the kernel does however the parent dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    try:
        try:
            play = _stage(player)
            while True:
                pipe.send(play(pipe.recv()))
        except (EOFError, OSError):
            return
        except UserError as e:
            pipe.send(e)
        except Exception:  # noqa: BLE001  whatever a simulator raises goes to the parent
            pipe.send(RuntimeError(traceback.format_exc()))
    except OSError:
        return


def _stage(player: Player) -> Any:
    """seed -> Episode, with the world and the expert set up."""
    from polyarm.sim.experts.episode import play
    from polyarm.sim.world import make_world

    env_id, env_kwargs, expert = player
    env = make_world(env_id, env_kwargs)
    actor = _expert(expert)(env.unwrapped)
    return lambda seed: play(env, actor, seed)


def _expert(dotted: str) -> Any:
    try:
        return pkgutil.resolve_name(dotted)
    except (ImportError, AttributeError, ValueError) as e:
        raise UserError(f"expert {dotted!r} cannot be imported ({e}): give the dotted path of a class") from e


def _world_spec(env_id: str, env_kwargs: Mapping[str, Any], expert: str) -> Spec:
    """What the world shows, and what the expert says beside it."""
    from polyarm.sim.experts.episode import Marking
    from polyarm.sim.trial import trial

    marks, spec = isinstance(_expert(expert), Marking), trial(env_id, env_kwargs)
    if marks and MARKED in spec.obs.names:
        raise UserError(
            f"the world shows a stream {MARKED!r}, where {expert} marks keyposes: give the stream another name"
        )
    said = (Stream(MARKED, "label", (1,), (MARKED,), ("1",)),) if marks else ()
    return replace(spec, obs=replace(spec.obs, streams=(*spec.obs.streams, *said)))


def _open(path: Path, spec: Spec, origin: dict[str, Any]) -> Store:
    """The store to fill: a new one, or one of the same world, version, expert and first seed. One from before an expert said
    anything goes on without."""
    from polyarm.datasets.store import Store

    if not path.exists() or path.is_dir() and not any(path.iterdir()):
        return Store.create(path, spec, collect=origin)
    store = Store.open(path, "a")
    try:
        shown = [spec.obs[name] for name in spec.obs.names if name in store.spec.obs.names or not spec.obs[name].hidden]
        require_obs(replace(spec.obs, streams=tuple(shown)), store.spec.obs, "this world", str(path))
        require_obs(store.spec.obs, spec.obs, str(path), "this world")
        require_actions(spec.action, store.spec.action, "this world", str(path))
        _require_same("version of", spec.versions, store.spec.versions, path)
        _require_same("", origin, store.attributes.get("collect", {}), path)
    except BaseException:
        store.close()
        raise
    return store


def _require_same(what: str, now: Mapping[str, Any], then: Mapping[str, Any], path: Path) -> None:
    for key in sorted({*now, *then}):
        if now.get(key) != then.get(key):
            name = f"{what} {key}".strip()
            raise UserError(
                f"{path} was collected with {name} {then.get(key)}, this is {now.get(key)}: give another path, or the same {key}"
            )
