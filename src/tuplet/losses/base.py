"""What a training asks of its loss, whichever it is, and what every loss checks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tuplet.errors import InputError
from tuplet.losses.many_classes.shards import ClassShard


@dataclass(frozen=True)
class LossTerms:
    """A loss, and in the dataclasses derived from this one its parts, each a scalar with its gradient.

    Attributes:
        total: what is minimised.
    """

    total: Float[Tensor, ""]

    def parts(self) -> dict[str, Float[Tensor, ""]]:
        """Every term by its name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


class MetricLoss(nn.Module, ABC):
    """A loss of embeddings and their labels, which may have parameters of its own.

    Attributes:
        shard: the classes whose parameters this rank keeps; None: all.
    """

    shard: ClassShard | None = None

    @abstractmethod
    def terms(self, embeddings: Float[Tensor, "N D"], labels: Int[Tensor, " N"]) -> LossTerms:
        """The loss of one batch in its parts."""

    def class_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that have a row a class, by their names in `named_parameters`."""
        return {}

    def forward(
        self, embeddings: Float[Tensor, "N D"], labels: Int[Tensor, " N"], indices_tuple: object = None
    ) -> Float[Tensor, ""]:
        """The loss of one batch.

        Args:
            embeddings: as the network gives them, not normalised.
            labels: class of each sample, in 0..C-1.
            indices_tuple: ignored; there so that pytorch-metric-learning can call this loss with a miner.

        Returns: a scalar.

        Raises:
            InputError: (a ValueError) wrong shapes, labels outside 0..C-1, NaN or infinity, an empty batch,
                or one too small for the loss.
        """
        return self.terms(embeddings, labels).total


def require_batch(embeddings: Tensor, labels: Tensor, *, width: int, num_classes: int) -> None:
    """Nothing.

    Raises:
        InputError: (a ValueError) shapes other than [N, width] and [N], labels outside 0..num_classes-1, NaN
            or infinity, or an empty batch.
    """
    if embeddings.ndim != 2 or embeddings.shape[1] != width:
        raise InputError(f"embeddings have shape {list(embeddings.shape)}; want [N, {width}]")
    if labels.shape != embeddings.shape[:1]:
        raise InputError(
            f"labels have shape {list(labels.shape)}; want [{len(embeddings)}], one label an embedding"
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise InputError(f"labels are of type {labels.dtype}; want integers in 0..{num_classes - 1}")
    if len(labels) == 0:
        raise InputError("the batch is empty; want at least one embedding")
    low, high = (int(bound) for bound in torch.aminmax(labels.long()))
    if low < 0 or high >= num_classes:
        raise InputError(
            f"labels run from {low} to {high}; want 0..{num_classes - 1}: renumber them, or raise num_classes"
        )
    if not bool(torch.isfinite(embeddings).all()):
        row = int((~torch.isfinite(embeddings)).any(dim=1).nonzero()[0])
        raise InputError(
            f"embeddings hold NaN or infinity, first in row {row}; want finite numbers"
            " (lower the learning rate, or clip gradients)"
        )


def require_settings(*, sizes: dict[str, object], positive: dict[str, object], lambda_s: object) -> None:
    """Nothing.

    Raises:
        InputError: (a ValueError) a size that is no whole number >= 1, a number that is not finite and > 0,
            or a lambda_s that is not finite and >= 0.
    """
    for name, size in sizes.items():
        if not (isinstance(size, int) and size >= 1):
            raise InputError(f"{name} is {size!r}; want 1 or more, a whole number")
    for name, value in positive.items():
        if not (isinstance(value, int | float) and 0 < value < float("inf")):
            raise InputError(f"{name} is {value!r}; want a finite number > 0")
    if not (isinstance(lambda_s, int | float) and 0 <= lambda_s < float("inf")):
        raise InputError(f"lambda_s is {lambda_s!r}; want a finite number >= 0")


def require_alpha(alpha: object, *, control: bool) -> None:
    """Nothing.

    Raises:
        InputError: (a ValueError) an alpha that is no finite number, or, but for a control, not > 0.
    """
    least = float("-inf") if control else 0
    if not (isinstance(alpha, int | float) and least < alpha < float("inf")):
        wanted = "a finite number" if control else "a finite number > 0, or alpha_control=True"
        raise InputError(f"alpha is {alpha!r}; want {wanted}")


def require_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    """Nothing.

    Raises:
        InputError: (a ValueError) the value is none of the choices.
    """
    if value not in choices:
        raise InputError(f"{name} is {value!r}; want one of {', '.join(map(str, choices))}")
