from __future__ import annotations

import base64
import dataclasses
import io
import re
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from tuplet.evaluation.measure import EvalReport
from tuplet.report import plots
from tuplet.training.run_folder import EpochReport


def epoch_report(
    epoch: int, recall: float | None = None, rates: dict[str, float] | None = None
) -> EpochReport:
    sizes = {"distribution": 4.0, "cross_entropy": 2.0, "total": 6.0}
    losses = {name: size / epoch for name, size in sizes.items()} if epoch else {}
    evaluation = None if recall is None else EvalReport("test", {"recall_at_1": recall}, None, 9, 3, 9)
    return EpochReport(epoch, losses, evaluation, 1.0, 0.5, 10.0, rates or {"backbone": 1e-4, "hgnn": 1e-3})


EPOCHS = [epoch_report(0, 0.25), epoch_report(1, 0.5), epoch_report(2), epoch_report(3, 0.877)]


def clusters(sizes: list[int], dim: int = 8) -> tuple[np.ndarray, np.ndarray]:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    generator = np.random.default_rng(1)
    centres = generator.normal(size=(len(sizes), dim))
    noise = 0.1 * generator.normal(size=(labels.size, dim))
    return (centres[labels] + noise).astype(np.float32), labels


def texts(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def decoded(address: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))


def test_each_loss_term_and_group_is_named_in_its_chart() -> None:
    assert {"distribution", "cross entropy", "total", "Epoch"} <= set(texts(plots.loss_curves(EPOCHS)))
    assert {"backbone", "hgnn"} <= set(texts(plots.learning_rate_curve(EPOCHS)))


def test_recall_curve_is_labelled_with_its_last_value_in_percent() -> None:
    assert "87.7" in texts(plots.recall_curve(EPOCHS))


def test_recall_curve_takes_the_smallest_k_there_is() -> None:
    evaluation = EvalReport("test", {"recall_at_100": 0.9, "recall_at_10": 0.5}, None, 9, 3, 9)
    epochs = [dataclasses.replace(epoch_report(number), evaluation=evaluation) for number in (0, 1)]
    assert "Recall@10, %" in texts(plots.recall_curve(epochs))


@pytest.mark.parametrize("draw", [plots.loss_curves, plots.recall_curve, plots.learning_rate_curve])
def test_nothing_trained_is_no_chart(draw: object) -> None:
    assert callable(draw)
    assert draw([]) == ""
    assert draw([epoch_report(0, 0.3)]) == ""


@pytest.mark.parametrize("rate", [0.0, 1e-3])
def test_a_rate_of_zero_is_a_gap_and_not_a_warning(rate: float) -> None:
    epochs = [epoch_report(1, rates={"backbone": 0.0}), epoch_report(2, rates={"backbone": rate})]
    assert plots.learning_rate_curve(epochs).startswith("<svg")


def test_a_loss_that_is_no_number_is_drawn_as_a_gap() -> None:
    losses = enumerate((2.0, float("nan")), 1)
    epochs = [dataclasses.replace(epoch_report(e), losses={"total": value}) for e, value in losses]
    assert plots.loss_curves(epochs).startswith("<svg")


def test_figures_are_fragments_without_addresses_styles_or_shared_ids() -> None:
    charts = [plots.loss_curves(EPOCHS), plots.recall_curve(EPOCHS), plots.learning_rate_curve(EPOCHS)]
    page = "".join(charts)
    assert not re.search(r"http|<style|<metadata|xmlns|font-family", page)
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids)) > 0
    assert set(re.findall(r'(?:href="|url\()#([^")]*)', page)) <= set(ids)
    for chart in charts:
        ElementTree.fromstring(chart)


def test_figures_do_not_depend_on_the_users_matplotlib_settings_and_leave_them_alone() -> None:
    expected = plots.loss_curves(EPOCHS)
    with matplotlib.rc_context({"axes.facecolor": "red", "font.size": 30, "svg.hashsalt": None}):
        assert plots.loss_curves(EPOCHS) == expected
        assert matplotlib.rcParams["font.size"] == 30


def test_map_draws_every_point_of_a_small_set_and_names_the_classes() -> None:
    embeddings, labels = clusters([5, 6, 7])
    drawn = plots.embedding_map(embeddings, labels, ["<b>", "żółw", "c"])
    assert (drawn.num_points, drawn.num_classes) == (18, 3)
    marks = re.findall(r'<path d="([^"]*)"[^>]*><title>([^<]*)</title>', drawn.svg)
    assert [(name, path.count("M")) for path, name in marks] == [("&lt;b&gt;", 5), ("żółw", 6), ("c", 7)]
    assert "<b>" not in drawn.svg


def test_map_keeps_clusters_apart() -> None:
    embeddings, labels = clusters([20] * 5, dim=32)
    paths = re.findall(r'<path d="([^"]*)"', plots.embedding_map(embeddings, labels, list("abcde")).svg)
    # Dots are "M<x> <y>h0".
    places = [np.array(re.findall(r"M(-?\d+) (-?\d+)", path), dtype=float) for path in paths]
    centres = np.stack([place.mean(axis=0) for place in places])
    widest = max(place.std(axis=0).max() for place in places)
    distances = np.linalg.norm(centres[:, None] - centres, axis=-1)[~np.eye(5, dtype=bool)]
    assert distances.min() > 3 * widest


def test_map_takes_whole_classes_up_to_its_limits() -> None:
    embeddings, labels = clusters([30] * 9)
    by_points = plots.embedding_map(embeddings, labels, list("abcdefghi"), max_points=100)
    assert (by_points.num_points, by_points.num_classes) == (90, 3)
    by_classes = plots.embedding_map(embeddings, labels, list("abcdefghi"), max_classes=2)
    assert (by_classes.num_points, by_classes.num_classes) == (60, 2)


def test_map_thins_classes_too_large_to_show_whole() -> None:
    embeddings, labels = clusters([200, 190])
    drawn = plots.embedding_map(embeddings, labels, ["a", "b"], max_points=60)
    assert (drawn.num_points, drawn.num_classes) == (60, 1)
    drawn = plots.embedding_map(embeddings, labels, ["a", "b"], max_points=340)
    assert (drawn.num_points, drawn.num_classes) == (340, 2)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("dim", [1, 3])
@pytest.mark.parametrize("same", [True, False])
def test_map_of_tiny_sets(count: int, dim: int, same: bool) -> None:
    embeddings = np.ones((count, dim)) if same else np.random.default_rng(0).normal(size=(count, dim))
    drawn = plots.embedding_map(embeddings.astype(np.float32), np.zeros(count, dtype=np.int64), ["only"])
    assert drawn.num_points == count
    assert "nan" not in drawn.svg


def test_equal_input_gives_equal_figures() -> None:
    embeddings, labels = clusters([20] * 6)
    names = list("abcdef")
    assert plots.embedding_map(embeddings, labels, names) == plots.embedding_map(embeddings, labels, names)
    assert plots.recall_curve(EPOCHS) == plots.recall_curve(EPOCHS)


def test_drawings_become_png_and_photographs_jpeg() -> None:
    drawing = torch.full((3, 105, 105), 255, dtype=torch.uint8)
    drawing[:, 20:80, 50:55] = 0
    photograph = torch.randint(0, 255, (3, 300, 200), dtype=torch.uint8, generator=torch.manual_seed(0))
    small, photo = plots.thumbnail(drawing), plots.thumbnail(photograph)
    assert small.startswith("data:image/png;base64,")
    assert decoded(small).size == (96, 96)
    assert len(small) < 1500
    assert photo.startswith("data:image/jpeg;base64,")
    assert decoded(photo).size == (64, 96)


def test_thumbnails_keep_colours_and_small_images_their_size() -> None:
    flag = torch.zeros((3, 20, 30), dtype=torch.uint8)
    flag[0, :10] = 200
    flag[2, 10:] = 220
    picture = decoded(plots.thumbnail(flag)).convert("RGB")
    assert picture.size == (30, 20)
    assert picture.getpixel((5, 2)) == (200, 0, 0)
    assert picture.getpixel((5, 18)) == (0, 0, 220)
    assert decoded(plots.thumbnail(torch.zeros((3, 1, 4000), dtype=torch.uint8))).size == (96, 1)


def luminance(color: str) -> float:
    channels = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_page_colours_stand_out_in_both_modes() -> None:
    folder = Path(plots.__file__).with_name("templates")
    base, own = (
        re.findall(r":root \{(.*?)\}", (folder / name).read_text(encoding="utf-8"), flags=re.DOTALL)
        for name in ("style_base.css", "style.css")
    )
    assert (len(base), len(own)) == (2, 2)
    modes = [first + second for first, second in zip(base, own, strict=True)]
    for mode in modes:
        colors = dict(re.findall(r"--([\w-]+): (#\w{6})", mode))
        for ground in ("page", "card", "wash"):
            for name, wanted in [("ink", 7.0), *((n, 4.5) for n in ("soft", "accent", "right", "wrong"))]:
                assert contrast(colors[name], colors[ground]) >= wanted, (name, ground)
        for name in ["plot-ink", *(f"series-{i + 1}" for i in range(len(plots.SERIES)))]:
            assert contrast(colors[name], colors["card"]) >= 3, name
    assert tuple(re.findall(r"--series-\d: (#\w{6})", modes[0])) == plots.SERIES


def contrast(one: str, other: str) -> float:
    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)
