"""Shares of the pictures for machines that fill one index together: `--shard 2/4`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tuplet.errors import SettingsError
from tuplet.search.index import picture_id

_WRITTEN = re.compile(r"(\d{1,6})/(\d{1,6})")
_DIGITS = 15


@dataclass(frozen=True)
class Shard:
    """One of several shares of the pictures, about equally large.

    A picture's share depends on its id alone, which is a hash of its path. So the machines need not talk to
    each other, no picture is in two shares, and a command that was killed finds its share again.

    Attributes:
        number: 1..count.
        count: shares, >= 1.
    """

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read "2/4", the second of four shares; raise SettingsError if it is something else."""
        match = _WRITTEN.fullmatch(text)
        number, count = (int(match[1]), int(match[2])) if match else (0, 0)
        if not 1 <= number <= count:
            raise SettingsError(
                f"--shard is {text!r}; want K/N with 1 <= K <= N, such as 2/4", subject="--shard", given=text
            )
        return cls(number, count)

    def has(self, picture: str) -> bool:
        """Return whether the picture with this id is of this share."""
        return int(picture[:_DIGITS], 16) % self.count == self.number - 1

    def has_path(self, path: str) -> bool:
        """Return whether the picture at this absolute path is of this share."""
        return self.has(picture_id(path))
