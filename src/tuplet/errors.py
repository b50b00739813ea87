"""Errors that their user can mend, in one line."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Sequence
from pathlib import Path


class InputError(ValueError):
    """Something given to tuplet cannot be used: the message says what was got, what is wanted, what to do.

    The command line prints its message as one line and exits with 2; any other exception is a defect of ours
    and keeps its traceback.
    """

    one_rank_only = False
    """Whether one rank of a distributed run may meet this error alone, and so has to say it itself."""


def file_error_line(error: OSError, arguments: Sequence[str]) -> str:
    """What a file or a folder cannot be used for, and which option is to be another one.

    Args:
        error: of the operating system: a full disk, a folder that cannot be written; its notes come last.
        arguments: of the command, of which one may name the file or a folder around it.
    """
    notes = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
    reason = " ".join((error.strerror or str(error)).split())
    wanted = "room on the disk" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    if not isinstance(error.filename, (str, bytes)) or not error.filename:
        return reason + (f"; want {wanted}" if wanted else "") + notes
    file = Path(os.fsdecode(error.filename))
    # What is written whole or not at all has another name until then: .NAME.WHATEVER.partial
    whole = re.fullmatch(r"\.(.+?)(?:\.[^.]+)?\.partial", file.name)
    if whole:
        file = file.with_name(whole[1])
    option = _option_of(file, arguments)
    wanted = wanted or (f"another {option}" if option else "one that can be read and written")
    return f"cannot {'write' if whole else 'use'} {file} ({reason}); want {wanted}{notes}"


def _option_of(file: Path, arguments: Sequence[str]) -> str:
    """The option whose value is the file, or else the nearest folder around it or file in it; "" for none."""
    near: dict[str, int] = {}
    absolute = file.absolute().parts
    for before, argument in zip(("", *arguments), arguments, strict=False):
        name, equals, value = argument.partition("=")
        option, value = (name, value) if equals else (before, argument)
        parts = Path(value).absolute().parts
        shared = min(len(parts), len(absolute))
        if option.startswith("--") and value and parts[:shared] == absolute[:shared]:
            near.setdefault(option, abs(len(parts) - len(absolute)))
    return min(near, key=lambda option: near[option], default="")


def counted(number: int, noun: str, plural: str = "") -> str:
    """The number with its noun: "1 image", "2 classes", "1,000 queries".

    Args:
        number: of the things.
        noun: of one.
        plural: of several; empty: the noun with s, or with es behind an s.
    """
    several = plural or noun + ("es" if noun.endswith("s") else "s")
    return f"{number:,} {noun if number == 1 else several}"
