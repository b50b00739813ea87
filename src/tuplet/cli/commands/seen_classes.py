"""What is said where a model is measured on classes that it may have been trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tuplet.data.load import load_split
from tuplet.errors import InputError
from tuplet.training.run_folder import Run


def seen_in_training(run: Run | None, what: str | Path, class_names: Sequence[str]) -> list[str]:
    """A warning where the model was trained on some of these classes, or where that cannot be told.

    Args:
        run: that trained it; None where nothing says.
        what: the model, as the warning calls it.
        class_names: of the images that it is measured on.
    """
    if run is None:
        return [f"note: nothing says which classes {what} was trained on, or whether these are among them"]
    listed = replace(run.config.data, cache="none", on_bad_image="stop")
    try:
        trained = load_split(replace(run.config, data=listed)).train.class_names
    except InputError as error:
        return [f"note: cannot tell whether the model was trained on some of these classes: {error}"]
    seen = [name for name in class_names if name in set(trained)]
    if not seen:
        return []
    return [
        f"warning: {len(seen):,} of {len(class_names):,} classes are called like classes of the training"
        f" ({', '.join(seen[:3])}{', ...' if len(seen) > 3 else ''}): these are no numbers of unseen classes"
    ]
