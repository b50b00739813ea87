"""What a setting must be, said in one line where it is not."""

from __future__ import annotations

from tuplet.errors import InputError


def require(condition: bool, name: str, value: object, wanted: str) -> None:
    """Nothing; raises InputError, naming the field, its value and what is wanted."""
    if not condition:
        raise InputError(f"{name} is {value!r}; want {wanted}")
