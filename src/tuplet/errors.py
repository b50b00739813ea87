"""The errors that a user can cause and fix, as types; and the words that all messages share."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import final


class InputError(ValueError):
    """Something given to tuplet cannot be used: one line with what was given, what is wanted and what to do.

    The command line prints the message and exits with 2. Any other exception is a defect of tuplet and keeps
    its traceback. Callers tell errors apart by subclass and attributes, never by the message.

    Args:
        message: one line.
        subject: what cannot be used: the dotted path of a setting, a file, a folder, an argument.
        given: the value that was given.
        wanted: the values that would do, such as the list of choices.
    """

    one_rank_only = False
    """Whether one rank of a distributed run may raise this alone, so that it has to print the line itself."""

    def __init__(
        self,
        message: str,
        *,
        subject: str | os.PathLike[str] = "",
        given: object = None,
        wanted: object = None,
    ) -> None:
        super().__init__(message)
        self.subject = os.fspath(subject)
        self.given = given
        self.wanted = wanted


class SettingsError(InputError):
    """A setting, an option or an argument is outside its range or does not fit the others; see `subject`."""


class DataError(InputError):
    """Images, labels, tables, lists or embeddings are missing, unreadable or do not fit together."""


class ModelError(InputError):
    """A saved model, a checkpoint of weights or a backbone cannot be used."""


class RunFolderError(InputError):
    """A run folder, a search folder or a claims folder is missing, damaged, in use or of something else."""


class SearchIndexError(InputError):
    """An index of pictures is missing, damaged, in use or made by another model."""


class RequestError(InputError):
    """A request to an index or its server cannot be answered: a condition, a picture or a range in it."""


class DeviceError(InputError):
    """A device, its memory, a compiler or a network address that was asked for is not available."""


@final
class MissingExtraError(InputError, ImportError):
    """A package that only an extra installs is missing.

    It is an ImportError too, so `try: from tuplet import ImageIndex` may be guarded in the usual way.

    Args:
        package: the import name of the package.
        extra: the extra of tuplet that installs it.
        purpose: who needs it, as the subject of the sentence.
    """

    def __init__(self, package: str, extra: str, *, purpose: str = "this command") -> None:
        super().__init__(
            f"{purpose} needs {package}, which is not installed; want pip install 'tuplet[{extra}]'",
            subject=package,
            wanted=extra,
        )
        self.package, self.extra, self._purpose = package, extra, purpose

    def __reduce__(self) -> tuple[object, ...]:
        # By default an exception is rebuilt from its message, which is not what __init__ takes.
        return _missing_extra, (self.package, self.extra, self._purpose)


def _missing_extra(package: str, extra: str, purpose: str) -> MissingExtraError:
    return MissingExtraError(package, extra, purpose=purpose)


def require_extra(extra: str, *modules: str, purpose: str = "this command") -> None:
    """Raise a MissingExtraError if a module that an extra of tuplet installs is missing.

    Args:
        extra: of tuplet.
        modules: imported here, because they are needed at once.
        purpose: who needs them, as the subject of the sentence.
    """
    for module in modules:
        try:
            import_module(module)
        except ImportError:
            raise MissingExtraError(module, extra, purpose=purpose) from None


def unusable(subject: str | os.PathLike[str], given: str, wanted: str, *, fact: object = None) -> DataError:
    """Return the DataError with the line "SUBJECT GIVEN; want WANTED".

    Args:
        subject: a file, a folder or another thing that cannot be used.
        given: what is wrong with it, such as "has no rows".
        wanted: what it should be, and what to do.
        fact: a number or another value for the attribute `given`, in place of the words.
    """
    # The name of a file may hold the end of a line.
    message = f"{os.fspath(subject)} {given}; want {wanted}".replace("\n", "\\n")
    return DataError(message, subject=subject, given=given if fact is None else fact, wanted=wanted)


def one_line(error: object, limit: int | None = 200) -> str:
    """Return the message of an error, or any text, as one line.

    Args:
        error: whose text may span lines.
        limit: the most characters to keep; None for all.
    """
    return " ".join(str(error).split())[:limit]


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun: "1 image", "2 classes", "1,000 queries".

    Args:
        number: how many.
        noun: the singular.
        plural: by default the noun with s, or with es after an s.
    """
    several = plural or noun + ("es" if noun.endswith("s") else "s")
    return f"{number:,} {noun if number == 1 else several}"


def file_error_line(error: OSError, arguments: Sequence[str]) -> str:
    """Return the line for an error of the operating system: the file, the reason, and the option to change.

    Args:
        error: such as a full disk or a folder that cannot be written; its notes come last.
        arguments: the arguments of the command, one of which may name the file or a folder around it.
    """
    notes = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
    reason = " ".join((error.strerror or str(error)).split())
    wanted = "room on the disk" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    if not isinstance(error.filename, (str, bytes)) or not error.filename:
        return reason + (f"; want {wanted}" if wanted else "") + notes
    file = Path(os.fsdecode(error.filename))
    # Files are written atomically, under a temporary name .NAME.RANDOM.partial: report the final name.
    partial = re.fullmatch(r"\.(.+?)(?:\.[^.]+)?\.partial", file.name)
    if partial:
        file = file.with_name(partial[1])
    option = _option_of(file, arguments)
    wanted = wanted or (f"another {option}" if option else "one that can be read and written")
    return f"cannot {'write' if partial else 'use'} {file} ({reason}); want {wanted}{notes}"


def _option_of(file: Path, arguments: Sequence[str]) -> str:
    """Return the option whose value is this file, the nearest folder above it, or a file inside; else ""."""
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
