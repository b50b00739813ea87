"""Docstrings as griffe reads them: sections after a blank line, with their text on lines of its own."""

import re
from textwrap import dedent

import griffe

SECTIONS = "Args|Attributes|Example|Raises|References|Returns|Yields"


class Sections(griffe.Extension):
    """Put a blank line before each section of a docstring; ours do without, which griffe takes for text."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Change the docstring of one object before it is parsed."""
        if obj.docstring:
            text = re.sub(rf"\n({SECTIONS}):(?= *\n)", r"\n\n\1:", obj.docstring.value)
            text = re.sub(rf"\n({SECTIONS}): +(?=\S)", r"\n\n\1:\n    ", text)
            text = re.sub(r"\nReferences:\n((?:    .*(?:\n|$))+)", _as_text, text)
            obj.docstring.value = text.replace("\nExample:\n", "\nExamples:\n")


def _as_text(found: re.Match[str]) -> str:
    # griffe knows no such section and would make a box of it.
    return f"\n**References:** {dedent(found[1])}"
