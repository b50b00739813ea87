"""Detect losses that are not finite: at once on a CPU, and on a GPU without making a step wait for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor

from tuplet.losses.base import LossTerms, MetricLoss
from tuplet.losses.faults import Fault, LateReader


class Divergence(NamedTuple):
    """The first step of an epoch that cannot be used, and why."""

    step: int
    cause: str


@final
class DivergenceWatch:
    """Watch the batches and losses of an epoch; every call of the loss counts as one step.

    On a GPU, each step notes on the device what is not finite. The host reads the notes once they have
    arrived, usually one step later, and at the end of the epoch at the latest.

    Args:
        loss: watched; its own late errors are switched off, as they would not name the step.
        device: of network and loss.
        alone: whether this is the only rank. Several have to stop together, but notes do not arrive on all in
            the same step, so with several ranks the notes are read at the end of the epoch only.
    """

    def __init__(self, loss: MetricLoss, device: torch.device, *, alone: bool) -> None:
        loss.raises_late = False
        self._loss, self._alone, self._at_once = loss, alone, device.type == "cpu"
        self.start()

    def start(self) -> None:
        """Begin an epoch."""
        self._loss.forget_faults()
        self._names: list[str] = []
        self._notes: Tensor | None = None
        self._reader = LateReader()

    def note(self, terms: LossTerms, step: int) -> Divergence | None:
        """Note the losses of a step, and return the first divergence of the epoch that is known so far."""
        parts = terms.parts()
        if self._at_once:
            if self._loss.faults[1] > 0:  # compiled code notes faults on a CPU too
                return self.look()
            return None if bool(terms.total.isfinite()) else _not_finite(step, parts)
        self._names = list(parts)
        values = torch.stack([value.detach().float() for value in (*parts.values(), terms.total)])
        values[-1] = torch.where(values[-1].isfinite(), 0.0, float(step))
        # Keep the notes of the first step that is not finite.
        self._notes = values if self._notes is None else torch.where(self._notes[-1] > 0, self._notes, values)
        arrived = self._reader.offer(self._loss.faults, self._notes) if self._alone else None
        return None if arrived is None else self._first(*arrived)

    def look(self) -> Divergence | None:
        """Return the first divergence of the epoch so far, or None; waits for the device."""
        return self._first(self._loss.faults.tolist(), [] if self._notes is None else self._notes.tolist())

    def _first(self, faults: Sequence[int | float], notes: list[float]) -> Divergence | None:
        fault = Fault(*(int(number) for number in faults[1:]))
        step = int(notes[-1]) if notes else 0
        if fault.call > 0 and (step == 0 or fault.call <= step):
            # If both are of the same step, the unusable batch is the cause: it makes the loss NaN.
            return Divergence(fault.call, str(fault.error(self._loss.num_classes, late=False)))
        if step == 0:
            return None
        return _not_finite(step, dict(zip(self._names, notes, strict=False)))


def _not_finite(step: int, parts: dict[str, Tensor] | dict[str, float]) -> Divergence:
    listed = ", ".join(f"{name} {float(value)}" for name, value in parts.items())
    return Divergence(step, f"the loss is not finite ({listed})")
