from __future__ import annotations

import base64
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tuplet.errors import InputError
from tuplet.report.contact_sheet import Shot, ShotGroup, write_contact_sheet

EVIL = "<script>alert('1')</script> \"&amp; \udcff {{ 7 * 7 }}"


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_needs_nothing_else_and_believes_no_name(tmp_path: Path) -> None:
    shots = (
        Shot(b"one", EVIL, f"/photos/{EVIL.replace('/', '')}", "0.125", EVIL),
        Shot(b"two", "", "/x/y.jpg"),
    )
    groups = [ShotGroup(EVIL, shots), ShotGroup("empty", ())]
    file = tmp_path / "new" / "sheet.html"
    write_contact_sheet(file, EVIL, groups, {"index": EVIL, EVIL: "3"})
    page = Page(file.read_text(encoding="utf-8"))
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}
    pictures = [attributes["src"] or "" for tag, attributes in page.tags if tag == "img"]
    assert [base64.b64decode(one.removeprefix("data:image/jpeg;base64,")) for one in pictures] == [
        b"one",
        b"two",
    ]
    shown = EVIL.replace("\udcff", "\\udcff")
    assert page.words.count(shown) == 6  # heading, a fact's name, another's value, group, picture, mark
    assert [attributes["alt"] for tag, attributes in page.tags if tag == "img"] == [shown, "y.jpg"]
    assert [attributes["title"] for tag, attributes in page.tags if tag == "li"] == [
        f"/photos/{shown.replace('/', '')}",
        "/x/y.jpg",
    ]
    policy = [attributes["content"] for tag, attributes in page.tags if "http-equiv" in attributes]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    write_contact_sheet(file, "again", [], {})
    assert "again" in file.read_text()
    for no_file, reason in ((tmp_path, "Is a directory"), (file / "sheet.html", "File exists")):
        with pytest.raises(InputError, match=rf"cannot write the page .* \({reason}\); want another --html"):
            write_contact_sheet(no_file, "again", [], {})


def test_names_that_are_long_or_turn_the_text_round(tmp_path: Path) -> None:
    label = "\u202egnp.exe \x1b[31m " + "long " * 60
    shot = Shot(b"one", label, "/photos/screen\u202fshot \u0646\u200c\u0627.jpg\n", "0.1", "\u2067mark")
    write_contact_sheet(tmp_path / "sheet.html", label, [ShotGroup(label, (shot,))], {label: label})
    text = (tmp_path / "sheet.html").read_text(encoding="utf-8")
    assert not set("\u202e\u2067\x1b") & set(text)
    page, spelt = Page(text), "\\u202egnp.exe \\x1b[31m " + "long " * 60
    assert page.words.count(spelt) == 5  # heading, a fact's name and value, group, picture
    assert "\\u2067mark" in page.words
    # Spaces and joiners that ordinary names have stay as they are.
    assert "screen\u202fshot \u0646\u200c\u0627.jpg\\n" in page.words
    # A long label is cut off by the style, and the whole of it is there to be seen.
    assert [attributes["title"] for tag, attributes in page.tags if tag == "b"] == [spelt]
    (rule,) = (line for line in text.splitlines() if line.startswith(".row b {") and "clamp" in line)
    assert "-webkit-line-clamp: 2; overflow: hidden" in rule
