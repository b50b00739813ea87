"""`tuplet serve`: a page and an API that find what looks like a picture."""

from __future__ import annotations

import os
import socket
import stat
import sys
from dataclasses import replace
from pathlib import Path

from starlette.types import ASGIApp

from tuplet.cli.console import printable
from tuplet.cli.measure_tables import usable_calibration
from tuplet.cli.options import ServeArguments
from tuplet.errors import SettingsError, counted
from tuplet.inference.engines import encoder_of_index
from tuplet.search.index import ImageIndex
from tuplet.serve.access import Access
from tuplet.serve.app import build_service
from tuplet.serve.server import ConnectionLimits, listen, listens_on_loopback
from tuplet.serve.server import serve as serve_on
from tuplet.serve.service import SearchService, ServiceSettings

_TOKEN_VARIABLE = "TUPLET_TOKEN"


def serve(chosen: ServeArguments) -> None:
    """Serve an index until the process is interrupted or terminated."""
    token = _token(chosen.token_file)
    with listen(chosen.host, chosen.port) as listener:
        access = Access(token, listens_on_loopback(listener))
        app, line = _prepared(chosen, access)
        print(f"{line}\n  open    {_address(listener)}\n  stop    Ctrl-C", flush=True)
        if token is not None:
            print(
                "  token   asked for once by the page; programs send Authorization: Bearer TOKEN", flush=True
            )
        serve_on(app, listener, ConnectionLimits())
    print("stopped", flush=True)


def _address(listener: socket.socket) -> str:
    """Return the address for a browser."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def _token(file: Path | None) -> str | None:
    """Return the token from a file or the environment; None if there is none."""
    if file is None:
        return os.environ.get(_TOKEN_VARIABLE, "").strip() or None
    try:
        lines = file.read_text().splitlines()
        mode = file.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise SettingsError(
            f"cannot read the token in {file} ({reason}); want a file of one line", subject=file
        ) from None
    if os.name == "posix" and mode & (stat.S_IRGRP | stat.S_IROTH):
        print(f"note: others on this machine can read {file}; use chmod 600", file=sys.stderr)
    return lines[0].strip() if lines else ""


def _prepared(chosen: ServeArguments, access: Access) -> tuple[ASGIApp, str]:
    """Return the application, and a line about what it serves."""
    index = ImageIndex(chosen.index)
    embedder = encoder_of_index(
        index.model, folder=chosen.model, accelerator=chosen.accelerator, engine=chosen.engine
    )
    settings = ServiceSettings(
        most_upload_bytes=round(1e6 * chosen.max_upload_mb),
        most_upload_pixels=round(1e6 * chosen.max_upload_megapixels),
        queue=chosen.queue,
        batch_size=chosen.batch_size,
    )
    calibration = usable_calibration(replace(index.model, path=embedder.model.path))
    service = SearchService(index, embedder, settings, calibration)
    held = service.collection
    pictures, labels = counted(held.rows, "picture"), counted(len(held.labels), "label")
    line = f"tuplet serves {printable(chosen.index)}: {pictures}, {labels}"
    return build_service(service, access), line
