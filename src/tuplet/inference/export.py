"""Export a trained network: as ONNX, as a program of torch.export, or as a folder for the hub.

Input and output are those of `Embedder`. Every export is compared with the network before it is kept.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar

import numpy as np
import torch
from huggingface_hub.constants import CONFIG_NAME, SAFETENSORS_SINGLE_FILE
from jaxtyping import Float, UInt8
from torch import Tensor

from tuplet.config import DataConfig
from tuplet.data.decoding import UnreadableImageError, decode_image
from tuplet.data.image_tables import ImageTable
from tuplet.data.transforms import eval_transform, short_side
from tuplet.data.walk import LeftOut, images_below
from tuplet.errors import DataError, MissingExtraError, ModelError, SettingsError, one_line
from tuplet.evaluation.calibration import CALIBRATION_FILE, Calibration
from tuplet.inference.encoder import PictureEmbedder
from tuplet.inference.model_card import model_card, training_of
from tuplet.inference.onnx_encoder import open_session
from tuplet.inference.pictures import absolute, calibration_of
from tuplet.inference.trained_model import PREPARATION_FILE, open_model, preparation
from tuplet.models.embedder import Embedder
from tuplet.training.environment import hash_weights

Target: TypeAlias = Literal["onnx", "torch", "hub"]

ENDINGS: dict[Target, str] = {"onnx": ".onnx", "torch": ".pt2", "hub": ""}
"""Of the names of the files; the hub takes a folder."""

OPSET = 18
"""Of ONNX: the lowest that PyTorch's exporter writes without a conversion."""

INFORMATION_FILE = "tuplet.json"
"""Extra file in a .pt2 with what an .onnx has as metadata."""

TOLERANCE = 1e-4
"""Largest allowed difference of an export from the network, in any value of an embedding."""

BATCH_SIZES = (1, 5)
"""Images at once when an export is compared with the network."""

Embedding: TypeAlias = Callable[[Tensor], Tensor]
"""From uint8 pixels [N, 3, S, S] to embeddings [N, D]."""

NUM_PICTURES = 10
"""Pictures to compare on: a multiple of each of `BATCH_SIZES`."""

T = TypeVar("T")

_MOST_BYTES = 2**31 - 2**24  # of a protobuf, with room for the graph
_HUB_FILES = frozenset(
    {CONFIG_NAME, SAFETENSORS_SINGLE_FILE, PREPARATION_FILE, CALIBRATION_FILE, "README.md"}
)


def export(
    folder: str | os.PathLike[str],
    to: Target,
    output: str | os.PathLike[str],
    *,
    check: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
) -> float:
    """Export the model of a run or a saved model, and return its largest difference from the network.

    Args:
        folder: of a run, or one that `Embedder.save_pretrained` wrote.
        to: onnx, one file for onnxruntime and others; torch, one for `torch.export.load`; hub, a folder for
            the Hugging Face hub.
        output: file ending in .onnx or .pt2, or folder; appears whole and compared, or not at all.
        check: folder of pictures to compare on; by default noise.
        overwrite: replace what an earlier export wrote.

    Raises:
        InputError: (a ValueError) as `open_model`, `export_file` and `export_hub` raise.
    """
    model, target = open_model(Path(folder)), Path(output)
    network, data, run = model.network, model.config.data, model.run
    pixels = noise(data) if check is None else pictures_of_folder(Path(check), data)
    if to == "hub":
        card = model_card(network, data, None if run is None else training_of(run, None))
        calibration, _ = exported_calibration(network, data, Path(folder))
        return export_hub(
            network, target, pixels, data=data, card=card, calibration=calibration, overwrite=overwrite
        )
    if target.suffix != ENDINGS[to]:
        raise SettingsError(f"{target} does not end in {ENDINGS[to]}; want such a file", subject=target)
    facts = {} if run is None else {"run": run.config.name}
    return export_file(network, target, pixels, data=data, facts=facts, overwrite=overwrite)


def export_file(
    network: Embedder,
    file: Path,
    pixels: UInt8[Tensor, "N 3 S S"],
    *,
    data: DataConfig,
    facts: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> float:
    """Write a network as a file that needs no tuplet, and return its largest difference from the network.

    .onnx: the input `pixels` is uint8 [N, 3, S, S] with any N, the output `embeddings` float32 [N, D]; the
    facts are in the metadata, under keys that begin with "tuplet.". .pt2: `torch.export.load(file).module()`
    is called like the network, with any number of images of one size, and needs PyTorch alone; the facts are
    in the extra file `INFORMATION_FILE`.

    Args:
        network: on the CPU, in evaluation mode.
        file: ends in .onnx or .pt2, its format; appears whole and compared, or not at all.
        pixels: images to compare on, at least `max(BATCH_SIZES)`, of the size that the file will take.
        data: how pictures become such squares; written beside the network.
        facts: more to write beside it.
        overwrite: whether `file` may exist already.

    Raises:
        SettingsError: the file exists, or has another ending.
        ModelError: the network cannot be exported, or the export differs by more than `TOLERANCE`.
        MissingExtraError: for .onnx, a package is missing.
    """
    save = {".onnx": _save_onnx, ".pt2": _save_torch}.get(file.suffix)
    if save is None:
        raise SettingsError(f"{file} ends in {file.suffix!r}; want .onnx or .pt2", subject=file)
    if save is _save_onnx:
        _require_onnx(network)
    known = {
        **(facts or {}),
        "architecture": str(network.backbone.pretrained_cfg["architecture"]),
        "embedding": "[N, D] float32 as the LayerNorm gives them, not of length one; compare by cosine",
        "preprocessing": json.dumps(preparation(data)),
        "weights_sha256": hash_weights(network.state_dict()),
    }
    wanted = embeddings_by_batch(network, pixels)
    with _written_beside(file, overwrite) as partial:
        return largest_difference(save(network, pixels[:2], partial, known), wanted, pixels)


def _require_onnx(network: Embedder) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "search", purpose="ONNX")
    num_bytes = sum(value.nbytes for value in network.state_dict().values())
    if num_bytes > _MOST_BYTES:
        raise ModelError(
            f"the weights have {num_bytes / 1e9:.1f} GB; want at most 2 GB for one ONNX file, or another"
            " target: torch or hub",
            given=num_bytes,
            wanted=_MOST_BYTES,
        )


def _save_onnx(network: Embedder, pixels: Tensor, file: Path, known: Mapping[str, str]) -> Embedding:
    """Write the file, and return the network as it is in there."""
    with _exporting("ONNX"):
        program = torch.onnx.export(
            network,
            (pixels,),
            input_names=["pixels"],
            output_names=["embeddings"],
            dynamic_shapes={"pixels": {0: "N"}},
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        assert program is not None
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    model = program.model
    ClearMetadataAndDocStringPass()(model)  # the exporter's notes name files of this machine
    model.producer_name, model.producer_version = "tuplet", version("tuplet")
    model.metadata_props.update({f"tuplet.{key}": value for key, value in known.items()})
    program.save(file, external_data=False)
    with _exporting("ONNX"):
        return onnx_embedding(file)


def _save_torch(network: Embedder, pixels: Tensor, file: Path, known: Mapping[str, str]) -> Embedding:
    """Write the file, and return the network as it is in there."""
    shapes = {"pixels": {0: torch.export.Dim("N", min=1)}}
    with _exporting("torch.export"):
        program = torch.export.export(network, (pixels,), dynamic_shapes=shapes)
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # names files of this machine
    torch.export.save(program, file, extra_files={INFORMATION_FILE: json.dumps(known, indent=2)})
    return torch.export.load(file).module()


def export_hub(
    network: Embedder,
    folder: Path,
    pixels: UInt8[Tensor, "N 3 S S"],
    *,
    data: DataConfig,
    card: str,
    calibration: Calibration | None = None,
    overwrite: bool = False,
) -> float:
    """Write a folder for `Embedder.from_pretrained`, and return its largest difference from the network.

    The folder has weights as safetensors, config.json, `PREPARATION_FILE`, README.md and, where there is a
    calibration, `CALIBRATION_FILE`, and nothing else.

    Args:
        network: see `export_file`.
        folder: appears whole and compared, or not at all.
        pixels: see `export_file`.
        data: how pictures become such squares.
        card: README.md.
        calibration: from `exported_calibration`.
        overwrite: whether the folder may hold such an export already; it may never hold anything else.

    Raises:
        SettingsError: the folder is not empty.
        ModelError: the network differs.
    """
    wanted = embeddings_by_batch(network, pixels)
    with _written_beside(folder, overwrite) as partial:
        partial.mkdir()
        (partial / "README.md").write_text(card, encoding="utf-8")
        stated = json.dumps(preparation(data), indent=2)
        (partial / PREPARATION_FILE).write_text(stated + "\n", encoding="utf-8")
        if calibration is not None:
            calibration.write(partial / CALIBRATION_FILE)
        network.save_pretrained(partial)
        return largest_difference(Embedder.from_pretrained(str(partial)), wanted, pixels)


def exported_calibration(network: Embedder, data: DataConfig, folder: Path) -> tuple[Calibration | None, str]:
    """Return the calibration that goes with an export, without paths of this machine, or why there is none.

    Args:
        network: of the folder.
        data: how the export prepares pictures; a calibration belongs to one image size.
        folder: of a run or a saved model.
    """
    model = PictureEmbedder(network, data, absolute(folder), torch.device("cpu")).model
    try:
        found = calibration_of(model)
    except ModelError as error:
        return None, str(error)
    return None if found is None else found.without_paths(), ""


def require_free(target: Path, overwrite: bool) -> None:
    """Raise an error if an export may not be written to a file or folder.

    An empty folder is free. With `overwrite` so is a file, and a folder of an earlier export.

    Raises:
        SettingsError: something else is there.
    """
    if target.is_dir():
        others = sorted({path.name for path in target.iterdir()} - _HUB_FILES)
        if others:
            raise SettingsError(
                f"{target} is a folder that holds {others[0]}; want a name that is not taken", subject=target
            )
        taken = any(target.iterdir())
    else:
        taken = target.exists()
    if taken and not overwrite:
        raise SettingsError(f"{target} exists; want another --output, or --overwrite", subject=target)


@contextmanager
def _written_beside(target: Path, overwrite: bool) -> Iterator[Path]:
    """Give a path in a hidden folder beside the target; what is there at the end takes the target's place."""
    require_free(target, overwrite)
    target = target.resolve()  # a link stays a link
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=target.parent, prefix=f".{target.name}.", suffix=".partial"
    ) as beside:
        partial = Path(beside, target.name)
        yield partial
        require_free(target, overwrite)  # someone may have written it meanwhile
        if target.is_dir():
            target.rename(Path(beside, "old"))
        partial.replace(target)


@contextmanager
def _exporting(target: str) -> Iterator[None]:
    """Silence the exporter, and turn its refusal into a ModelError of one line."""
    said = io.StringIO()
    try:
        with torch.no_grad(), redirect_stdout(said), redirect_stderr(said):
            yield
    except Exception as error:  # each of the two exporters has many ways to refuse a network
        lines = str(error).strip().splitlines() or [""]
        raise ModelError(
            f"PyTorch {torch.__version__} cannot export this network to {target}"
            f" ({type(error).__name__}: {lines[0][:200]}); want another backbone, or --to hub",
            subject=target,
        ) from error


def onnx_embedding(file: Path) -> Embedding:
    """Return the network in an ONNX file as a function, which onnxruntime runs on the CPU."""
    session = open_session(file, torch.get_num_threads())

    def embedding(pixels: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["embeddings"], {"pixels": pixels.numpy()})[0])

    return embedding


def embeddings_by_batch(network: Embedder, pixels: UInt8[Tensor, "N 3 S S"]) -> list[Float[Tensor, "N D"]]:
    """Compute the embeddings of all images in batches of each of `BATCH_SIZES`.

    Raises:
        ModelError: the network is in training mode, or cannot take images of this size.
        DataError: there are fewer than `max(BATCH_SIZES)` images.
    """
    if network.training:
        raise ModelError("the network is in training mode; want network.eval() before it is exported")
    if len(pixels) < max(BATCH_SIZES):
        raise DataError(f"there are {len(pixels)} images to compare on; want {max(BATCH_SIZES)} or more")
    try:
        with torch.inference_mode():
            return [torch.cat([network(part) for part in torch.split(pixels, size)]) for size in BATCH_SIZES]
    except (AssertionError, RuntimeError) as error:
        raise network.size_error(pixels.shape[-1], error) from None


def largest_difference(
    exported: Embedding, wanted: Sequence[Float[Tensor, "N D"]], pixels: UInt8[Tensor, "N 3 S S"]
) -> float:
    """Compute the largest difference in any value of any embedding, over all `BATCH_SIZES`.

    An export may have one batch size built in, and may round differently with another: hence two sizes.

    Args:
        exported: to compare.
        wanted: what `embeddings_by_batch` returned for the network.
        pixels: the same as there.

    Raises:
        ModelError: a difference beyond `TOLERANCE`, another shape, or a failure.
    """
    differences = []
    with torch.inference_mode():
        for size, embeddings in zip(BATCH_SIZES, wanted, strict=True):
            try:
                found = torch.cat([exported(part) for part in torch.split(pixels, size)])
            except Exception as error:  # what runs it has its own exceptions
                raise ModelError(
                    f"the export cannot embed {size} images at once ({one_line(error)});"
                    " want another backbone, or --to hub"
                ) from error
            if found.shape != embeddings.shape:
                raise ModelError(f"the export gives {list(found.shape)} for {list(embeddings.shape)} values")
            differences.append((found - embeddings).abs().max())
    largest = float(torch.stack(differences).max())
    if not largest <= TOLERANCE:  # written so that NaN does not pass
        raise ModelError(
            f"the export differs from the network by {largest:.1e}; want at most {TOLERANCE:.0e}, so nothing"
            " was written: want another backbone, or --to hub",
            given=largest,
            wanted=TOLERANCE,
        )
    return largest


def pictures_of_folder(
    folder: Path, data: DataConfig, left_out: LeftOut | None = None
) -> UInt8[Tensor, "N 3 S S"]:
    """Read `NUM_PICTURES` images at any depth of a folder as squares, evenly spaced by path.

    Unreadable images are skipped. If there are too few, the first ones come again.

    Args:
        folder: of images, in class folders or not.
        data: how they become squares.
        left_out: files and folders that were left out are added to it.

    Raises:
        DataError: no such folder, or no image in it that can be read.
    """
    if not folder.is_dir():
        raise DataError(f"--check {folder} is no folder; want one with images in it", subject=folder)
    left_out = LeftOut() if left_out is None else left_out
    files = sorted(map(Path, images_below(folder, left_out)))
    found = _evenly(files, lambda file: decode_image(file, min_side=short_side(data)), data)
    if found is None:
        notes = "".join(f" ({note})" for note in left_out.notes(folder))
        problem = f"--check {folder} has no images that can be read{notes}; want one or more"
        raise DataError(problem, subject=folder)
    return found


def pictures_of_table(table: ImageTable, data: DataConfig) -> UInt8[Tensor, "N 3 S S"] | None:
    """Read `NUM_PICTURES` images of a table, evenly spaced, as squares; None if none can be read.

    Args:
        table: any images.
        data: how they become squares.
    """
    return _evenly(range(len(table)), table.image, data)


def noise(data: DataConfig) -> UInt8[Tensor, "N 3 S S"]:
    """Return `NUM_PICTURES` squares of noise, always the same; of `data` only `image_size` counts."""
    shape = (NUM_PICTURES, 3, data.image_size, data.image_size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def _evenly(
    items: Sequence[T], read: Callable[[T], UInt8[Tensor, "3 H W"]], data: DataConfig
) -> UInt8[Tensor, "N 3 S S"] | None:
    transform = eval_transform(data)
    squares = []
    for row in np.unique(np.linspace(0, len(items) - 1, NUM_PICTURES).round().astype(int)) if items else ():
        try:
            squares.append(transform(read(items[row])))
        except UnreadableImageError:
            continue
    if not squares:
        return None
    return torch.stack([squares[number % len(squares)] for number in range(NUM_PICTURES)])
