"""`tuplet export RUN --to onnx|torch|hub`: a trained network for where tuplet is not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from tuplet.cli.arguments import parse
from tuplet.config import DataConfig
from tuplet.errors import InputError

if TYPE_CHECKING:
    from jaxtyping import UInt8
    from torch import Tensor

    from tuplet.config import RunConfig
    from tuplet.data.splits import Split
    from tuplet.inference.trained_model import TrainedModel


USAGE = """\
usage: tuplet export RUN --to onnx|torch|hub [--output FILE|FOLDER] [--check FOLDER] [--overwrite]
       tuplet export MODEL --to onnx|torch|hub [--output FILE|FOLDER] [--data.image-size 224 ...]

RUN is a folder made by tuplet train, MODEL one written by save_pretrained, such as RUN/model.

  --to onnx      one file for onnxruntime and others (pip install 'tuplet[search]')
  --to torch     one file for torch.export.load, which needs PyTorch alone
  --to hub       a folder for the Hugging Face hub: weights, config.json and a model card
  --output       where to; else RUN/model.onnx, RUN/model.pt2 or RUN/hub, and of a MODEL beside it
  --check        folder of pictures to compare the export and the network on; else the run's own test images,
                 else noise
  --overwrite    replace what an earlier export wrote

Each takes uint8 RGB [N, 3, S, S] with any N and gives [N, D], as the network does. tuplet export RUN --help
lists every option."""

Target = Literal["onnx", "torch", "hub"]

_ENDINGS: dict[Target, str] = {"onnx": ".onnx", "torch": ".pt2", "hub": ""}


@dataclass(frozen=True)
class ExportArguments:
    """Write a trained network as something that others can use."""

    to: Target = tyro.MISSING
    """onnx: a file for onnxruntime; torch: one for torch.export.load; hub: a folder for the hub."""
    output: Path | None = None
    """Where to; else RUN/model.onnx, RUN/model.pt2 or RUN/hub, and of a saved model beside its folder."""
    check: Path | None = None
    """Folder of pictures, at any depth, to compare the export with the network on; else the run's own test
    images, or noise where there are none."""
    overwrite: bool = False
    """Replace what an earlier export wrote."""
    data: DataConfig = field(default_factory=DataConfig)


def export(arguments: list[str]) -> None:
    """Write a trained network as ONNX, as a program of torch.export, or as a folder for the hub."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return
    if arguments[0].startswith("-"):
        raise InputError(f"tuplet export starts with {arguments[0]!r}; want RUN or MODEL first")
    what = Path(arguments[0])
    if not what.is_dir():
        raise InputError(
            f"{what} {'is a file' if what.exists() else 'does not exist'}; want the folder of a run, or of a"
            " saved model"
        )
    _export(what, arguments[1:])


def _export(what: Path, rest: Sequence[str]) -> None:
    from tuplet.inference.export import OPSET, export_file, export_hub, require_free
    from tuplet.inference.model_card import model_card, training_of
    from tuplet.inference.trained_model import open_model, preparation_words

    model = open_model(what)
    chosen = parse(ExportArguments, ExportArguments(data=model.config.data), rest, f"tuplet export {what}")
    target = _target(what, chosen.to, chosen.output, is_run=model.has_images)
    require_free(target, chosen.overwrite)
    config = replace(model.config, data=chosen.data)
    split, missing = _images(model, config, exactly=chosen.to == "hub")
    pixels, compared = _pictures(chosen.check, split, missing, config)
    network, data, overwrite = model.network, config.data, chosen.overwrite
    notes = []
    if chosen.to == "hub":
        training = None if model.run is None else training_of(model.run, split)
        if training is not None and training.num_images is None:
            cause = missing or "the images at hand are others, or the run has no checkpoint"
            notes.append(f"note      README.md does not say how many images trained it: {cause}")
        notes.append("left      to you: a license in README.md, and to read it before it is published")
        card = model_card(network, data, training)
        largest = export_hub(network, target, pixels, data=data, card=card, overwrite=overwrite)
        kind = "for Embedder.from_pretrained and the hub"
    else:
        facts = {} if model.run is None else {"run": model.run.config.name}
        largest = export_file(
            network, target, pixels, to=chosen.to, data=data, facts=facts, overwrite=overwrite
        )
        kind = f"ONNX, opset {OPSET}" if chosen.to == "onnx" else "torch.export"
    size = data.image_size
    print(f"in        uint8 RGB [N, 3, {size}, {size}], 0..255; before it {preparation_words(data)}")
    print(f"out       [N, {network.embedding.out_features}], as the network gives it; compare by cosine")
    print(f"compared  on {compared}")
    print(f"          in batches of 1 and of 5: largest difference {largest:.1e}, of at most 1e-04")
    print(f"written   {target}  {_size(target)}  {kind}")
    print("\n".join(notes), end="\n" if notes else "")


def _target(what: Path, to: Target, output: Path | None, *, is_run: bool) -> Path:
    """Where the export goes.

    Raises:
        InputError: a file that does not end as its format does.
    """
    ending = _ENDINGS[to]
    if output is None:
        if is_run:
            return what / (f"model{ending}" if ending else "hub")
        folder = what.resolve()
        beside = what.with_name(folder.name) if what.name == folder.name else folder
        return beside.with_name(folder.name + (ending or "-hub"))
    if ending and output.is_dir():
        return output / f"model{ending}"
    if ending and output.suffix != ending:
        raise InputError(f"--output {output} does not end in {ending}; want such a file, or a folder")
    return output


def _images(model: TrainedModel, config: RunConfig, *, exactly: bool) -> tuple[Split | None, str]:
    """The images of the run behind a model, or None and why they are not at hand.

    Args:
        model: what is exported.
        config: its config, perhaps with images elsewhere.
        exactly: leave out what the run left out, for which all images may have to be decoded.
    """
    if model.run is None:
        return None, "no run says which images are its test images"
    from tuplet.data.load import load_split

    listed = replace(config.data, cache="none")
    if not exactly:
        listed = replace(listed, on_bad_image="stop")
    try:
        return load_split(replace(config, data=listed)), ""
    except (InputError, OSError) as error:
        return None, str(error)


def _pictures(
    folder: Path | None, split: Split | None, missing: str, config: RunConfig
) -> tuple[UInt8[Tensor, "N 3 S S"], str]:
    """What the export is compared on, and what that is."""
    from tuplet.inference.export import NUM_PICTURES, noise, pictures_of_folder, pictures_of_table

    if folder is not None:
        return pictures_of_folder(folder, config.data), f"{NUM_PICTURES} pictures of {folder}"
    if split is not None:
        pixels = pictures_of_table(split.test, config.data)
        if pixels is not None:
            of = "the generated characters" if config.data.root is None else config.data.root
            return pixels, f"{NUM_PICTURES} {config.evaluation.split} images of {of}"
        missing = "none of the run's test images can be read"
    return noise(config.data), f"{NUM_PICTURES} squares of seeded noise, for {missing}"


def _size(target: Path) -> str:
    files = target.iterdir() if target.is_dir() else [target]
    return f"{sum(file.stat().st_size for file in files) / 1e6:.1f} MB"
