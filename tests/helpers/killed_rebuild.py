"""A rebuild in a process of its own that kills itself at a chosen moment."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from unittest import mock

from processes import exit_codes, started

Moment = Literal["embedding", "copying"]


def kill_a_rebuild(
    moment: Moment, uri: str, photos: Path, model: Path, environment: Mapping[str, str] | None = None
) -> None:
    """Kill a rebuild in commits of four pictures: before the eighth is embedded, or after copying four."""
    victim = started(_rebuild, moment, uri, str(photos), str(model), dict(environment or {}))
    assert exit_codes([victim], seconds=300) == [-signal.SIGKILL]


def _rebuild(moment: Moment, uri: str, photos: str, model: str, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    import pyarrow
    from picture_folder import open_embedder

    from tuplet.inference.encoder import PictureEmbedder
    from tuplet.search import storage
    from tuplet.search.indexing import index_pictures

    embed, batches = PictureEmbedder.embed, []

    def embedding(self: PictureEmbedder, pixels: Any) -> Any:
        batches.append(len(pixels))
        if moment == "embedding" and sum(batches) == 8:
            os.kill(os.getpid(), signal.SIGKILL)
        return embed(self, pixels)

    def copying(uri: str, rows: pyarrow.RecordBatchReader, name: str = storage.TABLE) -> Any:
        def four() -> Any:
            yield rows.read_next_batch()
            os.kill(os.getpid(), signal.SIGKILL)

        return storage.make_table(uri, pyarrow.RecordBatchReader.from_batches(rows.schema, four()), name)

    with (
        mock.patch("tuplet.search.writing.COMMIT_ROWS", 4),
        mock.patch("tuplet.search.writing._COPIED_AT_ONCE", 4),
        mock.patch("tuplet.search.writing.make_table", copying),
        mock.patch.object(PictureEmbedder, "embed", embedding),
    ):
        index_pictures(uri, [Path(photos)], open_embedder(Path(model)), rebuild=True, batch_size=2)
