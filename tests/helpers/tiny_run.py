"""Arguments for commands that train for a second on generated characters."""

from __future__ import annotations

TINY = {
    "data.glyph-train-classes": 8,
    "data.glyph-test-classes": 4,
    "data.glyphs-per-class": 6,
    "data.image-size": 16,
    "data.resize": 16,
    "data.batch-size": 8,
    "model.embedding-dim": 16,
    "loss.hidden-dim": 16,
    "schedule.epochs": 1,
    "evaluation.kmeans-runs": 1,
    "compute.num-workers": 0,
    "compute.accelerator": "cpu",
}


def tiny_options(**changes: object) -> list[str]:
    """Return the options of such a run, and others by their names with __ for a dot: data__resize=24."""
    values = TINY | {name.replace("__", ".").replace("_", "-"): value for name, value in changes.items()}
    return [part for name, value in values.items() for part in (f"--{name}", str(value))]
