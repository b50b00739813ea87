"""Trials and their settings in a few characters."""

from __future__ import annotations

from optuna.trial import FrozenTrial

from tuplet.tuning.search import ended_early
from tuplet.tuning.space import Value


def setting(path: str, value: Value) -> str:
    """A setting in a few characters: the last part of its path and its value."""
    return f"{path.rsplit('.', 1)[-1]} {value_text(value)}"


def value_text(value: Value) -> str:
    """A value with as many digits as a person reads."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def outcome(trial: FrozenTrial) -> str:
    """What became of a trial: its value in percent, or a word."""
    if "diverged" in trial.user_attrs:
        return "diverged"
    if "impossible" in trial.user_attrs:
        return "impossible"
    if ended_early(trial):
        return "ended early"
    if trial.value is None:
        return "failed"
    return f"{100 * trial.value:.2f} %"


def percent(value: float) -> str:
    """A score in [0, 1] as a percentage."""
    return f"{100 * value:.1f} %"
