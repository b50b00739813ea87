"""An uploaded picture: its bytes, limited and never on the disk, and the pixels in them."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass

import numpy as np
from fastapi import HTTPException, Request
from jaxtyping import UInt8
from PIL.TiffImagePlugin import TILELENGTH, TILEWIDTH, TiffImageFile
from starlette.requests import ClientDisconnect

from tuplet.data.pixels import UnreadableImageError, choose_scale, decode_pixels, open_image

_TYPES = ("image/", "application/octet-stream", "application/x-www-form-urlencoded")
"""Content types of a picture; the last is curl's default. The bytes alone decide what it is."""
_REFUSED = "JPEG2000"
"""Pillow blocks the whole process while it decodes one: for seconds, where it is large."""
_HOW = "want the bytes of one picture as the body, such as curl --data-binary @oak.jpg"


async def read_upload(request: Request, *, most_bytes: int, seconds: float) -> bytes:
    """Read the body of a request into memory.

    Args:
        request: its body has not been read.
        most_bytes: of the body; counted as it arrives, whatever its headers say.
        seconds: in which all of it must have arrived.

    Raises:
        HTTPException: 400 without a whole body, 408 too slow, 413 too long, 415 not declared as a picture.
    """
    kind = request.headers.get("content-type", _TYPES[0]).lower().strip()
    if not kind.startswith(_TYPES):
        raise HTTPException(415, f"the body is declared as {kind[:60]!r}; {_HOW}")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise HTTPException(415, f"the body is compressed; {_HOW}")
    if "content-range" in request.headers:
        raise HTTPException(400, f"the body is a part of a file, as Content-Range says; {_HOW}")
    too_long = HTTPException(
        413, f"the picture has more than {most_bytes:,} bytes; want fewer (tuplet serve --max-upload-mb)"
    )
    said = request.headers.get("content-length", "0")
    if said.isdecimal() and int(said[:20]) > most_bytes:
        raise too_long
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                body += part
                if len(body) > most_bytes:
                    raise too_long
    except TimeoutError:
        late = f"the picture took more than {seconds:g} s to arrive; want it faster, or smaller"
        raise HTTPException(408, late, {"connection": "close"}) from None
    except ClientDisconnect:
        raise HTTPException(400, "the connection was closed before the picture had arrived") from None
    if not body:
        raise HTTPException(400, f"the body is empty; {_HOW}")
    return bytes(body)


def decode_upload(content: bytes, *, min_side: int, most_pixels: int) -> UInt8[np.ndarray, "H W 3"]:
    """Return the RGB pixels of an uploaded file, as `decode_pixels` does.

    Args:
        content: of the file.
        min_side: see `decode_pixels`.
        most_pixels: that may have to be decoded, see `DecodingWork`.

    Raises:
        HTTPException: 415 a format that is refused, 422 no whole picture of a known format, or one that takes
            too much to decode.
    """
    wanted = "want a whole JPEG, PNG or other image file"
    if _num_parts(content) > MOST_PARTS:
        raise HTTPException(
            422,
            f"the picture is a JPEG or PNG of more than {MOST_PARTS:,} segments or chunks; want a usual one",
        )
    try:
        work = decoding_work(content, min_side=min_side)
    except Exception:  # corrupt bytes make Pillow raise nearly anything
        raise HTTPException(422, f"the picture cannot be read: its header is broken; {wanted}") from None
    if work is not None and work.kind == _REFUSED:
        detail = "the picture is a JPEG 2000, which can be indexed but takes too long to decode here"
        raise HTTPException(415, f"{detail}; want JPEG, PNG, WebP, AVIF, GIF, TIFF, BMP or PPM")
    if work is not None and work.pixels > most_pixels:
        raise HTTPException(
            422,
            f"the picture, {work.width:,} x {work.height:,} pixels, has {work.pixels:,} to be decoded; want"
            f" at most {most_pixels:,} (tuplet serve --max-upload-megapixels {most_pixels / 1e6:g}):"
            " a smaller one, or a JPEG that is not progressive",
        )
    if work is not None and work.scans > MOST_SCANS:
        raise HTTPException(422, f"the picture is a JPEG of more than {MOST_SCANS} scans; want a usual one")
    try:
        return decode_pixels(content, min_side=min_side)
    except UnreadableImageError as error:
        raise HTTPException(422, f"the picture cannot be read: {error.reason}; {wanted}") from None


MOST_SCANS = 100
"""Of a JPEG; each goes over the whole picture again, however few bytes it has. Ten are usual."""

MOST_PARTS = 50_000
"""Segments of a JPEG before its first scan, or chunks of a PNG. Pillow reads each in Python and keeps many of
them, so that empty ones cost far more time and memory than the picture. A usual file has a few thousand."""

_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd9\xff]|\xff\xd9")  # without those that have no length
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_SEQUENTIAL = frozenset({0xC0, 0xC1})
_SCAN, _END = 0xDA, 0xD9


@dataclass(frozen=True)
class DecodingWork:
    """What it takes to decode a picture.

    Attributes:
        kind: Pillow's name of the format, such as JPEG.
        width: of the picture, pixels.
        height: likewise.
        pixels: that the decoder makes or holds at the same time; fewer than the picture has where a JPEG is
            decoded at a smaller scale.
        scans: how often it goes over all of them, counted to `MOST_SCANS` + 1.
    """

    kind: str
    width: int
    height: int
    pixels: int
    scans: int


def decoding_work(content: bytes, *, min_side: int) -> DecodingWork | None:
    """Return what it takes to decode a picture, from its header; None where it is none.

    A broken header may raise any exception.
    """
    try:
        opened = open_image(content)
    except Exception:  # corrupt bytes make Pillow raise nearly anything
        return None
    with opened as image:
        width, height = image.size
        pixels, scans = width * height, 1
        if isinstance(image, TiffImageFile):
            across, down = (int(image.tag_v2.get(tag, 0)) for tag in (TILEWIDTH, TILELENGTH))
            pixels = max(pixels, across * down)  # a tile is decoded whole, however little of it is needed
        elif image.format in ("JPEG", "MPO"):
            scans = _num_scans(content)
            if scans == 1:  # with several, every coefficient is held until the last, at any scale
                choose_scale(image, min_side)
                pixels = image.width * image.height
        return DecodingWork(image.format or "", width, height, pixels, scans)


def _num_parts(content: bytes) -> int:
    """Count the segments of a JPEG before its first scan, or the chunks of a PNG, to `MOST_PARTS` + 1."""
    parts = 0
    if content.startswith(b"\xff\xd8\xff"):
        place = 2
        while parts <= MOST_PARTS and (found := _MARKER.search(content, place)):
            if content[found.end() - 1] in (_SCAN, _END):
                break
            parts += 1
            place = found.end() + max(int.from_bytes(content[found.end() : found.end() + 2]), 2)
    elif content.startswith(b"\x89PNG\r\n\x1a\n"):
        place = 8
        while parts <= MOST_PARTS and place < len(content):
            parts += 1
            num_bytes = int.from_bytes(content[place : place + 4])
            place += num_bytes + 12  # 4 each for length, name and checksum
    return parts


def _num_scans(jpeg: bytes) -> int:
    """Count the scans of a JPEG to `MOST_SCANS` + 1: 1 where the first has everything, else 2 or more."""
    place, scans, components, sequential = 2, 0, 0, False
    while scans <= MOST_SCANS and (found := _MARKER.search(jpeg, place)):
        marker, segment = jpeg[found.end() - 1], jpeg[found.end() : found.end() + 10]
        if marker == _END or len(segment) < 8:
            break
        place = found.end() + max(int.from_bytes(segment[:2]), 2)
        if marker in _FRAMES:
            sequential, components = marker in _SEQUENTIAL, segment[7]
        elif marker == _SCAN:
            scans += 1
            if sequential and segment[2] == components:
                return 1
    return max(scans, 2)
