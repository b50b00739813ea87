from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from fastapi import HTTPException
from live_server import saved
from PIL import Image

from tuplet.data.pixels import decode_pixels
from tuplet.serve.uploads import MOST_PARTS, MOST_SCANS, decode_upload, decoding_work

SIDE = 50
NUM_PIXELS = 400 * 300


def picture(kind: str, mode: str = "RGB", size: tuple[int, int] = (400, 300), **options: object) -> bytes:
    """A file of a smooth picture."""
    across, down = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    pixels = np.stack([across, down, (across + down) / 2], axis=2).astype(np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    image.save(file := io.BytesIO(), kind, **options)
    return file.getvalue()


def more_scans(progressive: bytes, times: int) -> bytes:
    """The same JPEG with its last scan, and the table before it, so many times more."""
    table = progressive.rindex(b"\xff\xc4", 0, progressive.rindex(b"\xff\xda"))
    return progressive[:-2] + progressive[table:-2] * times + progressive[-2:]


def tiled_tiff(side: int, tile: int) -> bytes:
    """A grey TIFF, compressed, whose only tile is larger than the picture."""
    body = zlib.compress(bytes(tile * tile))
    fields = [(256, side), (257, side), (258, 8), (259, 8), (262, 1), (277, 1), (322, tile), (323, tile)]
    fields += [(324, 8 + 2 + 12 * 10 + 4), (325, len(body))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in fields)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(fields)) + entries + bytes(4) + body


def with_thumbnail(jpeg: bytes) -> bytes:
    """A JPEG that has another one, of a scan of its own, in its EXIF, as those of cameras have."""
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0" + saved("JPEG")
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]


GREY16 = Image.fromarray(np.arange(NUM_PIXELS, dtype=np.uint16).reshape(300, 400))
GREY16.save(DEEP := io.BytesIO(), "PNG")
OTHERS = [Image.new("RGB", (400, 300), colour) for colour in ("red", "blue")]
HALF = 200 * 150
FILES = {
    "PNG": (picture("PNG"), NUM_PIXELS),
    "PNG of a palette with transparency": (picture("PNG", "P", transparency=7), NUM_PIXELS),
    "PNG of 16 bits": (DEEP.getvalue(), NUM_PIXELS),
    "PNG with transparency": (picture("PNG", "RGBA"), NUM_PIXELS),
    "animated GIF": (picture("GIF", save_all=True, append_images=OTHERS), NUM_PIXELS),
    "animated PNG": (picture("PNG", save_all=True, append_images=OTHERS), NUM_PIXELS),
    "animated WebP": (picture("WEBP", save_all=True, append_images=OTHERS), NUM_PIXELS),
    "TIFF of pages": (picture("TIFF", save_all=True, append_images=OTHERS), NUM_PIXELS),
    "TIFF of floats": (picture("TIFF", "F"), NUM_PIXELS),
    "TIFF with a large tile": (tiled_tiff(100, 512), 512 * 512),
    "JPEG": (picture("JPEG"), HALF),
    "grey JPEG": (picture("JPEG", "L"), HALF),
    "CMYK JPEG": (picture("JPEG", "CMYK"), HALF),
    "JPEG with restarts": (picture("JPEG", restart_marker_rows=1), HALF),
    "JPEG with a thumbnail": (with_thumbnail(picture("JPEG")), HALF),
    "JPEG of pictures": (picture("MPO", save_all=True, append_images=OTHERS), HALF),
    "JPEG with another behind it": (picture("JPEG") + picture("JPEG", progressive=True), HALF),
    "progressive JPEG": (picture("JPEG", progressive=True), NUM_PIXELS),
    "progressive grey JPEG": (picture("JPEG", "L", progressive=True), NUM_PIXELS),
    "narrow JPEG, of which everything is needed": (picture("JPEG", size=(1000, 90)), 1000 * 90),
}


@pytest.mark.parametrize("name", FILES)
def test_what_has_to_be_decoded_may_be_as_much_as_allowed(name: str) -> None:
    content, pixels = FILES[name]
    decoded = decode_upload(content, min_side=SIDE, most_pixels=pixels)
    wanted = decode_pixels(content, min_side=SIDE)
    assert np.array_equal(decoded, wanted)
    with pytest.raises(HTTPException) as refused:
        decode_upload(content, min_side=SIDE, most_pixels=pixels - 1)
    assert refused.value.status_code == 422
    with Image.open(io.BytesIO(content)) as image:
        size = f"the picture, {image.width:,} x {image.height:,} pixels, has {pixels:,} to be decoded"
    assert size in refused.value.detail
    most = f"want at most {pixels - 1:,} (tuplet serve --max-upload-megapixels {(pixels - 1) / 1e6:g})"
    assert most in refused.value.detail
    if pixels == HALF:
        assert wanted.shape == (150, 200, 3)


def test_scans_are_counted_wherever_they_are() -> None:
    plain = picture("JPEG", progressive=True)
    counted = [one for place in range(len(plain)) if (one := plain[place : place + 2]) == b"\xff\xda"]
    for times in (0, 3, MOST_SCANS - len(counted)):
        work = decoding_work(with_thumbnail(more_scans(plain, times)), min_side=SIDE)
        assert work is not None
        assert work.scans == len(counted) + times
    many = more_scans(plain, MOST_SCANS - len(counted))
    assert decode_upload(many, min_side=SIDE, most_pixels=NUM_PIXELS).shape == (150, 200, 3)
    for times in (MOST_SCANS - len(counted) + 1, 5000):
        hidden = b"\xff\xfe\x00\x04\xff\xd9"  # a comment that looks like the end
        more = more_scans(plain, times)
        for content in (more, more.replace(b"\xff\xda", hidden + b"\xff\xda")):
            with pytest.raises(HTTPException) as refused:
                decode_upload(content, min_side=SIDE, most_pixels=NUM_PIXELS)
            assert "a JPEG of more than 100 scans" in refused.value.detail


def test_a_broken_header_is_refused() -> None:
    tiff = tiled_tiff(100, 512)
    fraction = struct.pack("<HHII", 322, 5, 1, 100)  # a width of a tile that is a fraction, of zeros
    broken = tiff.replace(struct.pack("<HHII", 322, 4, 1, 512), fraction)
    with pytest.raises(HTTPException) as refused:
        decode_upload(broken, min_side=SIDE, most_pixels=NUM_PIXELS)
    assert refused.value.status_code == 422
    assert decoding_work(b"no picture", min_side=SIDE) is None


SEGMENT = b"\xff\xfe\x00\x02"
CHUNK = struct.pack(">I", 0) + b"prVt" + struct.pack(">I", zlib.crc32(b"prVt"))


@pytest.mark.parametrize(("kind", "start", "part"), [("JPEG", 2, SEGMENT), ("PNG", 33, CHUNK)])
def test_parts_that_would_take_long_to_read_are_counted_first(kind: str, start: int, part: bytes) -> None:
    content = picture(kind)
    usual = content[:start] + part * 500 + content[start:]
    decode_upload(usual, min_side=SIDE, most_pixels=NUM_PIXELS)
    for place in (start,) if kind == "JPEG" else (start, len(content) - 12):
        many = content[:place] + part * (MOST_PARTS + 1) + content[place:]
        with pytest.raises(HTTPException) as refused:
            decode_upload(many, min_side=SIDE, most_pixels=NUM_PIXELS)
        assert (refused.value.status_code, "segments or chunks" in refused.value.detail) == (422, True)
