"""docs/paper-to-code.md names what exists, with the equation that its docstring names."""

from __future__ import annotations

import re
from pathlib import Path

from tuplet.losses import hgnn, hist
from tuplet.recipes.catalogue import recipe
from tuplet.research.claims.plan import claims_of, glyphs, selected_claims

PAGE = Path(__file__).parents[2] / "docs" / "paper-to-code.md"


def test_the_paper_map_and_the_docstrings_agree() -> None:
    rows = re.findall(r"^\| .* \| ([\d, -]+) \| `(\w+)` \|$", PAGE.read_text(), re.M)
    assert len(rows) == 9
    for equations, name in rows:
        first_line = (getattr(hist, name).__doc__ or "").splitlines()[0]
        written = re.search(r"\(Eq\. ([\d-]+)\)", first_line)
        if written is not None:
            assert written.group(1) == equations, name
        else:
            assert equations in ("-", "2, 3"), name
    named = {name for _, name in rows}
    own = {
        name
        for module in (hist, hgnn)
        for name, item in vars(module).items()
        if getattr(item, "__module__", "") == module.__name__ and not name.startswith("_")
    }
    assert own - named == {"HISTTerms", "unit_rows"}


def test_every_table_and_figure_has_its_place() -> None:
    tables, figures = PAGE.read_text().split("| table |")[1].split("| figure |")
    for text, numbers in ((tables, range(1, 10)), (figures, range(1, 6))):
        heads = " ".join(re.findall(r"^\| (\d\w?(?: and \d)?),", text, re.M))
        assert sorted({int(one) for one in re.findall(r"\d", heads)}) == [*numbers]
    named = re.findall(r"`tuplet claims run (\w+)", tables + figures)
    assert [one.key for one in selected_claims(",".join(sorted(named)), glyphs())] == sorted(named)
    of_the_study = [one.key for one in claims_of(recipe("cars-resnet50")).values() if one.found]
    assert sorted(named) == sorted(of_the_study)
