from __future__ import annotations

import io
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tuplet.data.decoding import UnreadableImageError, decode_image
from tuplet.data.pixels import image_extensions
from tuplet.errors import DataError

COLOURS = np.array(
    [
        [[255, 0, 0], [0, 255, 0], [0, 0, 255]],
        [[10, 20, 30], [200, 100, 50], [255, 255, 255]],
    ],
    dtype=np.uint8,
)
GREYS = np.array([[0, 7, 128], [200, 254, 255]], dtype=np.uint8)


def pixels_of(path: Path) -> np.ndarray:
    pixels = decode_image(path)
    assert pixels.dtype == torch.uint8
    assert pixels.permute(1, 2, 0).is_contiguous()
    return pixels.permute(1, 2, 0).numpy()


def mode_of(path: Path) -> str:
    with Image.open(path) as image:
        return image.mode


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[:, :, None], 3, axis=2)


def unreadable(source: Path | bytes) -> UnreadableImageError:
    with pytest.raises(UnreadableImageError) as error:
        decode_image(source)
    assert "\n" not in str(error.value)
    return error.value


def saved(folder: Path, image: Image.Image, name: str = "a.png", **options: object) -> Path:
    path = folder / name
    image.save(path, **options)
    return path


def test_rgb_as_it_is_and_grey_in_three_channels(tmp_path: Path) -> None:
    np.testing.assert_array_equal(pixels_of(saved(tmp_path, Image.fromarray(COLOURS))), COLOURS)
    np.testing.assert_array_equal(pixels_of(saved(tmp_path, Image.fromarray(GREYS))), grey(GREYS))


def test_one_bit_is_black_and_white(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.fromarray(GREYS > 100))
    assert mode_of(path) == "1"
    np.testing.assert_array_equal(pixels_of(path), grey(np.where(GREYS > 100, 255, 0)))


def test_palette(tmp_path: Path) -> None:
    image = Image.fromarray(COLOURS).convert("P", palette=Image.Palette.ADAPTIVE, colors=6)
    np.testing.assert_array_equal(pixels_of(saved(tmp_path, image)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("transparency", [2, bytes([255, 255, 0, 255])])
def test_transparent_palette_entry_is_white(tmp_path: Path, transparency: int | bytes) -> None:
    image = Image.frombytes("P", (2, 2), bytes([0, 1, 2, 3]))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    path = saved(tmp_path, image, transparency=transparency)
    wanted = [[[255, 0, 0], [0, 255, 0]], [[255, 255, 255], [9, 9, 9]]]
    np.testing.assert_array_equal(pixels_of(path), wanted)


def test_alpha_is_laid_over_white(tmp_path: Path) -> None:
    rgba = np.array([[[100, 0, 0, 255], [100, 0, 0, 0], [0, 0, 0, 51]]], dtype=np.uint8)
    path = saved(tmp_path, Image.fromarray(rgba))
    np.testing.assert_array_equal(pixels_of(path), [[[100, 0, 0], [255, 255, 255], [204, 204, 204]]])


def test_grey_with_alpha_is_laid_over_white(tmp_path: Path) -> None:
    image = Image.merge("LA", [Image.fromarray(GREYS), Image.new("L", (3, 2), 0)])
    np.testing.assert_array_equal(pixels_of(saved(tmp_path, image)), np.full((2, 3, 3), 255))


def test_transparent_colour_of_an_rgb_png_is_white(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.fromarray(COLOURS), transparency=(255, 0, 0))
    wanted = COLOURS.copy()
    wanted[0, 0] = 255
    np.testing.assert_array_equal(pixels_of(path), wanted)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 257, 255], [32768, 65279, 65535]], dtype=np.uint16)
    path = saved(tmp_path, Image.fromarray(values))
    assert mode_of(path).startswith("I")
    np.testing.assert_array_equal(pixels_of(path), grey(np.array([[0, 1, 1], [128, 254, 255]])))


def test_sixteen_bit_pgm(tmp_path: Path) -> None:
    path = tmp_path / "a.pgm"
    path.write_bytes(b"P5 3 1 65535\n" + np.array([0, 32768, 65535], dtype=">u2").tobytes())
    np.testing.assert_array_equal(pixels_of(path), grey(np.array([[0, 128, 255]])))


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([[0.0, 0.5, 1.0]], [[0, 128, 255]]),
        ([[0.0, 7.0, 255.0]], [[0, 7, 255]]),
        ([[-1.0, 0.0, 1.0]], [[0, 128, 255]]),
        ([[-3.0, -3.0, -3.0]], [[0, 0, 0]]),
    ],
)
def test_float_ranges(tmp_path: Path, values: list[list[float]], wanted: list[list[int]]) -> None:
    path = saved(tmp_path, Image.fromarray(np.array(values, dtype=np.float32)), "a.tif")
    np.testing.assert_array_equal(pixels_of(path), grey(np.array(wanted)))


def test_whole_numbers_beyond_sixteen_bits_are_stretched(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.fromarray(np.array([[0, 100_000, 200_000]], dtype=np.int32)), "a.tif")
    np.testing.assert_array_equal(pixels_of(path), grey(np.array([[0, 128, 255]])))


def test_not_finite_is_unreadable(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.fromarray(np.array([[0.0, np.nan]], dtype=np.float32)), "a.tif")
    assert "not finite" in unreadable(path).reason


def test_cmyk_jpeg_is_not_a_negative(tmp_path: Path) -> None:
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    path = saved(tmp_path, red, "a.jpg", quality=95)
    assert b"Adobe" in path.read_bytes()
    assert np.abs(pixels_of(path).astype(int) - [255, 0, 0]).max() <= 4


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_exif_orientation(tmp_path: Path, orientation: int, name: str) -> None:
    # Where the stored rows and columns lie once upright, as the EXIF standard has it.
    stored_from_upright = {
        1: COLOURS,
        2: COLOURS[:, ::-1],
        3: COLOURS[::-1, ::-1],
        4: COLOURS[::-1],
        5: COLOURS.transpose(1, 0, 2),
        6: COLOURS.transpose(1, 0, 2)[::-1],
        7: COLOURS.transpose(1, 0, 2)[::-1, ::-1],
        8: COLOURS.transpose(1, 0, 2)[:, ::-1],
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(stored_from_upright[orientation])
    path = saved(tmp_path, Image.fromarray(stored), name, exif=exif)
    np.testing.assert_array_equal(pixels_of(path), COLOURS)


def test_broken_exif_leaves_the_image_as_stored(tmp_path: Path) -> None:
    path = saved(
        tmp_path, Image.new("RGB", (8, 8), "red"), "a.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\1"
    )
    assert pixels_of(path).shape == (8, 8, 3)


@pytest.mark.parametrize("size", [(3000, 2000), (1000, 4000), (300, 200), (513, 511)])
@pytest.mark.parametrize("min_side", [64, 256])
def test_draft_keeps_twice_the_short_side(tmp_path: Path, size: tuple[int, int], min_side: int) -> None:
    path = saved(tmp_path, Image.new("RGB", size, "teal"), "a.jpg")
    height, width = decode_image(path, min_side=min_side).shape[1:]
    assert min(height, width) >= min(2 * min_side, *size)
    assert abs(width / height - size[0] / size[1]) < 0.05
    if min(size) >= 4 * min_side:
        assert min(height, width) < min(size)


def test_draft_and_orientation_together(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(tmp_path, Image.new("RGB", (1600, 800), "teal"), "a.jpg", exif=exif)
    assert decode_image(path, min_side=50).shape == (3, 200, 100)


def noise(kind: str) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


JPEG, PNG = noise("JPEG"), noise("PNG")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"just some text\n", "no image of a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image of a known format"),
        (JPEG[:700], "truncated"),
        (JPEG[:20], "cannot read"),
        (PNG[: len(PNG) // 2], "truncated"),
        (PNG[:100] + b"\0" * 50 + PNG[150:], "cannot read"),
        (PNG[:20] + b"\0" * 9 + PNG[29:], "cannot read"),
    ],
)
def test_unreadable_content(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "broken.jpg"
    path.write_bytes(content)
    error = unreadable(path)
    assert isinstance(error, DataError)
    assert (error.path, error.subject) == (path, str(path))
    assert reason in str(error)
    assert error.reason in str(error)


def test_missing_and_folder(tmp_path: Path) -> None:
    reasons = [unreadable(path).reason for path in (tmp_path / "none.png", tmp_path)]
    assert reasons == ["there is no such file", "it is a folder"]


@pytest.mark.parametrize("limit", [10, 60])  # beyond 2 x the limit Pillow raises itself
def test_decompression_bomb(tmp_path: Path, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, Image.new("RGB", (10, 10)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    assert "bomb" in unreadable(path).reason


def test_the_limit_is_on_what_is_decoded_not_on_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = Image.new("RGB", (120, 100), (200, 30, 60))
    large.save(tmp_path / "large.jpg", quality=95)
    large.save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    assert decode_image(tmp_path / "large.jpg", min_side=10).shape == (3, 25, 30)
    for file in ("large.jpg", "large.png"):
        assert "12,000 pixels" in unreadable(tmp_path / file).reason
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5_000)
    with pytest.raises(UnreadableImageError):
        decode_image(tmp_path / "large.jpg", min_side=10)


def test_threads_leave_the_warning_filters_alone(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.fromarray(COLOURS))
    before = list(warnings.filters)
    threads = [threading.Thread(target=lambda: [decode_image(path) for _ in range(20)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert warnings.filters == before


def test_extensions() -> None:
    assert {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".pgm"} <= image_extensions()
    assert not {".eps", ".pdf", ".txt", ".mpg", ".hdf"} & image_extensions()


def test_bytes_in_place_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    Image.fromarray(np.arange(60, dtype=np.uint8).reshape(4, 5, 3)).save(file)
    assert torch.equal(decode_image(file.read_bytes()), decode_image(file))
    assert unreadable(b"").path is None
