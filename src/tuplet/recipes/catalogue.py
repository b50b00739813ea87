"""Recipes, functions that return a `RunConfig`: change any field of one with `override`."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

from tuplet.config import (
    ComputeConfig,
    DataConfig,
    LossConfig,
    LossName,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
)
from tuplet.config.checks import require, require_choice
from tuplet.config.loss import HIST_VARIANTS
from tuplet.errors import SettingsError
from tuplet.recipes.further import FURTHER_RECIPES
from tuplet.recipes.paper import PAPER_RECIPES


def demo() -> RunConfig:
    """Generated characters and a small network: shows the whole job in about a minute on two cores."""
    data = DataConfig(
        source="glyphs",
        glyph_train_classes=100,
        glyph_test_classes=60,
        glyphs_per_class=16,
        image_size=48,
        augmentation="affine",
        cache="memory",
        batch_size=32,
    )
    return _characters("demo", data, tau=16.0, epochs=15)


def omniglot() -> RunConfig:
    """Handwritten characters below data.root: a small network, trained from scratch in minutes."""
    data = DataConfig(image_size=48, augmentation="affine", quarter_turns=True, cache="memory", batch_size=32)
    return _characters("omniglot", data, tau=8.0, epochs=16)


def folder() -> RunConfig:
    """Photographs below data.root: a pretrained backbone, fine-tuned for a few epochs at low rates."""
    return RunConfig(
        name="folder",
        model=ModelConfig(freeze_batch_norm="statistics"),
        loss=LossConfig(tau=16.0, alpha=1.0),
        optimizer=OptimizerConfig(lr_backbone=3e-5, lr_embedding=1e-4, lr_distributions=1e-1),
        schedule=ScheduleConfig(epochs=5, warmup_epochs=1, decay="cosine"),
    )


def _characters(name: str, data: DataConfig, *, tau: float, epochs: int) -> RunConfig:
    return RunConfig(
        name=name,
        data=data,
        model=ModelConfig(backbone="tuplet_convnet", embedding_dim=128, pretrained=False),
        loss=LossConfig(tau=tau, alpha=1.0, hidden_dim=128),
        optimizer=OptimizerConfig(lr_backbone=1e-3, lr_embedding=1e-3, lr_distributions=3e-2, lr_hgnn=1e-3),
        schedule=ScheduleConfig(epochs=epochs, warmup_epochs=0, decay="cosine"),
        compute=ComputeConfig(num_workers=1),
    )


COMPARE_SAMPLES: tuple[LossName, ...] = ("multi-similarity", "triplet", "supcon")
"""Losses that compare the samples of a batch: without two of a class they learn nothing."""

RECIPES: dict[str, Callable[[], RunConfig]] = {
    "demo": demo,
    "omniglot": omniglot,
    "folder": folder,
    **PAPER_RECIPES,
    **FURTHER_RECIPES,
}


def recipe(name: str) -> RunConfig:
    """Return the settings of one recipe.

    Raises: SettingsError: there is no such recipe; the message names those that are most like it.
    """
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, cutoff=0.6)
        hint = f", perhaps {', '.join(near)}" if near else ""
        first = ", ".join(list(RECIPES)[:3])
        raise SettingsError(
            f"there is no recipe {name!r}; want one of {first}, ..., all listed by tuplet recipes{hint}",
            subject="recipe",
            given=name,
            wanted=near or list(RECIPES),
        )
    return RECIPES[name]()


def with_loss(config: RunConfig, name: LossName) -> RunConfig:
    """Return the run with another loss, and with the batches that this loss needs.

    Args:
        config: whose data, network, schedule and settings of HIST stay.
        name: hist, or a rival with its published settings, and without the variants of HIST that the config
            may have. For a rival that compares samples, random batches become `data.images_per_class` images
            of each class, or the nearest number that divides the batch into two classes or more.

    Raises: SettingsError: no such loss, a batch that cannot be divided so, or a setting that only hist has.
    """
    require_choice("loss.name", name, get_args(LossName))
    data = config.data
    if name in COMPARE_SAMPLES and data.sampler == "random":
        images = _images_per_class(data.batch_size, data.images_per_class, name)
        data = replace(data, sampler="per-class", images_per_class=images)
    published: dict[str, Any] = dict.fromkeys(("margin", "scale", "positive_scale", "num_centers"))
    optimizer = config.optimizer
    if name != "hist":
        published |= HIST_VARIANTS
        optimizer = replace(optimizer, weight_decay_distributions=None)
    loss = replace(config.loss, name=name, **published)
    return replace(config, loss=loss, data=data, optimizer=optimizer)


def loss_notes(config: RunConfig) -> tuple[str, ...]:
    """Return warnings about a run's loss and its batches, one line each; such a run can still train."""
    if config.loss.name not in COMPARE_SAMPLES or config.data.sampler != "random":
        return ()
    return (
        f"loss.name = {config.loss.name} compares images of a class, and random batches seldom hold several;"
        f" want --loss {config.loss.name}, which changes both, or data.sampler = per-class",
    )


def _images_per_class(batch_size: int, wanted: int, name: LossName) -> int:
    possible = [images for images in range(2, batch_size // 2 + 1) if batch_size % images == 0]
    product = batch_size + 4 - batch_size % 4
    why = f"a product such as {product}, for {name} compares several images of each of several classes"
    require(bool(possible), "data.batch_size", batch_size, why)
    return min(possible, key=lambda images: (abs(images - wanted), images))
