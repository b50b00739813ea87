"""A picture that was sent: its bytes, bounded and never on the disk, and the pixels in them."""

from __future__ import annotations

import asyncio

from fastapi import HTTPException, Request
from jaxtyping import UInt8
from starlette.requests import ClientDisconnect
from torch import Tensor

from tuplet.data.images import UnreadableImageError, decode_image
from tuplet.search.picture_headers import MOST_SCANS, decoding_work

_TYPES = ("image/", "application/octet-stream", "application/x-www-form-urlencoded")
"""What a picture may be called; the last is what curl calls everything. What it is, its bytes say."""
_NOT_TAKEN = "JPEG2000"
"""Pillow lets nothing else in the process run while it decodes one: for seconds, where it is large."""
_HOW = "want the bytes of one picture as the body, such as curl --data-binary @oak.jpg"


async def read_upload(request: Request, *, most_bytes: int, seconds: float) -> bytes:
    """The body of a request, held in memory.

    Args:
        request: whose body nobody has read yet.
        most_bytes: of the body; counted as it comes, whatever the request says of it.
        seconds: in which all of it must have come.

    Raises:
        HTTPException: 400 without a body, 408 too slow, 413 too long, 415 not said to be a picture.
    """
    kind = request.headers.get("content-type", _TYPES[0]).lower().strip()
    if not kind.startswith(_TYPES):
        raise HTTPException(415, f"the body is said to be {kind[:60]!r}; {_HOW}")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise HTTPException(415, f"the body is compressed; {_HOW}")
    too_long = HTTPException(413, f"the picture has too many bytes; want at most {most_bytes:,}")
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


def decode_upload(content: bytes, *, min_side: int, most_pixels: int) -> UInt8[Tensor, "3 H W"]:
    """RGB pixels of a picture that was sent, as `decode_image` has them.

    Args:
        content: of the file.
        min_side: see `decode_image`.
        most_pixels: that may have to be decoded, see `DecodingWork`.

    Raises:
        HTTPException: 415 a format that is not taken, 422 no whole picture of a known format, or one that
            takes too much to decode.
    """
    wanted = "want a whole JPEG, PNG or other image file"
    try:
        work = decoding_work(content, min_side=min_side)
    except Exception:  # corrupt bytes make Pillow raise nearly anything
        raise HTTPException(422, f"the picture cannot be read: its header is broken; {wanted}") from None
    if work is not None and work.kind == _NOT_TAKEN:
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
        return decode_image(content, min_side=min_side)
    except UnreadableImageError as error:
        raise HTTPException(422, f"the picture cannot be read: {error.reason}; {wanted}") from None
