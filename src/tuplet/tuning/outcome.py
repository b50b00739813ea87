"""What a search found: the best settings as a recipe."""

from __future__ import annotations

import optuna
from lightning_fabric import Fabric

from tuplet.data.table import Split
from tuplet.errors import InputError
from tuplet.runs import write_atomically, write_config
from tuplet.tuning.search import Search, best_config, finished_trials


def write_outcome(search: Search, study: optuna.Study, *, fabric: Fabric, images: Split, command: str) -> str:
    """What is to be printed when a search has ended; the best settings are in the folder's best.yaml."""
    trials = finished_trials(study)
    if not trials:
        raise InputError("no trial of the search has a value; want a space whose trainings come through")
    file = search.folder / "best.yaml"
    write_atomically(file, write_config(best_config(search, trials[0])).encode())
    return f"\nbest      trial {trials[0].number}\nrecipe    {file}"
