"""Pages that open anywhere: one HTML file, with nothing beside it and no network. Loads no torch."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any


def write_page(path: Path | str, template: str, filters: Mapping[str, Callable[..., Any]], **values: Any) -> None:
    """Fill in a template of this folder and write it; makes the folder. Text is escaped."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    env = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, loader=FunctionLoader(text)
    )
    env.filters.update(filters)
    page = env.get_template(template).render(**values)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    work = path.with_name(path.name + ".partial")
    work.write_text(page, encoding="utf-8")
    work.replace(path)


def text(name: str) -> str:
    """A file of this folder."""
    return files("polyarm.eval").joinpath(name).read_text(encoding="utf-8")


def script(name: str) -> dict[str, Any]:
    """A script of this folder, and the hash by which a page allows this one and no other."""
    from markupsafe import Markup

    code = text(name)
    return {"code": Markup(code), "sha256": base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}
