from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pytest
from picture_folder import index_of_vectors, unit

from tuplet.errors import RequestError
from tuplet.search.index import ImageIndex
from tuplet.search.storage import MOST_SINGLES, MOST_STARS, any_of, picture_condition

NAMES = [
    "plain",
    "o'brien",
    "two''quotes",
    "back\\slash",
    "per%cent",
    "under_score",
    "a[b]c",
    "[!x]",
    "sta*r",
    "wh?t",
    "dot.dot",
    "dash-dash",
    "hat^",
    "new\nline",
    "ümlaut",
    "') OR ('1' = '1",
    '"double"',
    "tab\tand space",
    "&&~~--",
    "{2}(3)|$",
]
PATTERNS = [
    *("*", "*a*", "?????", "[a-d]*", "[!a-d]*", "*[']*", "*[]]*", "*[!]]*", "*\\*", "*%*", "*_*", "*[[]*"),
    *("?*", "*?", "?*?*", "*?**??*", "????*?*?*?*", "**", "[!]", "[!]]?*?", "*[!a]?*[]-a]*"),
    *("[", "*[*", "*.*", "*^*", "*[\\]*", "*\n*", "*[&~]*", "*-", "*[-^]*", "*(*", "*{2}*", "*$", "*[?]*"),
]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ImageIndex:
    vectors = unit(np.random.default_rng(0).standard_normal((len(NAMES), 4)))
    paths = [f"/photos/{name}" for name in NAMES]
    return index_of_vectors(tmp_path_factory.mktemp("filters") / "index", vectors, list(NAMES), paths)


def names(index: ImageIndex, where: str | None) -> list[str]:
    return sorted(Path(one.path).name for one in index.pictures(where))


def test_a_label_is_only_itself(index: ImageIndex) -> None:
    for name in NAMES:
        assert names(index, picture_condition(label=name)) == [name]
    assert names(index, picture_condition(label="nobody")) == []
    assert names(index, any_of("label", NAMES[:6])) == sorted(NAMES[:6])
    assert names(index, any_of("label", ())) == []


@pytest.mark.parametrize("pattern", [*PATTERNS, *NAMES])
def test_patterns_are_those_of_the_shell(index: ImageIndex, pattern: str) -> None:
    wanted = sorted(name for name in NAMES if fnmatchcase(name, pattern))
    assert names(index, picture_condition(path=f"/photos/{pattern}")) == wanted
    anywhere = sorted(name for name in NAMES if fnmatchcase(f"/photos/{name}", f"*/{pattern}"))
    if not pattern.startswith("*"):
        assert names(index, picture_condition(path=pattern)) == anywhere


def test_conditions_together_keep_their_brackets(index: ImageIndex) -> None:
    either = "label = 'plain' OR label = 'dot.dot'"
    assert names(index, picture_condition(where=either, label="plain", path="*")) == ["plain"]
    assert picture_condition() is None


def test_a_pattern_has_only_so_many_wildcards(index: ImageIndex) -> None:
    for fits in ("*a" * MOST_STARS, "/" + "?" * MOST_SINGLES, "a*" * MOST_STARS, "/" + "[ab]" * MOST_SINGLES):
        assert names(index, picture_condition(path=fits)) == []
    # Those in a row are one, and one in brackets is none.
    assert names(index, picture_condition(path="/photos/" + "*" * 300)) == sorted(NAMES)
    assert names(index, picture_condition(path="/photos/" + "?*" * 5)) == sorted(
        name for name in NAMES if len(name) >= 5
    )
    assert names(index, picture_condition(path="/photos/sta[*]r" + "[*]" * 20)) == []
    assert (picture_condition(path="*?" * 20) or "").count("*") == 1
    for wild, stars, ones in (
        ("*a" * (MOST_STARS + 1), MOST_STARS + 1, 0),
        ("?" * (MOST_SINGLES + 1), 0, MOST_SINGLES + 1),
        ("?*" * 240, 1, 240),
        ("*[ab]?" * 100, 100, 200),
    ):
        with pytest.raises(RequestError) as refused:
            picture_condition(path=wild)
        assert (refused.value.subject, refused.value.given) == ("path", (stars, ones))
