"""The section of a report on decisions: which images it is of, and what its figures show."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from torch import Tensor

from tuplet.data.image_tables import ImageTable
from tuplet.evaluation.calibrating import MeasuredSet, calibrate
from tuplet.evaluation.calibration import Calibration
from tuplet.evaluation.embedding_files import LabelledEmbeddings
from tuplet.evaluation.evaluate import EmbeddedSplit
from tuplet.evaluation.sizes import SizePoint
from tuplet.metrics.intervals import Interval
from tuplet.report import decisions
from tuplet.report.decisions import decision_section, draw_sizes


class Named(ImageTable):
    """Images that have no pixels, because nobody looks at them."""

    def image(self, index: int) -> Tensor:
        raise NotImplementedError

    def name(self, index: int) -> str:
        return str(index)


def embedded(num_classes: int, dim: int = 16) -> EmbeddedSplit:
    """Ten noisy images of each class."""
    labels = np.repeat(np.arange(num_classes), 10)
    random = np.random.default_rng(0)
    points = random.normal(size=(num_classes, dim))[labels] + 0.7 * random.normal(size=(len(labels), dim))
    names = [f"class {number}" for number in range(num_classes)]
    return EmbeddedSplit(Named(labels, names), points.astype(np.float32))


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    split = embedded(8)
    images = LabelledEmbeddings(split.embeddings, split.labels)
    return calibrate(MeasuredSet.of("eight classes", images), None, {})


def test_a_section_is_of_all_images_or_of_whole_classes(
    calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = decision_section(calibration, embedded(8), "Test classes")
    assert section is not None
    assert (section.num_images, section.num_classes) == (80, 8)
    assert list(section.figures) == ["rates", "risk", "reliability", "sizes"]
    monkeypatch.setattr(decisions, "MOST_IMAGES", 35)
    part = decision_section(calibration, embedded(8), "Test classes")
    assert part is not None
    assert (part.num_images, part.num_classes) == (30, 3)


def test_what_cannot_be_drawn_is_left_out(calibration: Calibration) -> None:
    assert decision_section(calibration, embedded(1), "Test classes") is None
    narrow = decision_section(calibration, embedded(4, dim=4), "Test classes")
    assert narrow is not None
    assert "sizes" not in narrow.figures


def test_sizes_are_drawn_with_a_band_where_there_are_intervals() -> None:
    interval = Interval(0.3, 0.7, "classes", 0.95, 100, 0)
    points = [
        SizePoint("float32", width, 4 * width, 0.5, 0.4, interval, interval) for width in (8, 16, 32)
    ] + [SizePoint("bits", width, width // 8, 0.4, 0.3, None, None) for width in (8, 16, 32)]
    svg = draw_sizes(points)
    assert re.findall(r">(float32|int8|bits)<", svg) == ["float32", "bits"]
    assert svg.count("opacity: 0.12") == 1
    none = [replace(point, recall_interval=None) for point in points]
    assert "opacity: 0.12" not in draw_sizes(none)


def test_a_network_whose_embeddings_are_all_one(calibration: Calibration) -> None:
    split = embedded(4, dim=4)
    section = decision_section(calibration, replace(split, embeddings=np.ones_like(split.embeddings)), "Test")
    assert section is not None
    assert list(section.figures) == ["rates", "risk", "reliability"]
