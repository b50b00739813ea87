"""The learning rate of an epoch: constant in the warm-up, then steps, a cosine, or constant."""

from __future__ import annotations

import math

from tuplet.config import ScheduleConfig


def learning_rate_factor(schedule: ScheduleConfig, epoch: int) -> float:
    """Compute the factor of all learning rates in an epoch; 1 during and right after the warm-up.

    Args:
        schedule: `decay` and its numbers.
        epoch: 1..epochs.
    """
    past = max(0, epoch - 1 - schedule.warmup_epochs)
    if schedule.decay == "step":
        return float(schedule.step_gamma ** (past // schedule.step_epochs))
    if schedule.decay == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * past / max(1, schedule.epochs - schedule.warmup_epochs)))
    return 1.0
