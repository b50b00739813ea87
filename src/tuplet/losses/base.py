"""What training asks of a loss, and what every loss checks of a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tuplet.config.checks import type_name
from tuplet.errors import DataError
from tuplet.losses.many_classes.shards import ClassShard


@dataclass(frozen=True)
class LossTerms:
    """A loss, and in the dataclasses derived from this one its parts, each a scalar with its gradient.

    Attributes:
        total: what is minimised.
    """

    total: Float[Tensor, ""]

    def parts(self) -> dict[str, Float[Tensor, ""]]:
        """Return every term by its name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


class MetricLoss(nn.Module, ABC):
    """A loss of embeddings and their labels, which may have parameters of its own.

    Attributes:
        shard: the classes whose parameters this rank keeps; None: all.
    """

    shard: ClassShard | None = None

    @abstractmethod
    def terms(self, embeddings: Float[Tensor, "N D"], labels: Int[Tensor, " N"]) -> LossTerms:
        """Compute the loss of one batch in its parts."""

    def class_parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters that have a row a class, by their names in `named_parameters`."""
        return {}

    def forward(
        self, embeddings: Float[Tensor, "N D"], labels: Int[Tensor, " N"], indices_tuple: object = None
    ) -> Float[Tensor, ""]:
        """Compute the loss of one batch, a scalar.

        Args:
            embeddings: as the network gives them, not normalised.
            labels: class of each sample, in 0..C-1.
            indices_tuple: ignored; there so that pytorch-metric-learning can call this loss with a miner.
        Raises:
            DataError: (a ValueError) no tensors, wrong shapes, labels outside 0..C-1, NaN or infinity, an
                empty batch, or one too small for the loss.
        """
        return self.terms(embeddings, labels).total


def require_batch(embeddings: Tensor, labels: Tensor, *, width: int, num_classes: int) -> None:
    """Raise a `DataError` unless embeddings are finite, [N, width], and labels [N] integers in range."""
    for name, value in (("embeddings", embeddings), ("labels", labels)):
        if not isinstance(value, Tensor):
            wanted = f"a torch.Tensor, such as torch.as_tensor({name})"
            raise _batch_error(f"{name} are of type {type_name(value)}", wanted, name, type(value))
    if embeddings.ndim != 2 or embeddings.shape[1] != width:
        shape = list(embeddings.shape)
        raise _batch_error(f"embeddings have shape {shape}", f"[N, {width}]", "embeddings", shape)
    if labels.shape != embeddings.shape[:1]:
        shape = list(labels.shape)
        wanted = f"[{len(embeddings)}], one label an embedding"
        raise _batch_error(f"labels have shape {shape}", wanted, "labels", shape)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        wanted = f"integers in 0..{num_classes - 1}"
        raise _batch_error(f"labels are of type {labels.dtype}", wanted, "labels", labels.dtype)
    if len(labels) == 0:
        raise _batch_error("the batch is empty", "at least one embedding", "embeddings", 0)
    low, high = (int(bound) for bound in torch.aminmax(labels.long()))
    if low < 0 or high >= num_classes:
        wanted = f"0..{num_classes - 1}: renumber them, or raise num_classes"
        raise _batch_error(f"labels run from {low} to {high}", wanted, "labels", (low, high))
    if not bool(torch.isfinite(embeddings).all()):
        row = int((~torch.isfinite(embeddings)).any(dim=1).nonzero()[0])
        wanted = "finite numbers (lower the learning rate, or clip gradients)"
        raise _batch_error(f"embeddings hold NaN or infinity, first in row {row}", wanted, "embeddings", row)


def _batch_error(fault: str, wanted: str, subject: str, given: object) -> DataError:
    return DataError(f"{fault}; want {wanted}", subject=subject, given=given, wanted=wanted)
