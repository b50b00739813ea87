"""Numbers with their nouns, as every line that is printed says them."""

from __future__ import annotations


def counted(number: int, noun: str, plural: str = "") -> str:
    """The number with its noun: "1 image", "2 classes", "1,000 queries".

    Args:
        number: of the things.
        noun: of one.
        plural: of several; empty: the noun with s, or with es behind an s.
    """
    several = plural or noun + ("es" if noun.endswith("s") else "s")
    return f"{number:,} {noun if number == 1 else several}"
