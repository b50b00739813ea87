"""A page of pictures in groups: one HTML file that needs no other and no network."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tuplet.errors import SettingsError
from tuplet.report.pages import page_template, write_page


@dataclass(frozen=True)
class Shot:
    """One picture of a page.

    Attributes:
        thumbnail: JPEG.
        title: first line below it, such as its label; may be empty.
        path: of its file.
        number: such as a similarity, as text; may be empty.
        mark: a word that stands out; may be empty.
    """

    thumbnail: bytes
    title: str
    path: str
    number: str = ""
    mark: str = ""

    @property
    def source(self) -> str:
        """The thumbnail as a `data:` address."""
        return f"data:image/jpeg;base64,{base64.b64encode(self.thumbnail).decode('ascii')}"

    @property
    def name(self) -> str:
        """Name of its file."""
        return Path(self.path).name


@dataclass(frozen=True)
class ShotGroup:
    """Pictures under one heading.

    Attributes:
        title: the heading.
        shots: the pictures, in order.
    """

    title: str
    shots: tuple[Shot, ...]


def write_contact_sheet(
    file: Path, title: str, groups: Sequence[ShotGroup], facts: Mapping[str, str]
) -> None:
    """Write a page of pictures; it appears whole or not at all.

    Args:
        file: in a folder that is made if need be.
        title: of the page.
        groups: in order.
        facts: to print above the pictures, by name.

    Raises:
        SettingsError: the file cannot be written.
    """
    page = page_template("contact_sheet.html").render(title=title, groups=groups, facts=facts)
    try:
        write_page(file, page)
    except OSError as error:
        raise SettingsError(
            f"cannot write the page {file} ({error.strerror}); want another --html", subject=file
        ) from None
