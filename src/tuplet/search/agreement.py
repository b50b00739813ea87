"""Whether an exported network gives the embeddings that the network itself gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from tuplet.errors import InputError
from tuplet.models.embedder import Embedder

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
