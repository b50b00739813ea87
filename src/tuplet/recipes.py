"""Settings that work, as functions that return a `RunConfig`: change any field of one with `override`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

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
from tuplet.errors import InputError


def demo() -> RunConfig:
    """Generated characters, a small network, a minute on two cores: to see the whole job at work."""
    return RunConfig(
        name="demo",
        data=DataConfig(
            source="glyphs",
            glyph_train_classes=100,
            glyph_test_classes=60,
            glyphs_per_class=16,
            image_size=48,
            resize=48,
            augmentation="affine",
            cache="memory",
            batch_size=32,
        ),
        model=_small_network(),
        loss=LossConfig(tau=16.0, alpha=1.0, hidden_dim=128),
        optimizer=_small_network_optimizer(),
        schedule=ScheduleConfig(epochs=15, warmup_epochs=0, decay="cosine"),
        compute=ComputeConfig(num_workers=1),
    )


def omniglot() -> RunConfig:
    """Handwritten characters below data.root, a small network trained from nothing, in minutes."""
    return RunConfig(
        name="omniglot",
        data=DataConfig(
            image_size=48,
            resize=48,
            augmentation="affine",
            quarter_turns=True,
            cache="memory",
            batch_size=32,
        ),
        model=_small_network(),
        loss=LossConfig(tau=8.0, alpha=1.0, hidden_dim=128),
        optimizer=_small_network_optimizer(),
        schedule=ScheduleConfig(epochs=16, warmup_epochs=0, decay="cosine"),
        compute=ComputeConfig(num_workers=1),
    )


def folder() -> RunConfig:
    """Photographs below data.root, a pretrained backbone fine-tuned gently for a few epochs."""
    return RunConfig(
        name="folder",
        model=ModelConfig(freeze_batch_norm="statistics"),
        loss=LossConfig(tau=16.0, alpha=1.0),
        optimizer=OptimizerConfig(lr_backbone=3e-5, lr_embedding=1e-4, lr_distributions=1e-1),
        schedule=ScheduleConfig(epochs=5, warmup_epochs=1, decay="cosine"),
    )


def _small_network() -> ModelConfig:
    return ModelConfig(backbone="tuplet_convnet", embedding_dim=128, pretrained=False)


def _small_network_optimizer() -> OptimizerConfig:
    return OptimizerConfig(lr_backbone=1e-3, lr_embedding=1e-3, lr_distributions=3e-2, lr_hgnn=1e-3)


RECIPES: dict[str, Callable[[], RunConfig]] = {"demo": demo, "omniglot": omniglot, "folder": folder}


def recipe(name: str) -> RunConfig:
    """The settings of one recipe.

    Raises:
        InputError: (a ValueError) there is no such recipe; names those that there are.
    """
    if name not in RECIPES:
        raise InputError(f"there is no recipe {name!r}; want one of {', '.join(RECIPES)}")
    return RECIPES[name]()


def with_loss(config: RunConfig, name: LossName) -> RunConfig:
    """The same run with another loss, and with the batches that this loss needs.

    Args:
        config: whose data, network and schedule stay.
        name: hist, or a rival, then with its published settings. Those that compare the samples of a batch
            get several images of each class, as `data.images_per_class` says.
    """
    pairs = name in ("multi-similarity", "triplet", "supcon")
    sampler = "per-class" if pairs else config.data.sampler
    loss = replace(config.loss, name=name, margin=None, scale=None, positive_scale=None, num_centers=None)
    return replace(
        config,
        loss=loss,
        data=replace(config.data, sampler=sampler),
    )
