from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader

from tuplet.config import DataConfig
from tuplet.data.batches import EvaluationImages, TransformedImages, random_batches
from tuplet.data.decoding import UnreadableImageError
from tuplet.data.image_tables import FileImages
from tuplet.data.transforms import eval_transform, train_transform


def table_of(folder: Path, count: int = 12) -> FileImages:
    rng = np.random.default_rng(1)
    paths = []
    for row in range(count):
        pixels = rng.integers(0, 256, (40 + row, 60 - row, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{row}.png")
        paths.append(str(folder / f"{row}.png"))
    return FileImages(paths, np.arange(count, dtype=np.int64) % 3, ["a", "b", "c"])


@pytest.mark.parametrize("augmentation", ["crop-flip", "affine"])
def test_augmentation_does_not_depend_on_workers(tmp_path: Path, augmentation: str) -> None:
    config = DataConfig(image_size=24, resize=32, augmentation=augmentation)  # type: ignore[arg-type]
    images = TransformedImages(table_of(tmp_path), train_transform(config))
    draws = random_batches(12, batch_size=4, seed=3, epoch=1)
    runs = []
    for num_workers in (0, 2):
        torch.manual_seed(num_workers)
        torch.rand(num_workers)
        loader = DataLoader(images, batch_sampler=draws, num_workers=num_workers)
        runs.append(list(loader))
    for (pixels, labels, rows), other, batch in zip(*runs, draws, strict=True):
        assert torch.equal(pixels, other[0])
        assert pixels.shape == (4, 3, 24, 24)
        assert rows.tolist() == other[2].tolist() == [draw.index for draw in batch]
        assert labels.tolist() == [draw.index % 3 for draw in batch]


def test_draws_differ_and_leave_the_global_generator_alone(tmp_path: Path) -> None:
    config = DataConfig(image_size=24, resize=32)
    images = TransformedImages(table_of(tmp_path), train_transform(config))
    images = pickle.loads(pickle.dumps(images))
    first, second = random_batches(12, batch_size=12, seed=0, epoch=0)[0][:2]
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    one = images[first][0]
    assert torch.equal(torch.rand(3), wanted)
    other = images[first._replace(seed=second.seed)][0]
    assert not torch.equal(one, other)
    assert torch.equal(one, images[first][0])


def test_a_workers_error_stays_one_line(tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    table = FileImages([str(bad)], np.zeros(1, dtype=np.int64), ["a"])
    images = EvaluationImages(table, eval_transform(DataConfig()))
    try:
        images[0]
    except UnreadableImageError:
        # What DataLoader sends from its worker; a real one takes 5 s to shut down after an error.
        sent = pickle.loads(pickle.dumps(ExceptionWrapper(where="in worker 0")))
    with pytest.raises(UnreadableImageError) as caught:
        sent.reraise()
    assert str(caught.value).startswith(f"cannot read image {bad}: ")
    assert "\n" not in str(caught.value)


def test_evaluation_images(tmp_path: Path) -> None:
    images = EvaluationImages(table_of(tmp_path), eval_transform(DataConfig(image_size=24, resize=32)))
    pixels, label, row = images[4]
    assert len(images) == 12
    assert (pixels.shape, label, row) == ((3, 24, 24), 1, 4)


@pytest.mark.parametrize("size", [(3, 50, 80), (3, 10, 12), (3, 24, 24), (3, 1, 40)])
@pytest.mark.parametrize("augmentation", ["crop-flip", "affine", "none"])
def test_transforms_make_squares(size: tuple[int, int, int], augmentation: str) -> None:
    config = DataConfig(image_size=24, resize=30, augmentation=augmentation)  # type: ignore[arg-type]
    pixels = torch.zeros(size, dtype=torch.uint8)
    for transform in (train_transform(config), eval_transform(config)):
        out = transform(pixels)
        assert out.shape == (3, 24, 24)
        assert out.dtype == torch.uint8


def test_evaluation_keeps_the_whole_character() -> None:
    pixels = torch.full((3, 40, 80), 255, dtype=torch.uint8)
    pixels[:, :, :10] = 0
    out = eval_transform(DataConfig(image_size=20, resize=20, augmentation="affine"))(pixels)
    assert (out[:, :, 0] == 0).all()
    centre = eval_transform(DataConfig(image_size=20, resize=20))(pixels)
    assert (centre == 255).all()


def character(paper: int, ink: int) -> Tensor:
    pixels = torch.full((3, 48, 48), paper, dtype=torch.uint8)
    pixels[:, 12:36, 20:28] = ink
    return pixels


@pytest.mark.parametrize(("paper", "ink"), [(255, 0), (0, 255), (230, 40)])
def test_affine_fills_with_paper_and_keeps_the_ink(paper: int, ink: int) -> None:
    transform = train_transform(DataConfig(image_size=48, resize=48, augmentation="affine"))
    torch.manual_seed(0)
    amounts, outs = [], []
    for _ in range(50):
        out = transform(character(paper, ink)).float()
        outs.append(out)
        assert (out[:, 0] == paper).all()
        assert (out[:, :, -1] == paper).all()
        amounts.append(float((out - paper).abs().sum() / (character(paper, ink).float() - paper).abs().sum()))
    # The ink changes with the square of the scale, within 15 %.
    assert 0.70 < min(amounts) < 0.9
    assert 1.1 < max(amounts) < 1.35
    assert not torch.equal(outs[0], outs[1])


def test_affine_angles_and_shifts_are_in_range() -> None:
    transform = train_transform(DataConfig(image_size=64, resize=64, augmentation="affine"))
    pixels = torch.zeros((3, 64, 64), dtype=torch.uint8)
    pixels[:, :, 31:33] = 255
    torch.manual_seed(1)
    across = torch.arange(64) - 31.5
    slopes, shifts = [], []
    for _ in range(100):
        ink = transform(pixels)[0].float()
        middle = [float((ink[row] * across).sum() / ink[row].sum()) for row in (24, 40)]
        slopes.append((middle[0] - middle[1]) / 16)
        shifts.append((middle[0] + middle[1]) / 2)
    # A turn of 15 degrees and a shear of 10 lean at most tan(25) = 0.47; a shift is 6.4 pixels.
    assert 0.25 < max(slopes) < 0.48
    assert -0.48 < min(slopes) < -0.25
    assert 4 < max(map(abs, shifts)) < 9


@pytest.mark.parametrize("augmentation", ["crop-flip", "affine", "none"])
def test_how_pixels_lie_in_memory_changes_nothing(augmentation: str) -> None:
    # Decoded from a file, channels come last; where images are kept decoded, they come first.
    config = DataConfig(image_size=24, resize=32, augmentation=augmentation)  # type: ignore[arg-type]
    for seed, size in enumerate([(375, 500), (40, 33), (24, 24), (7, 90)]):
        torch.manual_seed(seed)
        last = torch.randint(0, 256, (*size, 3), dtype=torch.uint8).permute(2, 0, 1)
        for transform in (train_transform(config), eval_transform(config)):
            torch.manual_seed(seed)
            out = transform(last)
            torch.manual_seed(seed)
            assert torch.equal(out, transform(last.contiguous()))


def test_a_smaller_square_sees_as_much_of_a_photograph() -> None:
    ramp = torch.linspace(0, 255, 512).round().to(torch.uint8).expand(3, 512, 512)
    for size in (224, 112, 56):
        seen = eval_transform(DataConfig(image_size=size))(ramp)[0, 0].float()
        # Seven eighths of the side, as 224 of 256: a sixteenth is lost at each end.
        assert (seen[0].item(), seen[-1].item()) == pytest.approx((255 / 16, 255 * 15 / 16), abs=3)
