from __future__ import annotations

import base64
from pathlib import Path

import pytest
from html_page import Page

from tuplet.errors import SettingsError
from tuplet.report.contact_sheet import Shot, ShotGroup, write_contact_sheet

EVIL = "<script>alert('1')</script> \"&amp; \udcff {{ 7 * 7 }}"


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
    pictures = [(one["src"] or "").removeprefix("data:image/jpeg;base64,") for one in page.attributes("img")]
    assert [base64.b64decode(one) for one in pictures] == [b"one", b"two"]
    shown = EVIL.replace("\udcff", "\\udcff")
    assert page.pieces.count(shown) == 6  # heading, a fact's name, another's value, group, picture, mark
    assert [one["alt"] for one in page.attributes("img")] == [shown, "y.jpg"]
    titles = [one["title"] for one in page.attributes("li")]
    assert titles == [f"/photos/{shown.replace('/', '')}", "/x/y.jpg"]
    policy = [one["content"] for one in page.attributes("meta") if "http-equiv" in one]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    write_contact_sheet(file, "again", [], {})
    assert "again" in file.read_text()
    for no_file in (tmp_path, file / "sheet.html"):
        with pytest.raises(SettingsError, match="want another --html") as error:
            write_contact_sheet(no_file, "again", [], {})
        assert error.value.subject == str(no_file)


def test_names_that_are_long_or_turn_the_text_round(tmp_path: Path) -> None:
    label = "\u202egnp.exe \x1b[31m " + "long " * 60
    shot = Shot(b"one", label, "/photos/screen\u202fshot \u0646\u200c\u0627.jpg\n", "0.1", "\u2067mark")
    write_contact_sheet(tmp_path / "sheet.html", label, [ShotGroup(label, (shot,))], {label: label})
    text = (tmp_path / "sheet.html").read_text(encoding="utf-8")
    assert not set("\u202e\u2067\x1b") & set(text)
    page, spelt = Page(text), "\\u202egnp.exe \\x1b[31m " + "long " * 60
    assert page.pieces.count(spelt) == 5  # heading, a fact's name and value, group, picture
    assert "\\u2067mark" in page.pieces
    # Spaces and joiners that ordinary names have stay as they are.
    assert "screen\u202fshot \u0646\u200c\u0627.jpg\\n" in page.pieces
    # A long label is cut off by the style, and the whole of it is there to be seen.
    assert [one["title"] for one in page.attributes("b")] == [spelt]
    (rule,) = (line for line in text.splitlines() if line.startswith(".row b {") and "clamp" in line)
    assert "-webkit-line-clamp: 2; overflow: hidden" in rule
