"""How benchmarks show what they measured: tables, pages, and numbers as words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jinja2
from rich.console import Console
from rich.table import Table

from benchmarks.cells import Cell, write_report


def print_table(
    title: str,
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    left: Sequence[str],
    width: int = 140,
) -> None:
    """Print a table whose columns are aligned to the right, but for those in `left`."""
    table = Table(title=title)
    for heading in headings:
        table.add_column(heading, justify="left" if heading in left else "right")
    for row in rows:
        table.add_row(*row)
    Console(width=width).print(table)


def write_results(folder: Path, name: str, report: Cell, page: str) -> None:
    """Write a report as NAME.json and its page as NAME.md into a folder, and print the page."""
    write_report(folder / f"{name}.json", report)
    (folder / f"{name}.md").write_text(page)
    print(page)


def render(template: Path, **values: Any) -> str:
    """Fill in a template of a page; raise an error if it names a value that is not given."""
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    return environment.from_string(template.read_text()).render(**values)


def machine_line(environment: Cell, *packages: str) -> str:
    """Return what was measured on, with the versions of torch and more packages, on one line."""
    versions = ", ".join(f"{name} {environment[name]}" for name in ("torch", *packages))
    return (
        f"{environment['processor']}, {environment['threads']} threads, device {environment['device']};"
        f" {versions}; {commit_text(environment)}; {environment['started']}"
    )


def commit_text(environment: Cell) -> str:
    """Return the commit that was measured, and whether files differed from it."""
    return f"commit {environment['commit'][:12]}{' with changes' if environment['dirty'] else ''}"


def spread(values: Cell) -> str:
    """Return quartiles of seconds as "median (q1 to q3)"."""
    return f"{duration(values['median'])} ({duration(values['q1'])} to {duration(values['q3'])})"


def duration(seconds: float) -> str:
    """Return a time with three digits and its unit."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def bytes_text(size: float) -> str:
    """Return a size with three digits and its unit."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size / 1e3:.3g} kB"
