"""`polyarm film`: episodes of an evaluation, played again side by side in one moving picture for a README or a slide."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from omegaconf import DictConfig

from polyarm.config import OFFLINE, override
from polyarm.eval import place
from polyarm.eval.effect import require_effect
from polyarm.eval.film import choose, replayed
from polyarm.eval.judge import terms
from polyarm.eval.rollout import Played
from polyarm.eval.score import Outcome
from polyarm.eval.video import write_gif, write_mp4
from polyarm.policies import checkpoint
from polyarm.sim.world import find
from polyarm.spec import UserError

KINDS = (".gif", ".mp4")
ACROSS = 3
"""Episodes in a row."""
WIDE = 720
"""Pixels across of the whole picture at most, which a README shows unscaled."""
GAP = 4
"""White pixels between two episodes."""
FPS = 10.0
"""Frames a second of a GIF at most."""
HOLD_S = 1.5
"""How long the end stays before it all begins again."""


def reel(source: Path, file: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Play `eval.videos` episodes of an evaluation again and write them to `file`, a GIF or an mp4; says what was written.

    `source`: the folder of an evaluation, or a run, whose eval/ is meant; `overrides`: settings over those it was judged with.
    """
    if file.suffix.lower() not in KINDS:
        raise UserError(f"{file} is neither a GIF nor an mp4: give a name that ends with {' or '.join(KINDS)}")
    folder = _evaluation(source)
    result = _read(folder)
    trained = checkpoint.read_config(checkpoint.find(folder / result["checkpoint"]))
    judged = override(trained, result.get("overrides", []))
    config = override(judged, overrides)
    require_effect([judged], config, overrides)
    some = choose(_played(folder, result), config.eval.videos)
    if not some:
        raise UserError(f"eval.videos={config.eval.videos}: give the number of episodes to be seen, at least 1")
    if find(config.task.env_id).nondeterministic:
        raise UserError(
            f"{config.task.env_id} does not promise that an episode can be played again: film it while it plays"
        )
    films, rate = _films(config, some)
    skip = max(1, round(rate / FPS)) if file.suffix.lower() == ".gif" else 1
    frames, fps = mosaic([thinned(film, skip) for film in films]), rate / skip
    if file.suffix.lower() == ".gif":
        write_gif(file, frames, fps, HOLD_S)
    else:
        write_mp4(file, [*frames, *[frames[-1]] * round(HOLD_S * fps)], fps)
    return {
        "file": str(file),
        "bytes": file.stat().st_size,
        "seeds": [p.outcome.seed for p in some],
        "frames": len(frames),
        "fps": fps,
        "size": [*frames[0].shape[:2]],
    }


def thinned(film: Sequence[np.ndarray], skip: int) -> list[np.ndarray]:
    """Every `skip`-th frame, and the last."""
    kept = list(film[::skip])
    return kept if (len(film) - 1) % skip == 0 else [*kept, film[-1]]


def mosaic(films: Sequence[Sequence[UInt8[np.ndarray, "h w 3"]]]) -> list[np.ndarray]:
    """Films of one size side by side, `ACROSS` in a row, small enough together for `WIDE`; one that is over stays as it ended."""
    across = min(ACROSS, len(films))
    rows = -(-len(films) // across)
    height, width = _fit(films[0][0].shape, (WIDE + GAP) // across - GAP)
    found = []
    for t in range(max(map(len, films))):
        whole = np.full((rows * (height + GAP) - GAP, across * (width + GAP) - GAP, 3), 255, np.uint8)
        for i, film in enumerate(films):
            y, x = i // across * (height + GAP), i % across * (width + GAP)
            whole[y : y + height, x : x + width] = _small(film[min(t, len(film) - 1)], (height, width))
        found.append(whole)
    return found


def _films(config: DictConfig, some: Sequence[Played]) -> tuple[list[list[np.ndarray]], float]:
    made = list(replayed(config, some, terms(config)["success"]))
    return [frames for _, frames, _ in made], made[0][2]


def _fit(shape: Sequence[int], most: int) -> tuple[int, int]:
    """(height, width) no wider than `most`, of the same proportions."""
    height, width = shape[:2]
    return (height, width) if width <= most else (max(1, round(height * most / width)), most)


def _small(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    from PIL import Image

    if frame.shape[:2] == size:
        return frame
    return np.asarray(Image.fromarray(frame).resize((size[1], size[0]), Image.Resampling.BOX))


def _evaluation(source: Path) -> Path:
    for folder in (source, source / "eval"):
        if (folder / place.RESULT).is_file():
            return folder
    raise UserError(
        f"{source} holds no evaluation: make one with `polyarm eval {source}`, or give the folder of its {place.RESULT}"
    )


def _read(folder: Path) -> dict[str, Any]:
    try:
        result = json.loads((folder / place.RESULT).read_text())
    except ValueError as error:
        raise UserError(f"{folder / place.RESULT} cannot be read ({error}): evaluate again") from error
    if not isinstance(result, dict) or not {"measure", "checkpoint"} <= result.keys():
        raise UserError(f"{folder / place.RESULT} is no result of an evaluation: give the folder of one")
    if result["measure"] == OFFLINE:
        raise UserError(f"{folder} was judged offline, by the action error: there are no episodes to be seen")
    return result


def _played(folder: Path, result: dict[str, Any]) -> list[Played]:
    file = folder / "episodes.npz"
    try:
        with np.load(file) as kept:
            return [Played(Outcome(**row), kept[f"seed_{row['seed']}"]) for row in result["per_seed"]]
    except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"the actions in {file} cannot be read ({error}): evaluate again") from error
