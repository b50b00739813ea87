"""The two pages of the search server, and the policies that allow their own script and style only."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from tuplet.report.pages import page_template


@dataclass(frozen=True)
class Page:
    """A page that needs nothing but the server that it comes from.

    Attributes:
        html: the whole of it.
        policy: its Content-Security-Policy.
    """

    html: str
    policy: str


@cache
def search_page() -> Page:
    """The page to search with; there is nothing of the index in it."""
    return _page(page_template("service.html").render())


def docs_page(description: Mapping[str, Any]) -> Page:
    """The addresses of a server to read.

    Args:
        description: its OpenAPI description.
    """
    return _page(page_template("service_docs.html").render(api=description))


def _page(html: str) -> Page:
    rules = [
        "default-src 'none'",
        f"script-src {_hashes(html, 'script')}",
        f"style-src {_hashes(html, 'style')}",
        "img-src 'self' blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
    return Page(html, "; ".join(rules))


def _hashes(html: str, element: str) -> str:
    """The elements of a page by their hashes, so that no other one can run in it."""
    found = re.findall(rf"<{element}>(.*?)</{element}>", html, flags=re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in found]
    return " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
