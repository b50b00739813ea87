"""docs/paper-to-code.md names what exists, with the equation that its docstring names."""

from __future__ import annotations

import re
from pathlib import Path

from tuplet.losses import hgnn, hist

PAGE = Path(__file__).parents[2] / "docs" / "paper-to-code.md"


def test_the_paper_map_and_the_docstrings_agree() -> None:
    rows = re.findall(r"^\| .* \| ([\d, -]+) \| `(\w+)` \|$", PAGE.read_text(), re.M)
    assert len(rows) == 8
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
