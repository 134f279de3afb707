"""The yaml of a task for demonstrations of one's own: configs/task/own.yaml with what a store says filled in."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from polyarm.choices import CONFIGS, options
from polyarm.datasets.demos import ACTION, Demos, no_file
from polyarm.datasets.info import info
from polyarm.datasets.scale import TINY
from polyarm.datasets.store import Store, open_path
from polyarm.spec import UserError

OWN = CONFIGS / "task" / "own.yaml"


def write(store: Path, folder: Path) -> Path:
    """`folder`/task/NAME.yaml for the store at `store`, named like it; nothing is written over. Returns the file."""
    if not store.exists():
        raise no_file(store, "a store of demonstrations")
    if "${" in str(store):
        raise UserError(f"{store} has ${{ in its path, which stands for another setting in yaml: rename it")
    demos = open_path(store)
    if not isinstance(demos, Store):
        raise UserError(
            f"{store} does not say what its numbers mean: write its arrays to a store with polyarm.datasets.arrays (docs/your_data.md)"
        )
    if not len(demos):
        raise UserError(f"{store} holds no episodes: write at least one to it first")
    name = re.sub(r"[^\w-]+", "_", store.name.removesuffix(".zarr"), flags=re.ASCII).strip("_-") or "own"
    if name in (path.stem for path in OWN.parent.glob("*.yaml")):  # polyarm's own file would be taken
        name += "_own"
    file = folder / "task" / f"{name}.yaml"
    if os.path.lexists(file):
        raise UserError(f"{file} is there already: edit or remove it, or name another folder after the store")
    if name in options("task"):
        raise UserError(f"task {name!r} is there already: give the store another name")
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("x") as f:
        f.write(text(name, store, demos))
    return file


def text(name: str, path: Path, demos: Demos) -> str:
    """What the file holds. A stream with a channel that never varies is left as it is, for it has no scale."""
    card, spec = info(demos), demos.spec
    still = sorted({c["stream"] for c in card["channels"] if min(c["max"] - c["min"], c["std"]) < TINY})
    lines = OWN.read_text().splitlines()[1:]
    filled = {
        "name": name,
        "streams": f"[{', '.join(map(_word, spec.obs.names))}]",
        "  path": _word(str(path)),
    }
    out = [
        f"# {card['episodes']} episodes, {card['frames']} rows at {spec.action.rate_hz:g} Hz, judged offline. With a world: its id as env_id, its",
        "# settings as env_kwargs, measure: success. docs/your_data.md",
    ]
    for line in lines:
        key = line.partition(":")[0]
        if key in filled:
            said = "  # what policies see: leave out what they shall not" if key == "streams" else ""
            line = f"{key}: {filled[key]}{said}"
        out.append(line)
        if key == "streams":
            out += [f"#   {about}" for about in _streams(card)]
        if key == "action_scale":
            out += [f"#   {about}" for about in _channels(card, ACTION)]
    if still:
        out.append(
            f"scales: {{{', '.join(f'{_word(s)}: identity' for s in still)}}}  # some channel of each never varies"
        )
    return "\n".join(out) + "\n"


def _streams(card: dict[str, Any]) -> list[str]:
    names = dict.fromkeys(c["stream"] for c in card["channels"] if c["stream"] != ACTION)
    told = [line for name in names for line in _channels(card, name)]
    told += [f"{i['stream']}: image, {' x '.join(map(str, i['shape']))}" for i in card["images"]]
    return told + [f"{t['stream']}: text, {len(t['instructions'])} different" for t in card["texts"]]


def _channels(card: dict[str, Any], stream: str) -> list[str]:
    """One line a channel: its range and unit."""
    return [
        f"{stream}: {c['name']} {c['min']:.4g} to {c['max']:.4g} {c['unit']}"
        for c in card["channels"]
        if c["stream"] == stream
    ]


def _word(text: str) -> str:
    """`text` as yaml holds it."""
    plain = re.fullmatch(r"[A-Za-z_./][\w./-]*", text, re.ASCII)
    reserved = text.lower() in ("y", "n", "yes", "no", "on", "off", "true", "false", "null")
    return text if plain and not reserved else json.dumps(text)
