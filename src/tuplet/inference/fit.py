"""Train in one call: `tuplet.fit("omniglot", data="characters", to="runs/first")`.

It is here, above the training, since its result can encode pictures.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from tuplet.config import RunConfig
from tuplet.config.checks import type_name
from tuplet.config.overrides import override, with_absolute_paths
from tuplet.errors import SettingsError
from tuplet.inference.encoder import PictureEmbedder, load
from tuplet.metrics.names import headline_metric, metric_title
from tuplet.progress import without_bars
from tuplet.recipes.catalogue import recipe
from tuplet.training.devices import launch
from tuplet.training.experiment import epochs_of_runs
from tuplet.training.run_folder import EpochReport, Run, removed_on_input_error


@dataclass(frozen=True)
class FitResult:
    """A finished training.

    Attributes:
        report: of the last epoch; its scores are in `report.evaluation`.
        run: its folder, with the reports of all epochs.
    """

    report: EpochReport
    run: Run

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.run.folder

    @cached_property
    def model(self) -> PictureEmbedder:
        """The trained model, loaded when it is first used."""
        return load(self.folder)


def fit(
    config: str | RunConfig,
    *,
    data: str | os.PathLike[str] | None = None,
    to: str | os.PathLike[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> FitResult:
    """Train a model to its end, or continue a training that was stopped, and return the result.

    Args:
        config: the name of a recipe, such as "folder", or a config.
        data: the images, `data.root` of the config.
        to: folder of the run; by default runs/NAME-DATE-TIME. A run that is there already is continued if it
            has the same settings; if it is finished, its result is returned.
        overrides: settings to change, by path, such as {"schedule.epochs": 5}.
        progress: show it on standard error, with a line per epoch.

    Raises:
        InputError: (a ValueError) data, weights or settings that cannot be used, or a folder that holds
            something else.
        DivergedError: a loss or a weight is NaN or infinite.
    """
    changes = dict(overrides or {}) | ({} if data is None else {"data.root": data})
    chosen = recipe(config) if isinstance(config, str) else config
    if not isinstance(chosen, RunConfig):
        raise SettingsError(
            f"config is of type {type_name(config)}; want a recipe's name, such as 'folder', or a RunConfig",
            subject="config",
            given=type(config),
        )
    chosen = with_absolute_paths(override(chosen, changes))
    fabric = launch(chosen)
    default = Path("runs") / f"{chosen.name}-{datetime.now():%Y%m%d-%H%M%S}"
    folder = Path(fabric.broadcast(default if to is None else to))
    speaks = progress and fabric.is_global_zero
    guard = removed_on_input_error(folder) if fabric.is_global_zero else nullcontext()
    with nullcontext() if progress else without_bars(), guard:
        for run, report in epochs_of_runs(chosen, folder, fabric=fabric):
            if speaks:
                sys.stderr.write(_line(run, report) + "\n")
    run = Run(folder)
    return FitResult(run.reports()[-1], run)


def _line(run: Run, report: EpochReport) -> str:
    parts = [f"{run.folder.name}  epoch {report.epoch}/{run.config.schedule.last_epoch}"]
    if report.losses:
        parts.append(f"loss {report.losses['total']:.4f}")
    scores = {} if report.evaluation is None else report.evaluation.retrieval
    name = headline_metric(scores)
    if name is not None:
        parts.append(f"{metric_title(name)} {100 * scores[name]:.1f} %")
    return "  ".join(parts)
