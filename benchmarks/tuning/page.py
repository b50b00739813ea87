"""The page of `python -m benchmarks.tuning`: curves, gains and what an oracle overstates."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from tuplet.metrics.intervals import SeedMean, seed_mean
from tuplet.report.markdown import table_head, table_row
from tuplet.training.environment import short_commit


@dataclass(frozen=True)
class SearchResult:
    """One search, and its best settings trained again.

    Attributes:
        objective: validation or oracle.
        sampler: its name.
        values: of its trials, in order, in [0, 1].
        settings: the best trial's, by path.
        test: what the best trial's own network measures on test classes, at its last epoch.
        same_seed: Recall@1 on test classes of a training with the best settings and the trials' seed, on all
            training classes, last epoch.
        final: the same of trainings with new seeds.
        seconds: of training, all trials together.
    """

    objective: str
    sampler: str
    values: tuple[float, ...]
    settings: dict[str, Any]
    test: float
    same_seed: float
    final: tuple[float, ...]
    seconds: float

    @property
    def best_so_far(self) -> list[float]:
        """The best value after each trial."""
        return [float(value) for value in np.maximum.accumulate(self.values)]


def page(
    found: Sequence[SearchResult],
    own: Sequence[float],
    *,
    space: Sequence[str],
    label: str,
    environments: Sequence[Mapping[str, Any]],
    command: str,
) -> str:
    """The page as Markdown.

    Args:
        found: every search, the repeats of a kind one after the other.
        own: Recall@1 on test classes of the recipe's own settings, a value a seed.
        space: what was searched.
        label: which epoch of the trainings after the searches counts.
        environments: of one of them, and of each search.
        command: that wrote the page.
    """
    honest = [one for one in found if one.objective == "validation"]
    oracle = [one for one in found if one.objective == "oracle"]
    kinds = {one.sampler: [other for other in honest if other.sampler == one.sampler] for one in honest}
    trials, repeats = len(found[0].values), len(next(iter(kinds.values())))
    lines = [
        "# What a search finds, and what it is worth",
        "",
        f"{len(found)} searches of {trials} trials each, {repeats} of a kind. Searched: {', '.join(space)}.",
        "The first trial of each is the recipe itself; the random trials that a repeat begins with are the"
        " same for all samplers.",
        "",
        "## On validation classes: the best Recall@1 so far, %",
        "",
        f"Mean over {repeats} searches (lowest to highest), one fold of the training classes, last epoch.",
        "",
        *_curve_table(kinds, trials),
        "",
        "![Best Recall@1 so far against trials](curves.svg)",
        "",
        *_gains(kinds, honest, oracle, own, label),
        *_oracle(oracle, honest, kinds),
        *_settings(found),
        "",
        *_footer(found, environments, command),
    ]
    return "\n".join(lines)


def _gains(
    kinds: Mapping[str, Sequence[SearchResult]],
    honest: Sequence[SearchResult],
    oracle: Sequence[SearchResult],
    own: Sequence[float],
    label: str,
) -> list[str]:
    groups = {f"{sampler}, {len(searches)} searches": searches for sampler, searches in kinds.items()}
    groups[f"all {len(honest)} searches on validation classes"] = honest
    if oracle:
        groups[f"oracle ({oracle[0].sampler}), {len(oracle)} searches"] = oracle
    return [
        "## What the search gained on test classes",
        "",
        f"The best settings of each search, trained again with {len(own)} seeds that no search has seen, on"
        f" all training classes; {label}. The gain is over the recipe's own settings with the same seeds; the"
        " interval is a 95 % t interval over searches, a search being one value, the mean of its seeds.",
        "",
        *table_head(["settings", "Recall@1 on test classes", "gain, points", "95 %"], "lrrl"),
        f"| the recipe's own | {100 * np.mean(own):.1f} | | |",
        *(_gain_row(title, searches, own) for title, searches in groups.items()),
    ]


def _footer(
    found: Sequence[SearchResult], environments: Sequence[Mapping[str, Any]], command: str
) -> list[str]:
    environment, cost = environments[0], sum(one.seconds for one in found) / 3600
    commits = ", ".join(dict.fromkeys(map(short_commit, environments)))
    return [
        f"Training of all trials: {cost:.1f} hours of {environment.get('processor')}, one thread each,"
        f" with other work beside it; torch {environment.get('torch')}; commits {commits}.",
        "",
        f"    {command}",
        "",
    ]


def _curve_table(kinds: Mapping[str, Sequence[SearchResult]], trials: int) -> list[str]:
    places = [place for place in (1, 10, 20, 30, 40, 50, 60) if place <= trials]
    rows = table_head(["after trial", *map(str, places)], "l" + "r" * len(places))
    for sampler, searches in kinds.items():
        curves_of = 100 * np.array([one.best_so_far for one in searches])
        cells = [
            f"{curves_of[:, place - 1].mean():.1f} ({curves_of[:, place - 1].min():.1f} to"
            f" {curves_of[:, place - 1].max():.1f})"
            for place in places
        ]
        rows.append(table_row([sampler, *cells]))
    return rows


def _gain_row(title: str, searches: Sequence[SearchResult], own: Sequence[float]) -> str:
    means = [float(np.mean(one.final)) for one in searches]
    gain = seed_mean([float(np.mean(np.subtract(one.final, own))) for one in searches])
    return f"| {title} | {100 * np.mean(means):.1f} | {100 * gain.mean:+z.1f} | {_interval(gain)} |"


def _oracle(
    oracle: Sequence[SearchResult],
    honest: Sequence[SearchResult],
    kinds: Mapping[str, Sequence[SearchResult]],
) -> list[str]:
    if not oracle:
        return []
    chosen = [100 * (max(one.values) - float(np.mean(one.final))) for one in oracle]
    luck = [100 * (one.same_seed - float(np.mean(one.final))) for one in honest]
    welch = stats.ttest_ind(chosen, luck, equal_var=False)
    interval = welch.confidence_interval(0.95)
    lines = [
        "",
        "## How far the oracle overstates",
        "",
        "The oracle searches as the study did: on the test classes, the best epoch of each trial. What it"
        " reports, and what its best settings measure when they are trained again with new seeds and the last"
        " epoch counts:",
        "",
        *table_head(["search", "reported", "again, mean of seeds", "difference, points"], "lrrr"),
    ]
    for number, (one, difference) in enumerate(zip(oracle, chosen, strict=True)):
        again = 100 * float(np.mean(one.final))
        lines.append(f"| oracle {number} | {100 * max(one.values):.1f} | {again:.1f} | {difference:+z.1f} |")
    lines += [
        "",
        "All trials have one seed, as the study's had, and a seed may be lucky or unlucky for all settings"
        " alike. The best settings of the honest searches, which were not chosen on these classes, tell"
        f" which: with the trials' seed they measure {np.mean(luck):+z.1f} points against their mean over new"
        f" seeds ({', '.join(f'{one:+z.1f}' for one in luck)}). The oracle's differences are"
        f" {np.mean(chosen):+z.1f} on average: it overstates by"
        f" **{np.mean(chosen) - np.mean(luck):+z.1f} points** (95 %,"
        f" Welch over searches: {interval.low:+z.1f} to {interval.high:+z.1f}; p = {welch.pvalue:.3f}).",
    ]
    same = kinds.get(oracle[0].sampler)
    if same is not None:
        paired = [
            float(np.mean(one.final)) - float(np.mean(other.final))
            for one, other in zip(oracle, same, strict=True)
        ]
        better = seed_mean(paired)
        lines += [
            "",
            "Trained again, the oracle's settings against those of the honest searches by the same sampler:"
            f" {100 * better.mean:+z.1f} points (95 %: {_interval(better)}).",
        ]
    return lines


def _settings(found: Sequence[SearchResult]) -> list[str]:
    names = [path.split(".")[-1] for path in found[0].settings]
    titles = ["search", *names, "its value", "test, its network", "test, again"]
    rows = [
        "",
        "## The best settings of each search",
        "",
        *table_head(titles, "l" + "r" * (len(titles) - 1)),
    ]
    for one in found:
        cells = [
            f"{value:.3g}" if isinstance(value, float) else str(value) for value in one.settings.values()
        ]
        again = seed_mean(one.final)
        spread = "" if again.std is None else f" ± {100 * again.std:.1f}"
        rows.append(
            f"| {one.objective}, {one.sampler} | {' | '.join(cells)} | {100 * max(one.values):.1f} |"
            f" {100 * one.test:.1f} | {100 * again.mean:.1f}{spread} |"
        )
    return rows


def _interval(value: SeedMean) -> str:
    if value.low is None or value.high is None:
        return ""
    return f"{100 * value.low:+z.1f} to {100 * value.high:+z.1f}"


def curves(found: Sequence[SearchResult]) -> str:
    """Best Recall@1 on validation classes against trials, as SVG; thin lines are searches."""
    colours = {"gp": "#0072b2", "tpe": "#c24e00", "random": "#00805d"}
    with mpl.rc_context({"svg.hashsalt": "tuplet", "svg.fonttype": "none", "font.size": 10}):
        figure = Figure(figsize=(7.2, 3.8), layout="constrained")
        axes = figure.add_subplot()
        honest = [one for one in found if one.objective == "validation"]
        for sampler in dict.fromkeys(one.sampler for one in honest):
            rows = 100 * np.array([one.best_so_far for one in honest if one.sampler == sampler])
            trials = np.arange(1, rows.shape[1] + 1)
            colour = colours.get(sampler, "#55606b")
            for row in rows:
                axes.step(trials, row, where="post", color=colour, alpha=0.3, linewidth=0.9)
            axes.step(trials, rows.mean(axis=0), where="post", color=colour, linewidth=2.2, label=sampler)
        axes.set_xlabel("trials")
        axes.set_ylabel("best Recall@1 so far on validation classes, %")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="lower right")
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()
