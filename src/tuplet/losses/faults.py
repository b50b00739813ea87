"""Faults in the values of a batch: raised at once on a CPU, noted on other devices and raised later.

To look at a value of a device, the host waits until the device has done all that it was asked to do before.
A training step that looks at one value therefore loses the lead that keeps the device busy. So a device notes
the first fault itself, in a tensor of a few numbers, and the host reads a copy of it once that has arrived.
"""

from __future__ import annotations

import math
from typing import NamedTuple, final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from tuplet.errors import DataError

NUM_NOTES = 5
"""Numbers in the notes of a device: those of `Fault`, after the calls so far."""


class Fault(NamedTuple):
    """What is wrong with the values of a batch; all is well where call is 0."""

    call: int
    """The call of the loss that was given the batch, from 1 on."""
    low: int
    """The lowest label."""
    high: int
    """The highest label."""
    row: int
    """The first embedding that is not finite; as many as there are, if all are."""

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
    # A sum is finite only if all that it adds is. It may also overflow: then each number is looked at.
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
    """Count a call in the notes, note its fault unless they have one, and return which labels are in range.

    Nothing is read on the host, and nothing depends on a value: torch.compile and CUDA graphs may hold it.

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
        """Return the numbers offered last if they have arrived; else None, as always beside a GPU.

        The tensors are copied unless other copies are still on their way, and may change afterwards.
        """
        if tensors[0].device.type != "cuda" or torch.cuda.is_current_stream_capturing():
            return None
        arrived = None
        if self._arrived is not None:
            if not self._arrived.query():  # type: ignore[no-untyped-call]
                return None
            arrived = [copy.tolist() for copy in self._copies]
        if not self._copies:
            self._copies = [torch.empty(each.shape, dtype=each.dtype, pin_memory=True) for each in tensors]
        for copy, each in zip(self._copies, tensors, strict=True):
            copy.copy_(each, non_blocking=True)
        self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._arrived.record()
        return arrived

    def __deepcopy__(self, memo: object) -> LateReader:
        return LateReader()

    def __reduce__(self) -> tuple[type[LateReader], tuple[()]]:
        return LateReader, ()
