"""The learning rates, and the loss settings that change during training, of each epoch."""

from __future__ import annotations

import math

from tuplet.config import ScheduleConfig


def learning_rate_factor(schedule: ScheduleConfig, epoch: int) -> float:
    """Compute the factor of all learning rates in an epoch; 1 during and right after the warm-up.

    Args:
        schedule: `decay`, its settings, `epochs` and `warmup_epochs` are read.
        epoch: 1..epochs.
    Returns: in [0, 1]; constant, in steps or along a cosine after the warm-up.
    """
    past = max(0, epoch - 1 - schedule.warmup_epochs)
    if schedule.decay == "step":
        return float(schedule.step_gamma ** (past // schedule.step_epochs))
    if schedule.decay == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * past / max(1, schedule.epochs - schedule.warmup_epochs)))
    return 1.0


def scheduled(start: float, end: float | None, epoch: int, epochs: int) -> float:
    """Compute the value of a setting that changes linearly from epoch 1 to the last epoch.

    Args:
        start: value in epoch 1.
        end: value in the last epoch; None: constant.
        epoch: 1..epochs.
        epochs: of the schedule, >= 1.
    """
    return start if end is None or epochs == 1 else start + (end - start) * (epoch - 1) / (epochs - 1)
