"""Faults in the values of a batch: raised at once on a CPU, noted on other devices and raised later.

The host queues work for a device and runs ahead of it. To read a value, it has to wait until the device has
done all queued work, and then the device has nothing to do. So the device itself notes the first fault in a
small tensor, and the host reads a copy of it once that has arrived.
"""

from __future__ import annotations

import math
from typing import NamedTuple, final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from tuplet.errors import DataError

NUM_NOTES = 5
"""Numbers in the notes of a device: the count of calls, then the fields of `Fault`."""


class Fault(NamedTuple):
    """The fault in the values of a batch; call 0 means that there is none."""

    call: int
    """The call of the loss that was given the batch, from 1 on."""
    low: int
    """The lowest label."""
    high: int
    """The highest label."""
    row: int
    """The first embedding that is not finite; N if all are finite."""

    def error(self, num_classes: int, *, late: bool) -> DataError:
        """Return the error that names the fault; if late, with the call."""
        if self.low < 0 or self.high >= num_classes:
            fault, subject = f"labels run from {self.low} to {self.high}", "labels"
            wanted = f"0..{num_classes - 1}: renumber them, or raise num_classes"
            given: object = (self.low, self.high)
        else:
            fault, subject = f"embeddings hold NaN or infinity, first in row {self.row}", "embeddings"
            wanted = "finite numbers (lower the learning rate, or clip gradients)"
            given = self.row
        when = f" in call {self.call}" if late else ""
        return DataError(f"{fault}{when}; want {wanted}", subject=subject, given=given, wanted=wanted)


def require_values(embeddings: Float[Tensor, "N D"], labels: Int64[Tensor, " N"], num_classes: int) -> None:
    """Raise a `DataError` unless embeddings are finite and labels in range; reads both on the host."""
    low, high = (int(bound) for bound in torch.aminmax(labels))
    # A finite sum proves that all values are finite, in one fast pass. The sum may also overflow: only if it
    # is not finite is each value checked.
    finite = math.isfinite(embeddings.detach().sum().item()) or bool(embeddings.isfinite().all())
    if low >= 0 and high < num_classes and finite:
        return
    row = len(labels) if finite else int((~torch.isfinite(embeddings)).any(dim=1).nonzero()[0])
    raise Fault(1, low, high, row).error(num_classes, late=False)


@torch.no_grad()
def note_values(
    notes: Int64[Tensor, " 5"],
    embeddings: Float[Tensor, "N D"],
    labels: Int64[Tensor, " N"],
    num_classes: int,
) -> Tensor:
    """Count a call in the notes, add its fault if it is the first, and return which labels are in range.

    The host reads no value and no shape depends on one, so torch.compile and CUDA graphs can contain it.

    Args:
        notes: the calls so far and the first fault; updated in place.
        embeddings: of the batch.
        labels: of the batch, one or more.
        num_classes: labels in 0..num_classes-1 are in range.
    """
    low, high = torch.aminmax(labels)
    rows = torch.arange(len(labels), device=labels.device)
    row = torch.where(embeddings.isfinite().all(dim=1), len(labels), rows).amin()
    inside = (labels >= 0) & (labels < num_classes)
    faulty = ~inside.all() | (row < len(labels))
    calls = notes[0] + 1
    fresh = torch.stack([calls, torch.where(faulty, calls, 0), low, high, row])
    notes.copy_(torch.where(notes[1] == 0, fresh, torch.cat([calls[None], notes[1:]])))
    return inside


@final
class LateReader:
    """Brings small tensors of a GPU to the host without making it wait, one copy at a time."""

    def __init__(self) -> None:
        self._copies: list[Tensor] = []
        self._arrived: torch.cuda.Event | None = None

    def offer(self, *tensors: Tensor) -> list[list[float]] | None:
        """Return the numbers of the last copy if it has arrived, and start the next; otherwise return None.

        While a copy is on its way, no other is started. The tensors may change afterwards.

        Args:
            tensors: on one GPU; for tensors elsewhere the result is always None.
        """
        if tensors[0].device.type != "cuda" or torch.cuda.is_current_stream_capturing():
            return None
        arrived = None
        if self._arrived is not None:
            if not self._arrived.query():  # type: ignore[no-untyped-call]
                return None
            arrived = [copy.tolist() for copy in self._copies]
        if not self._copies:
            self._copies = [torch.empty(part.shape, dtype=part.dtype, pin_memory=True) for part in tensors]
        for copy, tensor in zip(self._copies, tensors, strict=True):
            copy.copy_(tensor, non_blocking=True)
        self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._arrived.record()
        return arrived

    def __deepcopy__(self, memo: object) -> LateReader:
        return LateReader()

    def __reduce__(self) -> tuple[type[LateReader], tuple[()]]:
        return LateReader, ()
