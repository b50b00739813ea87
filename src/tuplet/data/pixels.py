"""Decode image files to RGB pixels, with Pillow and NumPy alone."""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO, final

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageFile, UnidentifiedImageError

from tuplet.errors import DataError, one_line

# Formats of pixels only: Pillow also opens EPS, for which it starts Ghostscript on the content of the file.
_FORMATS = frozenset({"AVIF", "BMP", "GIF", "HEIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP"})
HEIC_EXTENSIONS = frozenset({".heic", ".heics", ".heif", ".heifs", ".hif"})
"""Ends of the names of the images that iPhones take, which only pillow-heif reads."""
_HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
"""What follows "ftyp" in bytes 8 to 12 of such a file."""
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_filters_lock = threading.Lock()


@final
class UnreadableImageError(DataError):
    """A file that should be an image and cannot be decoded.

    Attributes:
        path: the file; None where a DataLoader's worker met it, which sends only the message.
        reason: what is wrong with it; empty likewise.
    """

    one_rank_only = True

    def __init__(self, message: str, path: Path | None = None, reason: str = "") -> None:
        # DataLoader rebuilds a worker's exception from its whole traceback, whose last line is the message.
        line = message.strip().split("\n")[-1].removeprefix(f"{__name__}.UnreadableImageError: ")
        super().__init__(line, subject=path or "")
        self.path, self.reason = path, reason


@cache
def image_extensions() -> frozenset[str]:
    """Return the ends of the names of files that `decode_pixels` reads, lower case, with the dot."""
    _formats()
    return frozenset(end for end, kind in Image.registered_extensions().items() if kind in _FORMATS)


def decode_pixels(
    source: Path | bytes | Image.Image, *, min_side: int | None = None
) -> UInt8[np.ndarray, "H W 3"]:
    """Decode an image file, or its bytes, to RGB pixels, upright as its EXIF orientation says.

    Transparency is laid over white. 16 bits become 8 by scaling. Float pixels count from 0 to 1 or, where
    they exceed 1, from 0 to 255; numbers beyond that (and beyond 16 bits for whole numbers) are stretched
    from the least to the greatest. Of an animation or a file of several pages the first image is read.

    Args:
        source: an image file, what is in one, or an image that Pillow opened. An open JPEG that is not loaded
            yet is read from its file and stays as it is; of an animation the frame that is set is read.
        min_side: where given, pixels, >= 1: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, as long as
            its short side keeps twice that many pixels. Saves most of the time that large photographs take.

    Raises:
        UnreadableImageError: the file is missing, empty, truncated, corrupt, no image, or more than
            `PIL.Image.MAX_IMAGE_PIXELS` would have to be decoded.
    """
    try:
        if isinstance(source, Image.Image) and source.format == "JPEG" and getattr(source, "tile", None):
            source = _file_content(source)
        given = isinstance(source, Image.Image)
        with nullcontext(source) if isinstance(source, Image.Image) else open_image(source) as image:
            if not given:
                choose_scale(image, min_side)
            _require_size(image)
            image.load()
            with _own_filters():
                # After load: a PNG may hold its EXIF behind the pixels, a TIFF is turned by load itself.
                orientation = _orientation(image)
            upright = image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image
            return _rgb(upright)
    except MemoryError:
        raise
    except Exception as error:  # corrupt bytes make Pillow raise nearly anything
        reason = _reason(error, source)
        path = source if isinstance(source, Path) else None
        raise UnreadableImageError(
            f"cannot read image {path or 'in memory'}: {reason}; want a whole JPEG, PNG or other image file."
            " Replace or remove it, or leave such files out with data.on_bad_image=skip",
            path,
            reason,
        ) from error


def open_image(source: Path | bytes | BinaryIO) -> Image.Image:
    """Open an image of a format that `decode_pixels` reads, without decoding it yet.

    Args:
        source: an image file, what is in one, or one that is open and stays so.

    Raises:
        Exception: of whatever kind; it is no such image, or beyond twice `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    with _own_filters():
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        return Image.open(file, formats=_formats())


def choose_scale(image: Image.Image, min_side: int | None) -> None:
    """Have a JPEG decoded at the size that `decode_pixels` wants it at.

    Args:
        image: as `open_image` returns it.
        min_side: see `decode_pixels`.
    """
    if min_side is not None:
        image.draft(None, (2 * min_side, 2 * min_side))


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    with suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()
    return tuple(sorted(_FORMATS & Image.OPEN.keys()))


@contextmanager
def _own_filters() -> Iterator[None]:
    # The filters are global to the process: two threads that restore them in turn would leave ours behind.
    with _filters_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _require_size(image: Image.Image) -> None:
    # Pillow warns of the size that a file claims; what matters is how much of it will be decoded.
    most, pixels = Image.MAX_IMAGE_PIXELS, image.width * image.height
    if most is not None and pixels > most:
        raise Image.DecompressionBombError(
            f"it may be a decompression bomb: it has {pixels:,} pixels, and {most:,} is the most to decode"
        )


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # broken EXIF beside sound pixels: every viewer shows the image as it is stored
        return 1


def _rgb(image: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
    if image.mode == "F" or image.mode.startswith("I"):
        grey = _eight_bits(np.asarray(image))
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        over = image.convert("RGBA")
        white = Image.new("RGBA", over.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, over)
    return np.array(image.convert("RGB"))


def _eight_bits(values: np.ndarray) -> UInt8[np.ndarray, "H W"]:
    if not np.isfinite(values).all():
        raise ValueError("it holds values that are not finite")
    least, greatest = float(values.min()), float(values.max())
    full = (1.0 if greatest <= 1.0 else 255.0) if values.dtype.kind == "f" else 65535.0
    low, high = (0.0, full) if least >= 0.0 and greatest <= full else (least, greatest)
    scaled = (values.astype(np.float64) - low) * (255.0 / max(high - low, 1e-300))
    return np.rint(scaled).astype(np.uint8)


def _file_content(image: Image.Image) -> bytes:
    # To decode at another scale would change the size of the image for whoever opened it.
    assert isinstance(image, ImageFile.ImageFile)
    if image.fp is None:
        raise ValueError("it was closed before it was loaded")
    image.fp.seek(0)
    return image.fp.read()


def _reason(error: Exception, source: Path | bytes | Image.Image) -> str:
    if isinstance(error, OSError) and isinstance(source, Path):
        if isinstance(error, FileNotFoundError):
            return "there is no such file"
        if source.is_dir():
            return "it is a folder"
        if source.stat().st_size == 0:
            return "the file is empty"
    if isinstance(error, UnidentifiedImageError):
        if "HEIF" not in Image.OPEN and _is_heic(source):
            return "it is a HEIC photograph, which needs pip install 'tuplet[heic]'"
        return "its content is no image of a known format"
    return one_line(error, None) or type(error).__name__


def _is_heic(source: Path | bytes | Image.Image) -> bool:
    if isinstance(source, Path):
        with source.open("rb") as file:
            source = file.read(12)
    return isinstance(source, bytes) and source[4:8] == b"ftyp" and source[8:12] in _HEIC_BRANDS
