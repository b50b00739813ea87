"""What a picture's file says of itself, read before any of its pixels: its kind, and what it takes."""

from __future__ import annotations

import re
from dataclasses import dataclass

from PIL.TiffImagePlugin import TILELENGTH, TILEWIDTH, TiffImageFile

from tuplet.data.images import choose_scale, open_image

MOST_SCANS = 100
"""Of a JPEG; each goes over the whole picture once more, however few bytes it has. Ten are usual."""

_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd9\xff]|\xff\xd9")  # but for those that have no length
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_SEQUENTIAL = frozenset({0xC0, 0xC1})
_SCAN, _END = 0xDA, 0xD9


@dataclass(frozen=True)
class DecodingWork:
    """What it takes to decode a picture.

    Attributes:
        kind: of the file, as Pillow calls it, such as JPEG.
        width: of the picture, pixels.
        height: likewise.
        pixels: that the decoder makes or holds at the same time; fewer than the picture has where a JPEG is
            decoded at a smaller scale.
        scans: times that it goes over all of them; at most `MOST_SCANS` + 1, where it may be more.
    """

    kind: str
    width: int
    height: int
    pixels: int
    scans: int


def decoding_work(content: bytes, *, min_side: int) -> DecodingWork | None:
    """What it takes `decode_image` to decode a picture; None where it is none, as that then says.

    Args:
        content: of the file.
        min_side: see `decode_image`.

    Raises:
        Exception: of whatever kind; its header is broken.
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
            if scans == 1:  # of several, every coefficient is held until the last, at whatever scale
                choose_scale(image, min_side)
                pixels = image.width * image.height
        return DecodingWork(image.format or "", width, height, pixels, scans)


def _num_scans(jpeg: bytes) -> int:
    """Scans of a JPEG: 1 where the first has everything, else 2 or more, counted to `MOST_SCANS` + 1."""
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
