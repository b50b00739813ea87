"""`tuplet export RUN --to onnx|torch|hub`: a trained network as a file for use without tuplet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import tyro
from jaxtyping import UInt8
from torch import Tensor

from tuplet.cli.arguments import parse
from tuplet.cli.console import printable
from tuplet.cli.options import ExportArguments, ExportTarget
from tuplet.config import RunConfig
from tuplet.data.load import load_split
from tuplet.data.splits import Split
from tuplet.data.walk import LeftOut
from tuplet.errors import InputError, SettingsError
from tuplet.inference.export import (
    ENDINGS,
    NUM_PICTURES,
    OPSET,
    export_file,
    export_hub,
    exported_calibration,
    noise,
    pictures_of_folder,
    pictures_of_table,
    require_free,
)
from tuplet.inference.model_card import model_card, training_of
from tuplet.inference.trained_model import TrainedModel, open_model, preparation_words


def export(what: Path, arguments: Sequence[str]) -> None:
    """Write a trained network as ONNX, as a program of torch.export, or as a folder for the hub."""
    model = open_model(what)
    defaults = ExportArguments(to=tyro.MISSING, data=model.config.data)
    chosen = parse(ExportArguments, arguments, f"tuplet export {what}", defaults)
    target = _target(what, chosen.to, chosen.output, is_run=model.has_images)
    require_free(target, chosen.overwrite)
    config = replace(model.config, data=chosen.data)
    split, missing = _images(model, config, exactly=chosen.to == "hub")
    pixels, compared, left_out = _pictures(chosen.check, split, missing, config)
    network, data, overwrite = model.network, config.data, chosen.overwrite
    notes = [f"note      {printable(note)}" for note in left_out]
    if chosen.to == "hub":
        training = None if model.run is None else training_of(model.run, split)
        if training is not None and training.num_images is None:
            cause = missing or "these are other images, or the run has no checkpoint"
            notes.append(f"note      README.md does not say how many images trained it: {cause}")
        notes.append("to do     add a license to README.md, and read it before you publish it")
        card = model_card(network, data, training)
        calibration, cause = exported_calibration(network, data, what)
        if cause:
            notes.append(f"note      without the calibration: {cause}")
        largest = export_hub(
            network, target, pixels, data=data, card=card, calibration=calibration, overwrite=overwrite
        )
        kind = "for Embedder.from_pretrained and the hub"
    else:
        facts = {} if model.run is None else {"run": model.run.config.name}
        largest = export_file(network, target, pixels, data=data, facts=facts, overwrite=overwrite)
        kind = f"ONNX, opset {OPSET}" if chosen.to == "onnx" else "torch.export"
    size = data.image_size
    print(f"in        uint8 RGB [N, 3, {size}, {size}], 0..255; before it {preparation_words(data)}")
    print(f"out       [N, {network.embedding.out_features}], as the network gives it; compare by cosine")
    print(f"compared  on {compared}")
    print(f"          in batches of 1 and of 5: largest difference {largest:.1e}, of at most 1e-04")
    print(f"written   {target}  {_size(target)}  {kind}")
    print("\n".join(notes), end="\n" if notes else "")


def _target(what: Path, to: ExportTarget, output: Path | None, *, is_run: bool) -> Path:
    """Return the file or folder to write; raise an error if its name does not end as its format does."""
    ending = ENDINGS[to]
    if output is None:
        if is_run:
            return what / (f"model{ending}" if ending else "hub")
        folder = what.resolve()
        beside = what.with_name(folder.name) if what.name == folder.name else folder
        return beside.with_name(folder.name + (ending or "-hub"))
    if ending and output.is_dir():
        return output / f"model{ending}"
    if ending and output.suffix != ending:
        raise SettingsError(
            f"--output {output} does not end in {ending}; want such a file, or a folder", subject="--output"
        )
    return output


def _images(model: TrainedModel, config: RunConfig, *, exactly: bool) -> tuple[Split | None, str]:
    """Return the images of the run behind a model, or None and why they are not available.

    Args:
        model: what is exported.
        config: its config, perhaps with images elsewhere.
        exactly: leave out what the run left out, for which all images may have to be decoded.
    """
    if model.run is None:
        return None, "no run says which images are its test images"

    listed = replace(config.data, cache="none")
    if not exactly:
        listed = replace(listed, on_bad_image="stop")
    try:
        return load_split(replace(config, data=listed)), ""
    except (InputError, OSError) as error:
        return None, str(error)


def _pictures(
    folder: Path | None, split: Split | None, missing: str, config: RunConfig
) -> tuple[UInt8[Tensor, "N 3 S S"], str, list[str]]:
    """Return pictures to compare the export on, a description of them, and notes on what was left out."""
    if folder is not None:
        left_out = LeftOut()
        checked = pictures_of_folder(folder, config.data, left_out)
        return checked, f"{NUM_PICTURES} pictures of {folder}", left_out.notes(folder)
    if split is not None:
        pixels = pictures_of_table(split.test, config.data)
        if pixels is not None:
            of = "the generated characters" if config.data.root is None else config.data.root
            return pixels, f"{NUM_PICTURES} {config.evaluation.split} images of {of}", []
        missing = "none of the run's test images can be read"
    return noise(config.data), f"{NUM_PICTURES} squares of seeded noise, because {missing}", []


def _size(target: Path) -> str:
    files = target.iterdir() if target.is_dir() else [target]
    return f"{sum(file.stat().st_size for file in files) / 1e6:.1f} MB"
