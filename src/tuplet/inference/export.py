"""A trained network as a file or folder that leaves tuplet: ONNX, torch.export, or ready for the hub.

What goes in and comes out is what `Embedder` takes and gives. Nothing is kept that was not compared with it.
"""

from __future__ import annotations

import importlib.util
import io
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
import torch
from huggingface_hub.constants import CONFIG_NAME, SAFETENSORS_SINGLE_FILE
from jaxtyping import Float, UInt8
from torch import Tensor

from tuplet.config import DataConfig
from tuplet.data.class_folders import is_image
from tuplet.data.decoding import UnreadableImageError, decode_image
from tuplet.data.image_tables import ImageTable
from tuplet.data.transforms import eval_transform, short_side
from tuplet.errors import InputError
from tuplet.inference.trained_model import PREPARATION_FILE, preparation
from tuplet.models.embedder import Embedder
from tuplet.training.environment import hash_weights

FileFormat: TypeAlias = Literal["onnx", "torch"]

OPSET = 18
"""Of ONNX: the lowest that PyTorch's exporter writes without a conversion."""

INFORMATION_FILE = "tuplet.json"
"""Extra file in a .pt2 with what an .onnx has as metadata."""

_MOST_BYTES = 2**31 - 2**24  # of a protobuf, with room for the graph
_HUB_FILES = frozenset({CONFIG_NAME, SAFETENSORS_SINGLE_FILE, PREPARATION_FILE, "README.md"})


def export_file(
    network: Embedder,
    file: Path,
    pixels: UInt8[Tensor, "N 3 S S"],
    *,
    to: FileFormat,
    data: DataConfig,
    facts: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> float:
    """The largest difference from the network; `file` then holds it as a program that needs no tuplet.

    onnx: its input `pixels` is uint8 [N, 3, S, S] with any N, its output `embeddings` float32 [N, D]; what
    else is to be known is in its metadata, in keys that begin with "tuplet.". torch: of torch.export;
    `torch.export.load(file).module()` is called like the network, with any number of images of one size, and
    needs PyTorch alone; what else is to be known is in its extra file `INFORMATION_FILE`.

    Args:
        network: on the CPU, in evaluation mode.
        file: ends in .onnx or .pt2; appears whole and compared, or not at all.
        pixels: images to compare on, at least `max(BATCH_SIZES)`, of the size that the file will take.
        to: its format.
        data: how pictures were made such squares, to be known.
        facts: more to be known.
        overwrite: whether `file` may be there already.

    Raises:
        InputError: a file that is there, a network that cannot be exported, or one that differs by more than
            `TOLERANCE`; for onnx also packages that are missing and a network too large for one file.
    """
    if to == "onnx":
        _require_onnx(network)
    wanted = embeddings_by_batch(network, pixels)
    with _written_beside(file, overwrite) as partial:
        save = _save_onnx if to == "onnx" else _save_torch
        program = save(network, pixels[:2], partial, information(network, data, facts))
        return largest_difference(program, wanted, pixels)


def _require_onnx(network: Embedder) -> None:
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if not _installed(name)]
    if missing:
        raise InputError(
            f"ONNX needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed;"
            " want all of it: pip install 'tuplet[search]'"
        )
    num_bytes = sum(value.nbytes for value in network.state_dict().values())
    if num_bytes > _MOST_BYTES:
        raise InputError(
            f"the weights have {num_bytes / 1e9:.1f} GB; want at most 2 GB for one ONNX file, or another"
            " target: torch or hub"
        )


def _save_onnx(network: Embedder, pixels: Tensor, file: Path, known: Mapping[str, str]) -> Embedding:
    """The network as the file then has it."""
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
    model = program.model
    _without_traces(model)
    model.producer_name, model.producer_version = "tuplet", version("tuplet")
    model.metadata_props.update({f"tuplet.{key}": value for key, value in known.items()})
    program.save(file, external_data=False)
    with _exporting("ONNX"):
        return onnx_embedding(file)


def _save_torch(network: Embedder, pixels: Tensor, file: Path, known: Mapping[str, str]) -> Embedding:
    """The network as the file then has it."""
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
    overwrite: bool = False,
) -> float:
    """The largest difference from the network once `folder` is loaded again with `Embedder.from_pretrained`.

    The folder has weights as safetensors, config.json, `PREPARATION_FILE` and README.md, and nothing else.

    Args:
        network: see `export_file`.
        folder: appears whole and compared, or not at all.
        pixels: see `export_file`.
        data: how pictures are made such squares.
        card: README.md.
        overwrite: whether the folder may hold such an export already; it may never hold anything else.

    Raises:
        InputError: a folder that is there and not empty, or a network that differs.
    """
    wanted = embeddings_by_batch(network, pixels)
    with _written_beside(folder, overwrite) as partial:
        partial.mkdir()
        (partial / "README.md").write_text(card, encoding="utf-8")
        stated = json.dumps(preparation(data), indent=2)
        (partial / PREPARATION_FILE).write_text(stated + "\n", encoding="utf-8")
        network.save_pretrained(partial)
        return largest_difference(Embedder.from_pretrained(str(partial)), wanted, pixels)


def information(network: Embedder, data: DataConfig, facts: Mapping[str, str] | None) -> dict[str, str]:
    """What goes into an export beside the network, by name; values are text, and JSON where they have parts.

    Args:
        network: whose weights are hashed as `hash_weights` does.
        data: how pictures are prepared.
        facts: more of it, first.
    """
    return {
        **(facts or {}),
        "architecture": str(network.backbone.pretrained_cfg["architecture"]),
        "embedding": "[N, D] float32 as the LayerNorm gives them, not of length one; compare by cosine",
        "preprocessing": json.dumps(preparation(data)),
        "weights_sha256": hash_weights(network.state_dict()),
    }


def require_free(target: Path, overwrite: bool) -> None:
    """Nothing; raises InputError where an export may not be written to a file or folder.

    A folder is free where it is empty. With `overwrite` a file is, and a folder of an earlier export.
    """
    if target.is_dir():
        others = sorted({path.name for path in target.iterdir()} - _HUB_FILES)
        if others:
            raise InputError(f"{target} is a folder that holds {others[0]}; want a name that is not taken")
        taken = any(target.iterdir())
    else:
        taken = target.exists()
    if taken and not overwrite:
        raise InputError(f"{target} exists; want another --output, or --overwrite")


@contextmanager
def _written_beside(target: Path, overwrite: bool) -> Iterator[Path]:
    """A path of that name in a hidden folder beside; what is there at the end takes the target's place."""
    require_free(target, overwrite)
    target = target.resolve()  # a link stays one
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=target.parent, prefix=f".{target.name}.", suffix=".partial"
    ) as beside:
        partial = Path(beside, target.name)
        yield partial
        require_free(target, overwrite)  # it may have come into being meanwhile
        if target.is_dir():
            target.rename(Path(beside, "old"))
        partial.replace(target)


@contextmanager
def _exporting(target: str) -> Iterator[None]:
    """Nothing is printed meanwhile; what the exporter refuses becomes one line."""
    said = io.StringIO()
    try:
        with torch.no_grad(), redirect_stdout(said), redirect_stderr(said):
            yield
    except Exception as error:  # each of the two exporters has many ways to refuse a network
        lines = str(error).strip().splitlines() or [""]
        raise InputError(
            f"PyTorch {torch.__version__} cannot export this network to {target}"
            f" ({type(error).__name__}: {lines[0][:200]}); want another backbone, or --to hub"
        ) from error


def _without_traces(model: Any) -> None:
    """Takes the exporter's notes out of an ONNX model: they name files of this machine."""
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    ClearMetadataAndDocStringPass()(model)


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


TOLERANCE = 1e-4
"""Largest difference from the network that an export may have, in any value of an embedding."""

BATCH_SIZES = (1, 5)
"""Images at once when an export is compared with the network."""

Embedding: TypeAlias = Callable[[Tensor], Tensor]
"""From uint8 pixels [N, 3, S, S] to embeddings [N, D]."""


def onnx_embedding(file: Path) -> Embedding:
    """The network in an ONNX file as a function, run by onnxruntime on the CPU with PyTorch's threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def embedding(pixels: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["embeddings"], {"pixels": pixels.numpy()})[0])

    return embedding


def embeddings_by_batch(network: Embedder, pixels: UInt8[Tensor, "N 3 S S"]) -> list[Float[Tensor, "N D"]]:
    """What the network gives for all images, for each of `BATCH_SIZES`.

    Args:
        network: on the CPU, in evaluation mode.
        pixels: at least `max(BATCH_SIZES)` images.

    Raises:
        InputError: a network in training, too few images, or images of a size that it cannot take.
    """
    if network.training:
        raise InputError("the network is in training mode; want network.eval() before it is exported")
    if len(pixels) < max(BATCH_SIZES):
        raise InputError(f"there are {len(pixels)} images to compare on; want {max(BATCH_SIZES)} or more")
    try:
        with torch.inference_mode():
            return [torch.cat([network(part) for part in torch.split(pixels, size)]) for size in BATCH_SIZES]
    except (AssertionError, RuntimeError) as error:
        own = network.backbone.pretrained_cfg["input_size"][-1]
        raise InputError(
            f"the network cannot take images of {pixels.shape[-1]} x {pixels.shape[-1]} pixels"
            f" ({' '.join(str(error).split())[:200]}); want another --data.image-size, such as its own {own}"
        ) from None


def largest_difference(
    exported: Embedding, wanted: Sequence[Float[Tensor, "N D"]], pixels: UInt8[Tensor, "N 3 S S"]
) -> float:
    """The largest difference in any value of any embedding, over all `BATCH_SIZES`.

    Args:
        exported: what is compared.
        wanted: what `embeddings_by_batch` returned for the network.
        pixels: the same as there.

    Raises:
        InputError: a difference beyond `TOLERANCE`, another shape, or a failure.
    """
    differences = []
    with torch.inference_mode():
        for size, embeddings in zip(BATCH_SIZES, wanted, strict=True):
            try:
                found = torch.cat([exported(part) for part in torch.split(pixels, size)])
            except Exception as error:  # what runs it has its own exceptions
                raise InputError(
                    f"the export cannot embed {size} images at once ({' '.join(str(error).split())[:200]});"
                    " want another backbone, or --to hub"
                ) from error
            if found.shape != embeddings.shape:
                raise InputError(f"the export gives {list(found.shape)} for {list(embeddings.shape)} values")
            differences.append((found - embeddings).abs().max())
    largest = float(torch.stack(differences).max())
    if not largest <= TOLERANCE:  # NaN is no difference that may pass
        raise InputError(
            f"the export differs from the network by {largest:.1e}; want at most {TOLERANCE:.0e}, so nothing"
            " was written: want another backbone, or --to hub"
        )
    return largest


NUM_PICTURES = 10
"""So many are compared, a multiple of every batch size of the comparison."""

T = TypeVar("T")


def pictures_of_folder(folder: Path, data: DataConfig) -> UInt8[Tensor, "N 3 S S"]:
    """`NUM_PICTURES` squares of the images at any depth of a folder, evenly spaced by path.

    Unreadable images are passed over. Where there are too few, the first ones come again.

    Args:
        folder: of images, in class folders or not.
        data: how they become squares.

    Raises:
        InputError: no such folder, or no image in it that can be read.
    """
    if not folder.is_dir():
        raise InputError(f"--check {folder} is no folder; want one with images in it")
    files = sorted(path for path in folder.rglob("*") if is_image(path.name) and path.is_file())
    found = _evenly(files, lambda file: decode_image(file, min_side=short_side(data)), data)
    if found is None:
        raise InputError(f"--check {folder} has no images that can be read; want one or more")
    return found


def pictures_of_table(table: ImageTable, data: DataConfig) -> UInt8[Tensor, "N 3 S S"] | None:
    """The same of a table's images, evenly spaced over its rows; None where none can be read.

    Args:
        table: any images.
        data: how they become squares.
    """
    return _evenly(range(len(table)), table.image, data)


def noise(data: DataConfig) -> UInt8[Tensor, "N 3 S S"]:
    """`NUM_PICTURES` squares of noise, always the same.

    Args:
        data: `image_size` is read.
    """
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
