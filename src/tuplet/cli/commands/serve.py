"""tuplet serve: a page and an API that find what looks like a picture."""

from __future__ import annotations

import os
import socket
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from tuplet.cli.arguments import parse
from tuplet.cli.commands.base_config import require_extra
from tuplet.cli.commands.index import Accelerator, printable
from tuplet.errors import InputError

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from tuplet.serve.access import Access


USAGE = """\
usage: tuplet serve DIR [--port 8000]

Serves the index DIR: a page to search it by pictures, and the same for programs (docs/serve.md). Only this
machine can reach it, unless --host says otherwise; then a token is needed, from --token-file or from the
environment variable TUPLET_TOKEN.

  --port 8000             0: any free one
  --host 0.0.0.0          let other machines reach it
  --token-file FILE       whose first line is the token that every request has to bring
  --model FOLDER          where the index's model lies now
  --accelerator cpu       where it computes: auto, cpu, cuda or mps
  --max-upload-mb 20      largest picture that may be sent
  --max-upload-megapixels 25
                          of it that may have to be decoded: of a large photograph as JPEG a small part
  --queue 32              pictures that are looked up at the same time; more are asked to come back
  --batch-size 16         of these, the most that the model sees at a time

Ctrl-C ends it."""

TOKEN_VARIABLE = "TUPLET_TOKEN"


@dataclass(frozen=True)
class ServeArguments:
    """Serve an index."""

    index: tyro.conf.Positional[str | None] = None
    """A folder, or s3://bucket/path."""
    host: str = "127.0.0.1"
    """Name or address to listen on."""
    port: int = 8000
    """Port to listen on; 0: any free one."""
    token_file: Path | None = None
    """File whose first line is the token."""
    model: Path | None = None
    """Where the index's model lies now; None: where it lay."""
    accelerator: Accelerator = "auto"
    """Where the model computes."""
    max_upload_mb: float = 20.0
    """Largest picture that may be sent, megabytes, > 0."""
    max_upload_megapixels: float = 25.0
    """Millions of pixels that may have to be decoded, > 0; of a usual JPEG only those at the scale that is
    needed."""
    queue: int = 32
    """Pictures that are looked up at the same time, >= 1."""
    batch_size: int = 16
    """Pictures that the model sees at a time, >= 1."""


def serve(arguments: list[str]) -> None:
    """Serve an index until the process is interrupted or asked to end."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return
    chosen = parse(ServeArguments, ServeArguments(), arguments, "tuplet serve")
    if chosen.index is None:
        raise InputError("DIR is missing; want tuplet serve DIR")
    for name, value, least, most in (
        ("port", chosen.port, 0, 65_535),
        ("queue", chosen.queue, 1, 1_000),
        ("batch-size", chosen.batch_size, 1, 1_000),
        ("max-upload-mb", chosen.max_upload_mb, 0.001, 1_000),
        ("max-upload-megapixels", chosen.max_upload_megapixels, 0.001, 89),
    ):
        if not least <= value <= most:
            raise InputError(f"--{name} is {value}; want {least} to {most:,}")
    require_extra("search", "lancedb", "fastapi", "uvicorn", "prometheus_client")
    from tuplet.serve.access import Access
    from tuplet.serve.server import ConnectionLimits, listen, listens_on_loopback
    from tuplet.serve.server import serve as serve_on

    token = _token(chosen.token_file)
    with listen(chosen.host, chosen.port) as listener:
        access = Access(token, listens_on_loopback(listener))
        app, said = _prepared(chosen, access)
        print(f"{said}\n  open    {_address(listener)}\n  stop    Ctrl-C", flush=True)
        if token is not None:
            print(
                "  token   asked for once by the page; programs send Authorization: Bearer TOKEN", flush=True
            )
        serve_on(app, listener, ConnectionLimits())
    print("stopped", flush=True)


def _address(listener: socket.socket) -> str:
    """Where a browser finds the server."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def _token(file: Path | None) -> str | None:
    """The token from a file or the environment; None where there is none."""
    if file is None:
        return os.environ.get(TOKEN_VARIABLE, "").strip() or None
    try:
        lines = file.read_text().splitlines()
        mode = file.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise InputError(f"cannot read the token in {file} ({reason}); want a file of one line") from None
    if os.name == "posix" and mode & (stat.S_IRGRP | stat.S_IROTH):
        print(f"note: others on this machine can read {file}; want chmod 600", file=sys.stderr)
    return lines[0].strip() if lines else ""


def _prepared(chosen: ServeArguments, access: Access) -> tuple[ASGIApp, str]:
    """What is served, and a line that says what it is."""
    from tuplet.errors import counted
    from tuplet.inference.encoder import PictureEmbedder
    from tuplet.search.index import ImageIndex
    from tuplet.serve.app import build_service
    from tuplet.serve.service import SearchService, ServiceSettings

    assert chosen.index is not None
    index = ImageIndex(chosen.index)
    embedder = PictureEmbedder.of_index(index.model, folder=chosen.model, accelerator=chosen.accelerator)
    settings = ServiceSettings(
        most_upload_bytes=round(1e6 * chosen.max_upload_mb),
        most_upload_pixels=round(1e6 * chosen.max_upload_megapixels),
        queue=chosen.queue,
        batch_size=chosen.batch_size,
    )
    service = SearchService(index, embedder, settings)
    held = service.collection
    pictures, labels = counted(held.rows, "picture"), counted(len(held.labels), "label")
    said = f"tuplet serves {printable(chosen.index)}: {pictures}, {labels}"
    return build_service(service, access), said
