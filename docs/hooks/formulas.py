"""Formulas become MathML when the site is built, which browsers show without a script."""

import html
import re

from latex2mathml.converter import convert


def on_page_content(content: str, **_: object) -> str:
    r"""Replace what pymdownx.arithmatex marked, \(...\) in a line and \[...\] on its own, by MathML."""
    return re.sub(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', _mathml, content, flags=re.S)


def _mathml(found: re.Match[str]) -> str:
    display = "inline" if found[1] == "span" else "block"
    math = convert(html.unescape(found[2].strip()), display=display)
    return f'<{found[1]} class="formula">{math}</{found[1]}>'
