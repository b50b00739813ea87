"""What the study did not look at, as claims like its own."""

from __future__ import annotations

from collections.abc import Sequence

from tuplet.config import LossName, RunConfig
from tuplet.research.claims.claim import Axis, Claim, Level, number_axis
from tuplet.research.claims.hist_study import LEAST_GAIN, consistent
from tuplet.research.claims.rules import Above, AtMostTimes, Rule, falls_less, less

_RIVALS: tuple[LossName, ...] = ("proxy-anchor", "multi-similarity")
_NOT_IN_THE_STUDY = "Not looked at by the study"

_IMAGES_A_CLASS, _MOST_CLASSES = 4, 20_000


def steps(base: RunConfig) -> Claim:
    """Whether it is the size of the batch that matters, or the number of steps that it leaves."""
    values = (8, 16, 32, 64, 128)
    axis = number_axis(
        "batch size N, in as many steps",
        "N",
        "data.batch_size",
        values,
        kept=(32,),
        also={value: _as_many_steps(base, value / 32) for value in values},
    )
    reference = ("N = 32",)
    return Claim(
        "steps",
        "Batch size at equal steps",
        "HIST performs consistently whatever the size of the batch, if all sizes take as many steps.",
        _NOT_IN_THE_STUDY,
        "",
        (axis,),
        consistent(axis, reference),
        reference,
        reading="The control of claim 1, where a smaller batch takes more steps. Here a larger one sees every"
        " image more often. Epochs are those of the recipe times N / 32, rounded to whole ones, at"
        " least one, so that with few epochs the steps are only about equal.",
    )


def _as_many_steps(base: RunConfig, times: float) -> dict[str, object]:
    """A schedule of so many times the epochs."""
    schedule = base.schedule
    epochs = max(1, round(times * schedule.epochs))
    return {
        "schedule.epochs": epochs,
        "schedule.warmup_epochs": min(round(times * schedule.warmup_epochs), epochs - 1),
        "schedule.step_epochs": max(1, round(times * schedule.step_epochs)),
        "schedule.stop_after": None
        if schedule.stop_after is None
        else max(1, round(times * schedule.stop_after)),
        "evaluation.every_epochs": max(1, round(times * base.evaluation.every_epochs)),
    }


def label_noise() -> Claim:
    """Whether HIST bears wrong labels better than its rivals."""
    noise = number_axis(
        "share of wrong labels", "noise", "data.label_noise", (0.0, 0.1, 0.2, 0.5), kept=(0.2,)
    )
    return _against_rivals(
        "noise",
        "Label noise",
        "With wrong labels in training, HIST loses less than its rivals.",
        noise,
        reading="Losses are compared in points of Recall@1: one that starts lower has less to lose. Wrong"
        " labels are drawn by the run's seed, the same for every loss. The page of Potential"
        " Field (CVPR 2025) has HIST at 59.7 (CUB) and 72.9 (CARS196) with 20 % of them, Proxy-Anchor at 60.7"
        " and 76.9.",
    )


def imbalance() -> Claim:
    """Whether HIST bears classes of very different sizes better than its rivals."""
    ratio = number_axis(
        "ratio of the largest class to the smallest", "ratio", "data.imbalance", (1.0, 3.0, 10.0)
    )
    return _against_rivals(
        "imbalance",
        "Class imbalance",
        "With classes of very different sizes, HIST loses less than its rivals.",
        ratio,
        reading="The tail leaves images out, so every loss learns from fewer; what is compared is how much"
        " less one loses than another. Which classes are large is drawn by the run's seed. Every class"
        " keeps two images, so that with few images a class the ratio is smaller than asked for.",
    )


def many_classes() -> Claim:
    """Whether HIST keeps up with a rival as the classes become many; on generated characters."""
    axes = (_classes(), _losses(("proxy-anchor",)))
    levels = axes[0].levels
    return Claim(
        "classes",
        "Number of classes",
        "HIST is better than Proxy-Anchor however many classes there are to learn.",
        _NOT_IN_THE_STUDY,
        "",
        axes,
        Above(tuple(less((level.name, "hist"), (level.name, "proxy-anchor")) for level in levels)),
        (levels[0].name, "hist"),
        base="glyphs",
        reading=f"Generated characters, {_IMAGES_A_CLASS} drawings of each, and as many training steps at"
        " every number of classes. Test classes are the ones behind the training classes, so rows are not"
        " to be compared with each other, only the losses within them.",
    )


def cost() -> Claim:
    """What a training image costs as the classes become many; of the same runs."""
    axes = (_classes(), _losses(("proxy-anchor",)))
    first, last = axes[0].levels[0].name, axes[0].levels[-1].name
    return Claim(
        "cost",
        "Cost against classes",
        f"To train with {_MOST_CLASSES:,} classes costs at most twice as much an image as with 100.",
        "Left open by the study (Section 5.3): the cost on large data sets",
        "",
        axes,
        AtMostTimes((less((last, "hist"), (first, "hist")),), 2.0),
        (first, "hist"),
        metric="seconds_per_image",
        base="glyphs",
        reading="Wall-clock time: measure it on a machine that does nothing else.",
    )


def agreement() -> Claim:
    """Whether two trainings that differ in their seed find the same neighbours."""
    losses = _losses(_RIVALS)
    return Claim(
        "agreement",
        "Agreement of two seeds",
        "Two models that differ in their seed share more of each image's ten nearest neighbours with HIST"
        " than with its rivals.",
        _NOT_IN_THE_STUDY,
        "",
        (losses,),
        Above(tuple(less(("hist",), (rival,)) for rival in _RIVALS)),
        ("hist",),
        metric="agreement",
        reading="Seeds are taken in pairs, 0 with 1, 2 with 3, ...: each model is in one pair, so the pairs"
        " are independent; an interval needs four seeds.",
    )


def hgnn() -> Claim:
    """Whether the hypergraph network helps at all."""
    levels = (
        Level("with HGNN", (), "with"),
        Level("without HGNN", (("loss.lambda_s", 0.0),), "without"),
    )
    return _helps("hgnn", "The hypergraph network", "The hypergraph network helps.", "hypergraph", levels)


def covariance() -> Claim:
    """Whether the learnt variances help."""
    levels = (
        Level("learnt variance", (("loss.distance", "mahalanobis"),), "learnt"),
        Level(
            "unit variance",
            (("loss.distance", "mahalanobis"), ("loss.variance", "unit")),
            "unit",
        ),
    )
    return _helps(
        "covariance",
        "The covariance",
        "The learnt variances of the class distributions help.",
        "variance of the class distributions",
        levels,
        reading="With unit variances the Mahalanobis distance is the squared Euclidean one.",
    )


def _helps(
    key: str, title: str, statement: str, axis: str, levels: tuple[Level, Level], *, reading: str = ""
) -> Claim:
    with_it, without = (level.name for level in levels)
    return Claim(
        key,
        title,
        statement,
        _NOT_IN_THE_STUDY,
        "",
        (Axis(axis, levels),),
        Above((less((with_it,), (without,)),), LEAST_GAIN),
        (with_it,),
        reading=reading,
    )


def _against_rivals(key: str, title: str, statement: str, axis: Axis, *, reading: str) -> Claim:
    """HIST falls less than each rival, from the first level of the axis to each other one."""
    first, *others = (level.name for level in axis.levels)
    contrasts = [
        falls_less(((first, "hist"), (other, "hist")), ((first, rival), (other, rival)))
        for other in others
        for rival in _RIVALS
    ]
    rule: Rule = Above(tuple(contrasts))
    return Claim(
        key,
        title,
        statement,
        _NOT_IN_THE_STUDY,
        "",
        (axis, _losses(_RIVALS)),
        rule,
        (first, "hist"),
        reading=reading,
    )


def _losses(rivals: Sequence[LossName]) -> Axis:
    names: list[LossName] = ["hist", *rivals]
    return Axis("loss", tuple(Level(name, (("loss.name", name),), name, kept=True) for name in names))


def _classes() -> Axis:
    """Numbers of classes, each with as many epochs as make the steps equal."""
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
