"""An HTML page taken apart."""

from __future__ import annotations

import re
from html.parser import HTMLParser

VOID = {"meta", "img", "br", "wbr", "link"}


class Page(HTMLParser):
    """The page's text, tags and attributes; fails if tags do not nest."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.stack: list[str] = []
        self.pieces: list[str] = []
        self.feed(source)
        assert self.stack == []
        self.text = re.sub(r"\s+", " ", "".join(self.pieces).replace("\N{NO-BREAK SPACE}", " "))

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag
        if tag in ("td", "th", "dt", "dd", "p", "li"):
            self.pieces.append(" ")

    def handle_data(self, data: str) -> None:
        if "style" not in self.stack:
            self.pieces.append(data)
