"""Files that appear whole or not at all: a kill leaves the old content or the new, never a part of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(file: Path) -> Iterator[BinaryIO]:
    """Open a file to write; it takes the place of `file` when the block ends without an error.

    Args:
        file: in a folder that exists; it may be there already.

    Raises:
        OSError: the folder or the disk does not take it; `file` stays as it was.
    """
    # The temporary file lies in the same folder: a rename is atomic only within one file system.
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as stream:
            yield stream
            stream.flush()
            # Otherwise the rename may reach the disk before the content: a power cut leaves an empty file.
            os.fsync(stream.fileno())
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def write_atomically(file: Path, content: bytes | memoryview) -> None:
    """Write a file in one step.

    Args:
        file: in a folder that exists; it may be there already.
        content: all of it.
    """
    with replacing(file) as stream:
        stream.write(content)
