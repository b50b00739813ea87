"""Resizing without PyTorch gives the pixels of PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tuplet.config import DataConfig
from tuplet.data.resizing import EvalSquare, resize
from tuplet.data.transforms import eval_transform

exact = pytest.mark.skipif(
    "AVX2" not in torch.backends.cpu.get_cpu_capability()
    and "AVX512" not in torch.backends.cpu.get_cpu_capability(),
    reason="PyTorch resizes with floats where the processor has no AVX2",
)


@exact
@pytest.mark.parametrize("augmentation", ["crop-flip", "none"])
def test_squares_are_those_of_torchvision(augmentation: str) -> None:
    random = np.random.default_rng(0)
    for trial in range(150):
        height, width = random.integers(8, 600, 2)
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        if trial % 3 == 0:  # black and white only, where sums are largest
            pixels = (pixels // 128 * 255).astype(np.uint8)
        config = DataConfig(image_size=int(random.integers(8, 130)), augmentation=augmentation)  # type: ignore[arg-type]
        wanted = eval_transform(config)(torch.from_numpy(pixels).permute(2, 0, 1)).numpy()
        np.testing.assert_array_equal(
            EvalSquare.of(config)(pixels), wanted, err_msg=f"{pixels.shape} {config}"
        )


@exact
@pytest.mark.parametrize("size", [(1, 1), (64, 3), (3000, 2), (40, 40), (97, 3), (2, 101), (96, 3)])
@pytest.mark.parametrize("augmentation", ["crop-flip", "none"])
def test_extreme_shapes(size: tuple[int, int], augmentation: str) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    config = DataConfig(image_size=40, augmentation=augmentation)  # type: ignore[arg-type]
    wanted = eval_transform(config)(torch.from_numpy(pixels).permute(2, 0, 1)).numpy()
    np.testing.assert_array_equal(EvalSquare.of(config)(pixels), wanted)


@pytest.mark.parametrize("shape", [(1, 2_000_000, 3), (2_000_000, 1, 3)])
def test_a_strip_takes_no_memory_for_its_ends(shape: tuple[int, int, int]) -> None:
    # With its ends, the short side of 256 would make it 256 x 512,000,000 pixels.
    pixels = np.zeros(shape, dtype=np.uint8)
    config = DataConfig(image_size=224)
    assert EvalSquare.of(config)(pixels).shape == (3, 224, 224)
    assert eval_transform(config)(torch.from_numpy(pixels).permute(2, 0, 1)).shape == (3, 224, 224)


def test_white_stays_white_and_a_crop_is_the_centre_of_the_whole() -> None:
    white = np.full((37, 53, 3), 255, dtype=np.uint8)
    assert (resize(white, (11, 13)) == 255).all()
    pixels = np.random.default_rng(2).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    whole = resize(pixels, (30, 27))
    np.testing.assert_array_equal(resize(pixels, (30, 27), crop=20), whole[5:25, 4:24])
