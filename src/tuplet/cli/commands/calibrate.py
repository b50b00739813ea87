"""`tuplet calibrate`: thresholds and probabilities of answers, chosen on classes new to the model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import torch

from tuplet.cli.commands.evaluate import seen_in_training
from tuplet.cli.console import print_json
from tuplet.cli.measure_options import CalibrateArguments
from tuplet.cli.measure_tables import calibration_table
from tuplet.config import RunConfig
from tuplet.data.class_folders import load_images
from tuplet.data.image_tables import ImageTable
from tuplet.data.load import folder_settings, load_data, split_of
from tuplet.errors import SettingsError
from tuplet.evaluation.calibrating import CalibrationSettings, MeasuredSet
from tuplet.evaluation.calibrating import calibrate as calibrate_on
from tuplet.evaluation.calibration import CALIBRATION_FILE, Goal
from tuplet.evaluation.evaluate import embed
from tuplet.inference.encoder import PictureEmbedder
from tuplet.inference.pictures import absolute
from tuplet.inference.trained_model import TrainedModel, open_model
from tuplet.report.calibration_page import write_calibration_page
from tuplet.training.devices import launch


def calibrate(chosen: CalibrateArguments) -> None:
    """Calibrate a model, and write and print the thresholds and their measurements."""
    model = open_model(chosen.run)
    compute = replace(
        model.config.compute, accelerator=chosen.accelerator, num_workers=chosen.num_workers, devices=1
    )
    config = replace(model.config, compute=replace(compute, num_nodes=1, shard_classes=False))
    validation, test, notes = _images(chosen, model, config)
    identity = PictureEmbedder(
        model.network, config.data, absolute(chosen.run), torch.device("cpu")
    ).model.identity
    fabric = launch(config)
    network = fabric.setup_module(model.network)

    def measured(source: str, table: ImageTable) -> MeasuredSet:
        embedded = embed(network, table, config.data, fabric=fabric, num_workers=chosen.num_workers)
        return MeasuredSet.of(source, embedded.labelled, chosen.votes)

    on = measured(*validation)
    of_test = None if test is None else measured(*test)
    settings = _settings(chosen)
    notes += _few_pairs(on, settings)
    found = calibrate_on(on, of_test, identity, settings)
    file = chosen.run / CALIBRATION_FILE
    found.write(file)
    page = file.with_suffix(".html")
    write_calibration_page(page, found, [on] if of_test is None else [on, of_test])
    if chosen.json:
        print_json(json.loads(file.read_text()) | {"notes": notes})
        return
    print("\n".join([*notes, calibration_table(found), f"calibration: {file}", f"page: {page}"]))


def _settings(chosen: CalibrateArguments) -> CalibrationSettings:
    goal, wanted = _goal(chosen)
    return CalibrationSettings(goal, wanted, chosen.miss, chosen.votes, chosen.method)


def _goal(chosen: CalibrateArguments) -> tuple[Goal, float | None]:
    if chosen.f1:
        return "f1", None
    if chosen.precision is not None:
        return "precision", chosen.precision
    return "fmr", chosen.fmr or 1e-3


def _few_pairs(on: MeasuredSet, settings: CalibrationSettings) -> list[str]:
    """Return a note if a false match rate is decided by a handful of pairs."""
    allowed = 0.0 if settings.wanted is None else settings.wanted * on.pairs.counts.num_impostor
    if settings.goal != "fmr" or allowed >= 10:
        return []
    return [
        f"note: an FMR of {settings.wanted:g} allows {int(allowed)} of {on.pairs.counts.num_impostor:,} pairs"
        " of two classes, too few to be sure of: more images, or a larger --fmr, would tell more"
    ]


Named: TypeAlias = tuple[str, ImageTable]
"""Images, and their name in messages."""


def _images(
    chosen: CalibrateArguments, model: TrainedModel, config: RunConfig
) -> tuple[Named, Named | None, list[str]]:
    """Return the images to choose thresholds on, the images to measure them on, and notes."""
    own = model.run is not None and (model.has_images or chosen.images is None)
    if chosen.images is None and (model.run is None or config.evaluation.split != "validation"):
        raise SettingsError(
            f"{chosen.run} has no validation classes: it may have been trained on all; want one that was"
            " trained with --evaluation.split validation, or --images FOLDER of classes that are new to it",
            subject="--images",
        )
    notes: list[str] = []
    data = load_data(config) if own and (chosen.images is None or chosen.test_images is None) else None
    if chosen.images is None:
        assert data is not None
        validation: Named = (f"validation classes of {chosen.run}", split_of(data, config).test)
    else:
        validation = (str(chosen.images), _folder(chosen.images, config))
        notes += seen_in_training(model.run, chosen.run, validation[1].class_names)
    if chosen.test_images is not None:
        table = _folder(chosen.test_images, config)
        notes += seen_in_training(model.run, chosen.run, table.class_names)
        return validation, (str(chosen.test_images), table), notes
    if data is None:
        return validation, None, [*notes, "note: there are no test images; --test-images FOLDER names some"]
    if shared := set(validation[1].class_names) & set(data.test.class_names):
        notes.append(
            f"warning: {len(shared)} of the test classes are among those that the threshold is chosen on"
            f" ({', '.join(sorted(shared)[:3])}): the test is no test of those"
        )
    return validation, (f"test classes of {chosen.run}", data.test), notes


def _folder(folder: Path, config: RunConfig) -> ImageTable:
    return load_images(folder, settings=folder_settings(config))[0]
