"""The base class of the losses, and the checks of a batch that all of them share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tuplet.config.checks import require, type_name, whole_number
from tuplet.errors import DataError
from tuplet.losses.faults import NUM_NOTES, Fault, LateReader, note_values, require_values
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


Terms = TypeVar("Terms", bound=LossTerms)


class MetricLoss(nn.Module, ABC):
    """A loss of embeddings and their labels, which may have parameters of its own.

    Attributes:
        shard: the classes whose parameters this rank keeps; None for all.
        num_classes: training classes, C.
        matryoshka: leading widths whose loss is added, ascending; empty for none.
        faults: the number of calls, and the first fault in the values of a batch; see `note_values`. Written
            on devices other than a CPU and in compiled code.
        raises_late: whether a later call raises the error of an earlier batch on a GPU. If False, and in
            compiled code, only `require_no_faults` raises it.
    """

    shard: ClassShard | None = None
    num_classes: int
    matryoshka: tuple[int, ...] = ()
    faults: Int[Tensor, " 5"]

    def __init__(self) -> None:
        super().__init__()
        self.raises_late = True
        self._late = LateReader()
        self.register_buffer("faults", torch.zeros(NUM_NOTES, dtype=torch.int64), persistent=False)

    @abstractmethod
    def terms(self, embeddings: Float[Tensor, "N D"], labels: Int[Tensor, " N"]) -> LossTerms:
        """Compute the loss of one batch in its parts."""

    @abstractmethod
    def leading_loss(self, leading: Float[Tensor, "N w"], labels: Int[Tensor, " N"]) -> Float[Tensor, ""]:
        """Compute the loss of the first w coordinates, with those of the class parameters.

        Args:
            leading: the first w of the D coordinates of each embedding, checked.
            labels: class of each sample, checked.
        """

    def with_leading(
        self, terms: Terms, embeddings: Float[Tensor, "N D"], labels: Int[Tensor, " N"]
    ) -> Terms:
        """Add the losses of the leading widths to the total, each with weight 1.

        References: Kusupati et al., "Matryoshka Representation Learning", NeurIPS 2022, Eq. 1.
        """
        if not self.matryoshka:
            return terms
        leading = [self.leading_loss(embeddings[:, :width], labels) for width in self.matryoshka]
        return replace(terms, total=torch.stack([terms.total, *leading]).sum())

    def class_parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters that have a row per class, by their names in `named_parameters`."""
        return {}

    def forward(
        self, embeddings: Float[Tensor, "N D"], labels: Int[Tensor, " N"], indices_tuple: object = None
    ) -> Float[Tensor, ""]:
        """Compute the loss of one batch, a scalar.

        Args:
            embeddings: output of the network, not normalised.
            labels: class of each sample, in 0..C-1.
            indices_tuple: ignored; it lets pytorch-metric-learning call this loss with a miner.
        Returns: a scalar; on a GPU, NaN for a batch with labels out of range, NaN or infinity.
        Raises:
            DataError: (a ValueError) no tensors, wrong shapes, an empty batch, or one too small for the loss;
                embeddings, labels and loss on several devices; labels outside 0..C-1, NaN or infinity. Values
                raise at once on a CPU and in a later call on a GPU.
        """
        return self.terms(embeddings, labels).total

    def checked(self, embeddings: Tensor, labels: Tensor, *, width: int) -> tuple[Tensor, Tensor]:
        """Check a batch, and return it with labels of int64 in range; see `forward` for the errors."""
        require_batch(embeddings, labels, width=width, num_classes=self.num_classes)
        self._require_one_device(embeddings, labels)
        labels = labels.long()
        compiling = torch.compiler.is_compiling()
        if embeddings.device.type == "cpu" and not compiling:
            require_values(embeddings, labels, self.num_classes)
            return embeddings, labels
        inside = note_values(self.faults, embeddings, labels, self.num_classes)
        if self.raises_late and not compiling:
            self._raise(self._late.offer(self.faults))
        # Indexing with a label out of range would break the CUDA context for the rest of the process. Only
        # clamping it would give a plausible but wrong loss, so the sample, and with it the loss, becomes NaN.
        poisoned = torch.where(inside[:, None], embeddings, torch.nan)
        return poisoned, labels.clamp(0, self.num_classes - 1)

    def require_no_faults(self) -> None:
        """Raise a `DataError` if the device has noted a fault in a batch; waits for the device."""
        self._raise([self.faults.tolist()])

    def forget_faults(self) -> None:
        """Count calls from 1 again, and forget what was wrong with earlier ones."""
        self.faults.zero_()
        self._late = LateReader()

    def _require_one_device(self, embeddings: Tensor, labels: Tensor) -> None:
        device = embeddings.device
        if self.faults.device != device:
            fault = f"embeddings are on {device} and the loss on {self.faults.device}"
            wanted = f"one device: loss.to({str(device)!r}), before the optimizer is made"
            raise _batch_error(fault, wanted, "embeddings", device)
        if labels.device != device:
            fault = f"labels are on {labels.device} and embeddings on {device}"
            raise _batch_error(fault, f"one device: labels.to({str(device)!r})", "labels", labels.device)

    def _raise(self, arrived: list[list[float]] | None) -> None:
        if arrived is not None and arrived[0][1] > 0:
            fault = Fault(*(int(number) for number in arrived[0][1:]))
            self.forget_faults()
            raise fault.error(self.num_classes, late=True)


def leading_widths(widths: Sequence[int], embedding_dim: int) -> tuple[int, ...]:
    """Return leading widths as a tuple, or raise a `SettingsError` unless they ascend within 1..D - 1."""
    wanted = f"widths in 1..{embedding_dim - 1}, ascending; the full width {embedding_dim} is always there"
    numbers = tuple(whole_number("matryoshka", width) for width in widths)
    ascends = all(first < second for first, second in pairwise([*numbers, embedding_dim]))
    require(ascends, "matryoshka", widths, wanted)
    return numbers


def require_batch(embeddings: Tensor, labels: Tensor, *, width: int, num_classes: int) -> None:
    """Raise a `DataError` unless a batch has the shapes and types of a loss; its values are not read.

    Args:
        embeddings: floats `[N, width]`, N >= 1.
        labels: integers `[N]`.
        width: D of the loss.
        num_classes: C of the loss, for the message.
    """
    for name, value in (("embeddings", embeddings), ("labels", labels)):
        if not isinstance(value, Tensor):
            is_named = name == "labels" and _holds_names(value)
            convert = "numpy.unique(labels, return_inverse=True)[1]" if is_named else name
            wanted = f"a torch.Tensor, such as torch.as_tensor({convert})"
            raise _batch_error(f"{name} are of type {type_name(value)}", wanted, name, type(value))
    if embeddings.ndim != 2 or embeddings.shape[1] != width:
        shape = list(embeddings.shape)
        raise _batch_error(f"embeddings have shape {shape}", f"[N, {width}]", "embeddings", shape)
    if not embeddings.is_floating_point():
        given, wanted = embeddings.dtype, "floats, as the network gives them"
        raise _batch_error(f"embeddings are of type {given}", wanted, "embeddings", given)
    if labels.shape != embeddings.shape[:1]:
        shape = list(labels.shape)
        wanted = f"[{len(embeddings)}], one label an embedding"
        raise _batch_error(f"labels have shape {shape}", wanted, "labels", shape)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        wanted = f"integers in 0..{num_classes - 1}"
        raise _batch_error(f"labels are of type {labels.dtype}", wanted, "labels", labels.dtype)
    if len(labels) == 0:
        raise _batch_error("the batch is empty", "at least one embedding", "embeddings", 0)


def _holds_names(labels: object) -> bool:
    """Return whether labels are names of classes, or a list of some."""
    if isinstance(labels, np.ndarray):
        return labels.dtype.kind in "USO"
    return isinstance(labels, list | tuple) and any(isinstance(label, str | bytes) for label in labels)


def _batch_error(fault: str, wanted: str, subject: str, given: object) -> DataError:
    return DataError(f"{fault}; want {wanted}", subject=subject, given=given, wanted=wanted)
