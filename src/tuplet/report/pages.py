"""Pages from templates: every name has to be defined, and in HTML every value is escaped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template, select_autoescape

from tuplet.data.files import write_atomically

_TEMPLATES = Path(__file__).parent / "templates"


def page_template(
    name: str, filters: Mapping[str, Callable[..., Any]] | None = None, *, folder: Path = _TEMPLATES
) -> Template:
    """Return a template.

    Args:
        name: of its file.
        filters: more of them, by name.
        folder: that the file lies in.
    """
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters or {})
    return environment.get_template(name)


def write_page(file: Path, page: str) -> None:
    """Write a page in one step, into a folder that is made if need be."""
    file.parent.mkdir(parents=True, exist_ok=True)
    # A file name that is no UTF-8 reaches us as lone surrogates, which have no bytes in UTF-8.
    write_atomically(file, page.encode("utf-8", errors="replace"))
