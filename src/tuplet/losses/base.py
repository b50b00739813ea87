"""What a training asks of its loss, whichever it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields

from jaxtyping import Float, Int
from torch import Tensor, nn

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
