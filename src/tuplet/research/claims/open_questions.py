"""Open questions: what the HIST study did not look at, as claims like its own."""

from __future__ import annotations

from tuplet.config import LossName, RunConfig
from tuplet.research.claims.claim import Axis, Claim, Level, loss_axis, number_axis
from tuplet.research.claims.hist_study import LEAST_GAIN, consistent_claim
from tuplet.research.claims.rules import Above, AtMostTimes, falls_less, minus

_RIVALS: tuple[LossName, ...] = ("proxy-anchor", "multi-similarity")
_NOT_IN_THE_STUDY = "Not looked at by the study"

_IMAGES_A_CLASS, _MOST_CLASSES = 4, 20_000


def claims(base: RunConfig) -> list[Claim]:
    """Return the open questions as claims, in the order of the report.

    Args:
        base: whose schedule is stretched for the claim on steps.
    """
    noise = number_axis(
        "share of wrong labels", "noise", "data.label_noise", (0.0, 0.1, 0.2, 0.5), kept=(0.2,)
    )
    imbalance = number_axis(
        "ratio of the largest class to the smallest", "ratio", "data.imbalance", (1.0, 3.0, 10.0)
    )
    mahalanobis = ("loss.distance", "mahalanobis")
    return [
        _steps(base),
        _against_rivals(
            "noise",
            "Label noise",
            "With wrong labels in training, HIST loses less than its rivals.",
            noise,
            "Losses are compared in points of Recall@1: one that starts lower has less to lose. Wrong"
            " labels are drawn by the run's seed, the same for every loss. The page of Potential"
            " Field (CVPR 2025) has HIST at 59.7 (CUB) and 72.9 (CARS196) with 20 % of them, Proxy-Anchor at"
            " 60.7 and 76.9.",
        ),
        _many_classes(),
        _cost(),
        _against_rivals(
            "imbalance",
            "Class imbalance",
            "With classes of very different sizes, HIST loses less than its rivals.",
            imbalance,
            "The tail leaves images out, so every loss learns from fewer; what is compared is how much"
            " less one loses than another. Which classes are large is drawn by the run's seed. Every class"
            " keeps two images, so that with few images a class the ratio is smaller than asked for.",
        ),
        _agreement(),
        _helps(
            "hgnn",
            "The hypergraph network",
            "The hypergraph network helps.",
            "hypergraph",
            Level("with HGNN", (), "with"),
            Level("without HGNN", (("loss.lambda_s", 0.0),), "without"),
        ),
        _helps(
            "covariance",
            "The covariance",
            "The learnt variances of the class distributions help.",
            "variance of the class distributions",
            Level("learnt variance", (mahalanobis,), "learnt"),
            Level("unit variance", (mahalanobis, ("loss.variance", "unit")), "unit"),
            "With unit variances the Mahalanobis distance is the squared Euclidean one.",
        ),
    ]


def _steps(base: RunConfig) -> Claim:
    """Return the claim on whether the size of the batch matters, or the number of steps that it leaves."""
    values = (8, 16, 32, 64, 128)
    axis = number_axis(
        "batch size N, in as many steps",
        "N",
        "data.batch_size",
        values,
        kept=(32,),
        also={value: _as_many_steps(base, value / 32) for value in values},
    )
    return consistent_claim(
        "steps",
        "Batch size at equal steps",
        "HIST performs consistently whatever the size of the batch, if all sizes take as many steps.",
        axis,
        "N = 32",
        source=_NOT_IN_THE_STUDY,
        reading="The control of claim 1, where a smaller batch takes more steps. Here a larger one sees every"
        " image more often. Epochs are those of the recipe times N / 32, rounded to whole ones, at"
        " least one, so that with few epochs the steps are only about equal.",
    )


def _as_many_steps(base: RunConfig, times: float) -> dict[str, object]:
    """Return the changes that make a schedule so many times as long."""
    schedule = base.schedule
    epochs = max(1, round(times * schedule.epochs))
    # A warm-up rounded to none would leave a pretrained backbone to the gradients of a random head. On real
    # cars, in batches of 16, that ended at 0.7 % Recall@1 instead of 24.
    warmup_epochs = max(1, round(times * schedule.warmup_epochs)) if schedule.warmup_epochs else 0
    stop = schedule.stop_after
    return {
        "schedule.epochs": epochs,
        "schedule.warmup_epochs": min(warmup_epochs, epochs - 1),
        "schedule.step_epochs": max(1, round(times * schedule.step_epochs)),
        "schedule.stop_after": None if stop is None else max(1, round(times * stop)),
        "evaluation.every_epochs": max(1, round(times * base.evaluation.every_epochs)),
    }


def _many_classes() -> Claim:
    axes = (_classes(), loss_axis(("hist", "proxy-anchor")))
    levels = axes[0].levels
    return Claim(
        "classes",
        "Number of classes",
        "HIST is better than Proxy-Anchor however many classes there are to learn.",
        _NOT_IN_THE_STUDY,
        "",
        axes,
        Above(tuple(minus((level.name, "hist"), (level.name, "proxy-anchor")) for level in levels)),
        (levels[0].name, "hist"),
        base="glyphs",
        reading=f"Generated characters, {_IMAGES_A_CLASS} drawings of each, and as many training steps at"
        " every number of classes. Test classes are the ones behind the training classes, so rows are not"
        " to be compared with each other, only the losses within them.",
    )


def _cost() -> Claim:
    axes = (_classes(), loss_axis(("hist", "proxy-anchor")))
    first, last = axes[0].levels[0].name, axes[0].levels[-1].name
    return Claim(
        "cost",
        "Cost against classes",
        f"To train with {_MOST_CLASSES:,} classes costs at most twice as much an image as with 100.",
        "Left open by the study (Section 5.3): the cost on large data sets",
        "",
        axes,
        AtMostTimes((minus((last, "hist"), (first, "hist")),), 2.0),
        (first, "hist"),
        metric="seconds_per_image",
        base="glyphs",
        reading="Wall-clock time: measure it on a machine that does nothing else.",
    )


def _classes() -> Axis:
    """Return an axis of numbers of classes, each with as many epochs as make the steps equal."""
    values = (100, 1_000, 5_000, _MOST_CLASSES)
    also: dict[float, dict[str, object]] = {
        value: {
            "data.glyphs_per_class": _IMAGES_A_CLASS,
            "schedule.epochs": _MOST_CLASSES // value,
            "schedule.warmup_epochs": 0,
            "evaluation.every_epochs": _MOST_CLASSES // value,
        }
        for value in values
    }
    return number_axis("training classes C", "C", "data.glyph_train_classes", values, also=also)


def _agreement() -> Claim:
    return Claim(
        "agreement",
        "Agreement of two seeds",
        "Two models that differ in their seed share more of each image's ten nearest neighbours with HIST"
        " than with its rivals.",
        _NOT_IN_THE_STUDY,
        "",
        (loss_axis(("hist", *_RIVALS)),),
        Above(tuple(minus(("hist",), (rival,)) for rival in _RIVALS)),
        ("hist",),
        metric="agreement",
        reading="Seeds are taken in pairs, 0 with 1, 2 with 3, ...: each model is in one pair, so the pairs"
        " are independent; an interval needs four seeds.",
    )


def _helps(
    key: str, title: str, statement: str, axis: str, with_it: Level, without: Level, reading: str = ""
) -> Claim:
    """Return the claim that something helps, measured with it and without."""
    axes = (Axis(axis, (with_it, without)),)
    rule = Above((minus((with_it.name,), (without.name,)),), LEAST_GAIN)
    return Claim(key, title, statement, _NOT_IN_THE_STUDY, "", axes, rule, (with_it.name,), reading=reading)


def _against_rivals(key: str, title: str, statement: str, axis: Axis, reading: str) -> Claim:
    """Return the claim that HIST falls less than each rival, from an axis' first level to each other."""
    first, *others = (level.name for level in axis.levels)
    contrasts = [
        falls_less(((first, "hist"), (other, "hist")), ((first, rival), (other, rival)))
        for other in others
        for rival in _RIVALS
    ]
    axes = (axis, loss_axis(("hist", *_RIVALS)))
    rule = Above(tuple(contrasts))
    return Claim(key, title, statement, _NOT_IN_THE_STUDY, "", axes, rule, (first, "hist"), reading=reading)
