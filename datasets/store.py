"""The store of demonstrations: one zarr v3 folder that a kill at any moment cannot spoil, and whose damage is noticed.

    data/<stream>      [N, ...]     one array a stream, episodes end to end; float32, images uint8
    data/action        [N, d]       float32, raw units
    data/time_s        [N]          float64, measured, rising within an episode
    meta/seed          [episodes]   int64
    meta/success       [episodes]   bool
    meta/episode_ends  [episodes]   int64, cumulative and exclusive
    attributes: "spec" (spec.Spec), what else the writer has to say, and "seal": {"version", "sha256" of the others}

The chunk of `episode_ends` is written last, after everything else was put on the disk: an episode is there when its end is.
Readers believe nothing past the last valid end; the next writer cuts it off. Every chunk is written, zeros too, with a
checksum: one that is lost or changed is an error with its name. Stores without a seal are older: a chunk that is not there is
zeros, and what a chunk holds is believed.
"""

from __future__ import annotations

import json
import os
import shutil
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

from polyarm.datasets.chunks import ChunkRows, read_json
from polyarm.datasets.demos import TIME_S, Demos, Rows, damaged, no_file, valid_ends
from polyarm.datasets.disk import Disk, fsync, lock_folder
from polyarm.datasets.episode import Episode, layout
from polyarm.datasets.joined import Joined
from polyarm.datasets.replay_buffer import guess
from polyarm.datasets.seal import read_spec, seal, unseal
from polyarm.spec import Spec, UserError, unknown

CHUNK_BYTES = 1 << 17
"""Of raw data a chunk. An append rewrites the last chunk of each stream, so this bounds its cost; 96 px images: 4 frames."""
META: Mapping[str, np.dtype] = {"seed": np.dtype("i8"), "success": np.dtype("?"), "episode_ends": np.dtype("i8")}
ENDS = "meta/episode_ends"


class Store:
    """Demonstrations on disk; a `Demos`. Made by `create` or `open`; a writer closes it or is a `with` block."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._unlock: weakref.finalize | None = None  # a writer's lock
        self._episode: Episode | None = None  # that is being written
        self.attributes, self._sealed = unseal(path / "zarr.json")
        self.spec = read_spec(self.attributes.pop("spec"), path / "zarr.json")
        self._layout = layout(self.spec)
        _require_millimetres(path, self.spec)
        ends = self._rows(ENDS)  # before the others: they are never shorter than what it says
        said = ends.all_chunks()
        self.episode_ends: np.ndarray = said[: valid_ends(said)]
        if not self._sealed and "crc32c" in ends.codecs:
            raise damaged(path / "zarr.json", "has lost its seal")
        if len(ends) > 1 and not len(self):
            raise UserError(f"{path / ENDS / 'c/0'} is lost: copy the demonstrations again, or restore it from a copy")
        longest = max(len(self._rows(f"data/{name}")) for name in self._layout)
        self.dropped_rows = longest - self.frames
        """Rows that lay past the last valid end when the store was opened: of an episode that was never finished."""
        for name in self._layout:  # raises where rows are lost
            self.stream(name)
        self._note("seed"), self._note("success")

    @classmethod
    def create(cls, path: str | Path, spec: Spec, **attributes: Any) -> Store:
        """A new, empty store, open for writing. Raises `UserError` if there is anything at `path`."""
        path, arrays = Path(path), layout(spec)
        made = path.with_name(f".{path.name}.{os.getpid()}.partial")
        with _writing(path):
            try:
                _write_empty(made, arrays, json.loads(json.dumps({"spec": spec.to_json(), **attributes})))
                made.rename(path)  # whole or not at all; an empty folder may be in its place
                fsync(path.parent)
            except BaseException as e:
                shutil.rmtree(made, ignore_errors=True)
                if isinstance(e, OSError) and path.exists():
                    raise UserError(f"{path} exists: open it to append, or give another path") from None
                raise
        return cls.open(path, "a")

    @classmethod
    def open(cls, path: str | Path, mode: Literal["r", "a"] = "r") -> Store:
        """The store at `path`, as it is now. With mode "a" the one writer, which cuts off what was not finished.

        Raises `UserError` if there is none, if a file of it is lost or damaged, or if another process writes to it.
        """
        path = Path(path)
        if not (path / "zarr.json").exists() and not (path / "data" / TIME_S / "zarr.json").exists():
            raise no_file(path, "a store of demonstrations (zarr v3)")
        if mode == "r":
            return cls(path)
        with _writing(path):
            lock = lock_folder(path)
            try:
                store = cls(path)
                store._repair()
            except BaseException:
                os.close(lock)
                raise
            store._unlock = weakref.finalize(store, os.close, lock)
            return store

    def append(self, arrays: Mapping[str, Any], seed: int, success: bool = True) -> None:
        """One episode: every stream of the spec, "action" and "time_s", `[t, ...]` each. It is durable on return.

        Raises `UserError`, and leaves the store as it was, for a wrong name, shape, type or number, and for a disk that is
        full or cannot be written.
        """
        with self.episode(seed, success) as episode:
            episode.add(arrays)

    @contextmanager
    def episode(self, seed: int, success: bool = True) -> Iterator[Episode]:
        """An episode in pieces, for what does not fit into memory: each goes to the disk with `Episode.add`. All of it is
        durable when the `with` block ends, and none of it is there after an exception; `append` says what is refused.
        """
        if self._unlock is None or not self._unlock.alive:
            raise UserError(f"{self.path} is not open for writing: open it with mode 'a'")
        if self._episode:
            raise UserError(f"an episode of {self.path} is being written: finish it before the next")
        disk = Disk(self.path)
        self._episode = episode = Episode(self.spec, success, partial(self._put_rows, disk=disk))
        try:
            yield episode
            episode.require_whole()
        except BaseException:
            self._forget_rows(episode)
            raise
        finally:
            self._episode = None
        with self._settling():
            for name, value in (("seed", seed), ("success", episode.success)):
                self._rows(f"meta/{name}").extend(np.array([value]), disk)
            disk.settle()
            ends = np.append(self.episode_ends, self.frames + episode.rows)
            self._put_end(ends, disk)
            disk.settle()
        self.episode_ends = ends

    def stream(self, name: str) -> Rows:
        """Rows of an observation stream, of "action" or of "time_s"; read when indexed."""
        if name not in self._layout:
            raise unknown(f"stream of {self.path}", name, self._layout)
        return self._rows(f"data/{name}").upto(self.frames, f"the last episode ends at {self.frames}")

    def read(self, name: str) -> np.ndarray:
        return self.stream(name)[:]

    def __len__(self) -> int:
        return len(self.episode_ends)

    @property
    def frames(self) -> int:
        return int(self.episode_ends[-1]) if len(self) else 0

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.episode_ends, prepend=0)

    @property
    def seeds(self) -> np.ndarray:
        return self._note("seed")[:]

    @property
    def successes(self) -> np.ndarray:
        return self._note("success")[:]

    def close(self) -> None:
        if self._unlock is not None:
            self._unlock()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _rows(self, array: str) -> ChunkRows:
        group, _, name = array.partition("/")
        row, dtype = self._layout[name] if group == "data" else ((), META[name])
        return ChunkRows(self.path / array, row, dtype, sparse=not self._sealed)

    def _note(self, name: str) -> ChunkRows:
        return self._rows(f"meta/{name}").upto(len(self), f"there are {len(self)} episodes")

    def _put_rows(self, rows: Mapping[str, np.ndarray], disk: Disk) -> None:
        with self._settling():
            for name, x in rows.items():
                self._rows(f"data/{name}").extend(x, disk)

    @contextmanager
    def _settling(self) -> Iterator[None]:
        """A block that writes. Where it fails something is half written, perhaps committed: only opening it again tells."""
        if self._unlock is None or not self._unlock.alive:
            raise UserError(f"{self.path} was closed while an episode was open: open it with mode 'a' and begin again")
        try:
            with _writing(self.path):
                yield
        except BaseException:
            self.close()
            raise

    def _forget_rows(self, episode: Episode) -> None:
        """Cut off the pieces of an episode that is given up; where that fails the next writer does it."""
        if episode.rows and self._unlock is not None and self._unlock.alive:
            with suppress(Exception), self._settling():
                self._repair()

    def _repair(self) -> None:
        """What the one writer does first; it holds the lock."""
        for litter in self.path.rglob("*.partial"):  # files are written there before they are renamed
            litter.unlink()
        disk = Disk(self.path)
        _forget_copy(disk)
        for name in self._layout:
            self._rows(f"data/{name}").resize(self.frames, disk)
        for name in META:
            self._rows(f"meta/{name}").resize(len(self), disk)
        disk.settle()

    def _put_end(self, ends: np.ndarray, disk: Disk) -> None:
        """Write the last of `ends`: its chunk, with which the episode is there, at once or not at all; then the length."""
        rows = self._rows(ENDS)
        i = (len(ends) - 1) // rows.chunk_rows
        rows.put(i, ends[i * rows.chunk_rows :], disk, True)
        rows.resize(len(ends), disk)


def _require_millimetres(path: Path, spec: Spec) -> None:
    """Older stores held depth as float32."""
    for stream in spec.obs.streams:
        if stream.kind != "depth":
            continue
        have = read_json(path / "data" / stream.name / "zarr.json").get("data_type")
        if isinstance(have, str) and have.startswith("float"):
            raise UserError(
                f"{path} is older: its depth {stream.name!r} is {have}, and depth is uint16 now, mm, 0 where nothing was measured; the "
                "store is whole and was not touched: write it to a new one as docs/your_data.md says under Older depth"
            )


def _write_empty(made: Path, arrays: Mapping[str, tuple[tuple[int, ...], np.dtype]], said: dict[str, Any]) -> None:
    """A store without episodes, on the disk. `said`: its attributes."""
    root = zarr.create_group(made, zarr_format=3, overwrite=True)
    for name, (row, dtype) in arrays.items():
        rows = max(1, CHUNK_BYTES // (dtype.itemsize * max(1, int(np.prod(row)))))
        codecs = [_blosc(dtype), Crc32cCodec()]
        root.create_array(f"data/{name}", shape=(0, *row), chunks=(rows, *row), dtype=dtype, compressors=codecs)
    for name, dtype in META.items():
        root.create_array(f"meta/{name}", shape=(0,), chunks=(1024,), dtype=dtype, compressors=[Crc32cCodec()])
    root.attrs.update({**said, "seal": seal(said)})
    for entry in (*made.rglob("*"), made):
        fsync(entry)


def _forget_copy(disk: Disk) -> None:
    """Drop consolidated metadata: a copy of what the arrays said when it was made, which hides later episodes."""
    found = read_json(disk.root / "zarr.json")
    if found.pop("consolidated_metadata", None) is not None:
        disk.put(disk.root / "zarr.json", json.dumps(found, indent=2).encode())


def _blosc(dtype: np.dtype) -> BloscCodec:
    # bytes of depth shuffled: half the size that shuffled bits give
    shuffles: dict[str, Literal["noshuffle", "shuffle"]] = {"uint8": "noshuffle", "uint16": "shuffle"}
    shuffle: Literal["noshuffle", "shuffle", "bitshuffle"] = shuffles.get(dtype.name, "bitshuffle")
    return BloscCodec(cname="zstd", clevel=5, shuffle=shuffle, typesize=dtype.itemsize)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise UserError(
            f"{path} cannot be written ({e.strerror or e}): free space, or give a path that can; what was saved before stays"
        ) from e


def open_store(path: str | Path, also: Sequence[str | Path] = ()) -> Demos:
    """A store of polyarm's own, to read: what a task's `demos` name as their `_target_`. `also`: more of them, read as one."""
    first = Store.open(path)
    return Joined([first, *(Store.open(Path(more).expanduser()) for more in also)]) if also else first


def open_path(path: str | Path) -> Demos:
    """Whatever demonstrations lie at `path`, for a look at them."""
    path = Path(path)
    return Store.open(path) if _is_store(path) else guess(path)


def _is_store(path: Path) -> bool:
    if (path / "data" / TIME_S / "zarr.json").exists():
        return True
    return (path / "zarr.json").exists() and bool(
        {"spec", "seal"} & read_json(path / "zarr.json").get("attributes", {}).keys()
    )
