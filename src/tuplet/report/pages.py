"""Pages from templates: everything escaped, every name defined."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template


def page_template(name: str, filters: Mapping[str, Callable[..., Any]] | None = None) -> Template:
    """A template of the package.

    Args:
        name: of its file.
        filters: more of them, by name.
    """
    environment = Environment(
        loader=PackageLoader("tuplet.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters or {})
    return environment.get_template(name)
