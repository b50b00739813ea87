"""Bad pictures and parameters, each with its right answer, and the server answers the next as before."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib

import numpy as np
import pytest
from live_server import Server, saved

from tuplet.data.decoding import decode_image
from tuplet.serve import uploads

pytestmark = pytest.mark.usefixtures("answers_afterwards")


def png_of(width: int, height: int, rows: bytes) -> bytes:
    """A PNG that says it has these dimensions, with these compressed rows in it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def zip_behind(picture: bytes) -> bytes:
    file = io.BytesIO(picture)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("evil.html", "<script>alert(1)</script>")
    return file.getvalue()


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(%pipe%id) (r) file\n%%EOF\n"
PICTURES = {
    "bomb": png_of(60_000, 60_000, zlib.compress(bytes(1 << 20))),
    "dimensions without pixels": png_of(5_000, 5_000, zlib.compress(b"")),
    "no pixels at all": png_of(0, 0, b""),
    "truncated JPEG": saved("JPEG")[:-200],
    "truncated PNG": saved("PNG")[:500],
    "JPEG of two bytes": b"\xff\xd8",
    "corrupt PNG": saved("PNG")[:60] + b"\0" * 500 + saved("PNG")[560:],
    "truncated WebP": saved("WEBP")[:100],
    "truncated TIFF": saved("TIFF")[:300],
    "TIFF whose directory is itself": b"II*\0\x08\0\0\0" + b"\xff\xff" + b"\x00" * 64,
    "BMP that lies": b"BM"
    + struct.pack("<IHHIIiiHHIIiiII", 0, 0, 0, 54, 40, 1 << 30, 1 << 30, 1, 24, *([0] * 6)),
    "SVG": SVG,
    "EPS with a command": EPS,
    "PDF": b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n",
    "HTML": b"<!doctype html><script>alert(1)</script>",
    "text": b"hello",
    "zip": zip_behind(b""),
    "zeros": bytes(1000),
    "GIF in HTML": b"<html>GIF89a</html>",
    "GIF head and HTML": b"GIF89a/*<script>alert(1)</script>*/",
    "noise": np.random.default_rng(1).bytes(50_000),
}


@pytest.mark.parametrize("name", PICTURES)
def test_what_is_no_whole_picture(server: Server, name: str) -> None:
    answer = server.post("/search", PICTURES[name], "image/jpeg")
    assert answer.status == 422
    assert answer.detail.startswith("the picture cannot be read: ")
    assert "want a whole JPEG, PNG or other image file" in answer.detail
    if name == "bomb":
        assert "exceeds limit of" in answer.detail
    assert "/" not in answer.detail.replace("and/or", "")  # nothing of the machine's folders


@pytest.mark.parametrize("sides", [(5_001, 5_000), (9_460, 9_460), (13_000, 13_000)])
def test_what_would_take_too_much_is_not_decoded(server: Server, sides: tuple[int, int]) -> None:
    answer = server.post("/search", png_of(*sides, zlib.compress(b"")))
    assert answer.status == 422
    said = f"the picture, {sides[0]:,} x {sides[1]:,} pixels, has {sides[0] * sides[1]:,} to be decoded; want"
    assert answer.detail.startswith(said)
    assert "at most 25,000,000 (tuplet serve --max-upload-megapixels 25): a smaller one" in answer.detail


def test_jpeg_2000_is_not_decoded(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("image/jp2", "image/jpeg"):
        with monkeypatch.context() as patched:
            patched.delattr(uploads, "decode_pixels")
            answer = server.post("/search", saved("JPEG2000"), name)
        assert answer.status == 415
        assert answer.detail.startswith("the picture is a JPEG 2000, which can be indexed but takes too long")
        assert answer.detail.endswith("; want JPEG, PNG, WebP, AVIF, GIF, TIFF, BMP or PPM")
    assert decode_image(saved("JPEG2000")).shape == (3, 30, 40)
    for kind in ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "TIFF", "BMP", "PPM"):
        assert server.post("/search", saved(kind)).status == 200, kind


def test_pictures_that_are_something_else_as_well_are_pictures(server: Server) -> None:
    for body in (zip_behind(saved("JPEG")), saved("GIF", comment=b"<script>alert(1)</script>")):
        assert server.post("/search", body).status == 200


@pytest.mark.parametrize(
    ("path", "body", "kind", "status", "detail"),
    [
        ("/search", b"", "image/png", 400, "the body is empty; want the bytes of one picture"),
        ("/search", b"x", "application/json", 415, "the body is declared as 'application/json'"),
        (
            "/search",
            b"x",
            "multipart/form-data; boundary=a",
            415,
            "the body is declared as 'multipart/form-data",
        ),
        ("/search", b"x", "text/html", 415, "the body is declared as 'text/html'"),
        ("/search?top=0", b"x", "image/png", 422, "top is '0'; want 1 or more"),
        ("/search?top=-1", b"x", "image/png", 422, "top is '-1'; want 1 or more"),
        ("/search?top=1e9", b"x", "image/png", 422, "top is '1e9'; want a whole number"),
        ("/search?top=1000000000", b"x", "image/png", 422, "top is '1000000000'; want 500 or less"),
        ("/search?top=" + "9" * 5000, b"x", "image/png", 422, "; want a whole number of fewer digits"),
        ("/search?top=many", b"x", "image/png", 422, "top is 'many'; want a whole number"),
        ("/search?top=", b"x", "image/png", 422, "top is ''; want a whole number"),
        ("/search?top=%0a", b"x", "image/png", 422, "want a whole number"),
        ("/search?where=1=1", b"x", "image/png", 422, "where is '1=1'; want only parameters that /docs"),
        ("/search?label=" + "a" * 501, b"x", "image/png", 422, "want 500 characters or fewer"),
        ("/search?path=[z-a]", saved("PNG"), "image/png", 400, "label or path cannot be used"),
        ("/search?path=" + "*a" * 9, saved("PNG"), "image/png", 422, "; the path's pattern has 9 * ("),
    ],
)
def test_bodies_and_parameters(
    server: Server, path: str, body: bytes, kind: str, status: int, detail: str
) -> None:
    answer = server.post(path, body, kind)
    assert answer.status == status
    assert detail in answer.detail


def test_compressed_bodies_are_not_opened(server: Server) -> None:
    answer = server.post("/search", zlib.compress(bytes(1 << 20)), content_encoding="gzip")
    assert (answer.status, "the body is compressed" in answer.detail) == (415, True)
    part = server.post("/search", saved("PNG"), content_range="bytes 0-9/100")
    assert (part.status, "a part of a file" in part.detail) == (400, True)
