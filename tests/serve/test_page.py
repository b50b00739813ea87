"""The page of the search server as a browser shows it, driven as a hand would."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from headless_chromium import PROGRAM, Browser
from live_server import TOKEN, Server, serving, wait_until
from picture_folder import DIM, add_vectors, unit

from tuplet.search.index import ImageIndex, picture_id
from tuplet.serve.access import Access
from tuplet.serve.service import ServiceSettings

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium is installed")

READY = "$('found').ariaBusy === 'false'"
FOUND = "[...document.querySelectorAll('#found a')].map((one) => one.title)"


@pytest.fixture(scope="module")
def settings() -> ServiceSettings:
    return ServiceSettings(map_points=30)


@pytest.fixture(autouse=True)
def _map_is_there(server: Server) -> None:
    wait_until(lambda: server.get("/map").json["ready"])


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    opened = Browser(tmp_path_factory.mktemp("chromium"))
    yield opened
    opened.close()


@pytest.fixture
def browser(chromium: Browser) -> Browser:
    chromium.new_page()
    return chromium


def test_the_way_through_the_page(server: Server, browser: Browser) -> None:
    browser.size(1280, 900)
    browser.open(f"http://127.0.0.1:{server.port}/")
    browser.until(f"{READY} && document.querySelectorAll('#found a').length === 17")
    browser.until("[...document.querySelectorAll('#found img')].some((one) => one.naturalWidth > 0)")
    assert browser.run("$('size').textContent") == "17 pictures"

    # A picture is picked: its copy in the index comes first, as it does in an answer for programs.
    file = server.photos / "class 1" / "3.png"
    browser.files("#file", file)
    browser.until(f"{READY} && document.title.startsWith('Like 3.png')")
    wanted = [one["path"] for one in server.post("/search?top=48", file.read_bytes()).json["found"]]
    assert browser.run(FOUND) == wanted
    assert browser.run("document.querySelector('#found .mark').textContent") == "exact copy"
    browser.until("$('asked-picture').naturalWidth === 24")
    assert browser.run("document.activeElement.id") == "title"

    # The keyboard leads from there to the first picture, and Enter searches on.
    first = browser.run("document.querySelectorAll('#found a')[1].title")
    browser.run("document.querySelectorAll('#found a')[1].focus()")
    browser.key("Enter", code=13, text="\r")
    browser.until(f"{READY} && location.search === '?id={picture_id(first)}'")
    assert browser.run("$('about').textContent") == first
    nearest = [one["path"] for one in server.get(f"/search?top=48&id={picture_id(first)}").json["found"]]
    assert browser.run(FOUND) == nearest

    # The filter, and the way back through all of it.
    browser.run("{const box = $('label'); box.value = 'class 2'; box.onchange();}")
    browser.until(f"{READY} && document.querySelectorAll('#found a').length === 5")
    assert all("/class 2/" in path for path in browser.run(FOUND))
    assert "label=class+2" in browser.run("location.search")
    browser.run("history.back()")
    browser.until(f"{READY} && document.querySelectorAll('#found a').length === 16")
    browser.run("history.back()")
    browser.until(f"{READY} && document.title.startsWith('Like 3.png')")
    assert browser.run(FOUND) == wanted
    browser.run("history.back()")
    browser.until(f"{READY} && document.title.startsWith('Search')")
    browser.run("history.go(3)")
    browser.until(f"{READY} && document.querySelectorAll('#found a').length === 5")

    assert browser.problems() == []
    here = f"http://127.0.0.1:{server.port}/"
    assert all(one.startswith((here, f"blob:{here}")) for one in browser.requested())


def test_dropping_pasting_and_what_is_wrong(server: Server, browser: Browser) -> None:
    browser.size(390, 844, phone=True, dark=True)
    browser.open(f"http://127.0.0.1:{server.port}/")
    browser.until(READY)
    assert browser.run("document.documentElement.scrollWidth") == 390
    script = """(async () => {
        const held = new DataTransfer(), bytes = await (await fetch('/images/%s')).blob();
        held.items.add(new File([%s], 'dropped.png', { type: 'image/png' }));
        document.body.dispatchEvent(new %s);
    })()"""
    name = server.id_of("class 0/2.png")
    drop = "DragEvent('drop', { bubbles: true, cancelable: true, dataTransfer: held })"
    browser.run(script % (name, "bytes", drop))
    browser.until(f"{READY} && document.title.startsWith('Like dropped.png')")
    assert browser.run(FOUND)[0] == str(server.photos / "class 0" / "2.png")
    paste = "ClipboardEvent('paste', { bubbles: true, clipboardData: held })"
    browser.run(script % (name, "'<script>alert(1)</' + 'script>'", paste))
    browser.until("!$('say').hidden")
    assert "the picture cannot be read" in browser.run("$('say').textContent")
    assert browser.run("document.documentElement.scrollWidth") == 390
    (said,) = browser.problems()
    assert "422" in said


def test_the_map_leads_to_pictures(server: Server, browser: Browser) -> None:
    browser.size(1280, 900)
    browser.open(f"http://127.0.0.1:{server.port}/")
    browser.until(f"{READY} && $('wait').hidden")
    browser.run("$('map').focus()")
    browser.key("ArrowRight", code=39)
    browser.until("!$('tip').hidden")
    browser.until("$('tip-picture').naturalWidth > 0")
    name = browser.run("new URL($('tip').href).searchParams.get('id')")
    label = server.index.row(name).label
    assert browser.run("$('tip-label').textContent") == label
    browser.key("Enter", code=13, text="\r")
    browser.until(f"{READY} && location.search === '?id={name}'")

    # The mouse finds a picture as well, and a click on it searches on.
    box = "$('map').getBoundingClientRect()"
    x, y, width, height = (browser.run(f"{box}.{side}") for side in ("x", "y", "width", "height"))
    hovered = None
    for place in ((x + i, y + j) for j in range(20, int(height), 18) for i in range(20, int(width), 18)):
        browser.mouse("mouseMoved", *place)
        hovered = browser.run("$('tip').hidden ? '' : $('tip').href")
        if hovered and name not in hovered:
            browser.click(*place)
            break
    browser.until(f"{READY} && location.href === {hovered!r}")
    assert browser.problems() == []


def test_the_page_asks_for_the_token_once(server: Server, browser: Browser) -> None:
    with server.beside(access=Access(TOKEN)) as closed:
        browser.size(390, 844, phone=True)
        browser.open(f"http://127.0.0.1:{closed.port}/")
        browser.until("$('gate').open")
        submit = "{$('token').value = %r; document.querySelector('#gate .main').click();}"
        browser.run(submit % "wrong")
        browser.until("$('gate-say').textContent.includes('the token is wrong')")
        browser.run(submit % TOKEN)
        browser.until(f"{READY} && document.querySelectorAll('#found a').length === 17")
        browser.until("[...document.querySelectorAll('#found img')].some((one) => one.naturalWidth > 0)")
        assert not browser.run("$('gate').open")
        assert browser.run("document.cookie + JSON.stringify({...sessionStorage, ...localStorage})") == "{}"
        browser.open(f"http://127.0.0.1:{closed.port}/?label=class%201")
        browser.until(f"{READY} && document.querySelectorAll('#found a').length === 5")
        assert not browser.run("$('gate').open")


LONG = "Donaudampfschifffahrtselektrizitaetenhauptbetriebswerkbauunterbeamtengesellschaft" * 3
TURNING = "photo \u202egnp.exe"


def named(uri: Path, server: Server, labels: list[str | None], names: list[str]) -> ImageIndex:
    """An index of pictures of these names, for the server's model."""
    index = ImageIndex.create(str(uri), server.embedder.model)
    vectors = unit(np.random.default_rng(0).standard_normal((len(names), DIM)))
    add_vectors(index, vectors, labels, [f"/photos/{name}" for name in names])
    return index


def test_names_that_are_long_or_turn_the_text_round(
    server: Server, browser: Browser, settings: ServiceSettings, tmp_path: Path
) -> None:
    labels: list[str | None] = [LONG, TURNING, None, "oak"]
    names = [f"{LONG}.jpg", "\u202egpj.2.jpg", "screen\u202fshot.jpg", "4.jpg"]
    index = named(tmp_path / "index", server, labels, names)
    with serving(index, server.embedder, server.photos, settings=settings) as hostile:
        wait_until(lambda: hostile.get("/map").json["ready"])
        browser.size(390, 844, phone=True)
        for name in names[:2]:
            browser.open(f"http://127.0.0.1:{hostile.port}/?id={picture_id(f'/photos/{name}')}")
            browser.until(f"{READY} && document.querySelectorAll('#found a').length === 3")
            assert browser.run("document.documentElement.scrollWidth") == 390
            lines = "(one) => one.clientHeight / parseFloat(getComputedStyle(one).lineHeight)"
            assert max(browser.run(f"[...document.querySelectorAll('.row b')].map({lines})")) < 2.3
            assert max(browser.run(f"[...document.querySelectorAll('.name')].map({lines})")) < 1.3
            assert browser.run(f"({lines})($('title'))") < 4.3
            said = [browser.run("document.body.innerText + document.title")]
            for hint in ("title", "ariaLabel"):
                said += browser.run(f"[...document.querySelectorAll('*')].map((one) => one.{hint})")
            said += browser.run("[...document.querySelectorAll('option')].map((one) => one.text)")
            everything = "\n".join(filter(None, said))
            assert "\u202e" not in everything
            assert "\\u202egnp.exe" in everything
            assert "screen\u202fshot.jpg" in everything
            assert LONG in browser.run(
                "[...document.querySelectorAll('.row b, h1')].map((one) => one.title).join()"
            )
        # What is chosen in the filter is the label as it is, however it is shown.
        browser.run(
            "{const box = $('label'); box.selectedIndex = [...box.options]"
            ".findIndex((one) => one.text.includes('exe')); box.onchange();}"
        )
        browser.until(f"{READY} && location.search.includes('label=photo+%E2%80%AEgnp.exe')")
        browser.run("$('home').click()")
        browser.until(f"{READY} && $('wait').hidden")
        browser.run(
            "{window.drawn = []; CanvasRenderingContext2D.prototype.fillText = (text) => drawn.push(text);"
            "$('show-map').click(); $('whole').click();}"
        )
        drawn = browser.until("drawn.length && drawn")
        assert "photo \\u202egnp.exe" in drawn
        assert max(map(len, drawn)) <= 24


def test_one_picture_and_none(
    server: Server, browser: Browser, settings: ServiceSettings, tmp_path: Path
) -> None:
    index = named(tmp_path / "index", server, ["oak"], ["1.jpg"])
    shown = "['size', 'hint', 'live'].map((one) => document.getElementById(one).textContent)"
    with serving(index, server.embedder, server.photos, settings=settings) as small:
        wait_until(lambda: small.get("/map").json["ready"])
        browser.open(f"http://127.0.0.1:{small.port}/")
        browser.until(f"{READY} && $('wait').hidden")
        assert browser.run(shown) == ["1 picture", "1 picture.", "1 picture"]
        browser.open(f"http://127.0.0.1:{small.port}/?label=elm")
        browser.until(f"{READY} && !$('say').hidden")
        # Who was told that there is none is not sent to "one of these".
        assert "with the label" in browser.run("$('say').textContent")
        assert "one of these" not in browser.run("document.body.innerText")


def test_without_scripts_the_page_says_so(server: Server, browser: Browser) -> None:
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    browser.open(f"http://127.0.0.1:{server.port}/")
    said = browser.until("document.body.innerText")
    assert "This page needs JavaScript" in said
    assert not any(word in said for word in ("Loading", "being drawn", "Pick a picture"))
    assert browser.problems() == []
