"""Variants of HIST as claims: does the hypergraph earn its place, in this form or in another?

The hypotheses behind them, each with a prediction from before its first run, are in
docs/results/hypergraph/hypotheses.md.
"""

from __future__ import annotations

from tuplet.config import RunConfig
from tuplet.research.claims.claim import Axis, Claim, Level, loss_axis, number_axis
from tuplet.research.claims.rules import Above, Point, minus

_HIST, _RIVAL = ("plain HIST",), ("Proxy-Anchor",)
_NOT_IN_THE_STUDY = "Not looked at by the study"


def claims(base: RunConfig) -> list[Claim]:
    """Return the claims on variants, in the order of the report.

    Args:
        base: some variants multiply a setting of it.
    """
    return [_variants(base), _running_average()]


def _variants(base: RunConfig) -> Claim:
    candidates = _candidates(base)
    levels = (
        Level(_HIST[0], (), "HIST", kept=True),
        Level("L_D alone", (("loss.lambda_s", 0.0),), "L_D alone", kept=True),
        Level(_RIVAL[0], (("loss.name", "proxy-anchor"),), "Proxy-Anchor", kept=True),
        *(Level(name, changes, name) for name, changes in (*_controls(base), *candidates)),
    )
    points: list[Point] = [(name,) for name, _ in candidates]
    return Claim(
        "variants",
        "Variants of HIST",
        "A variant of HIST is better than plain HIST and better than Proxy-Anchor.",
        _NOT_IN_THE_STUDY,
        "",
        (Axis("variant", levels),),
        Above(tuple(minus(point, other) for point in points for other in (_HIST, _RIVAL))),
        _HIST,
        reading="The rule is about every variant that is run. To choose some, measure all on validation"
        " classes (--evaluation.split validation) with one seed; then name them with --points, on test"
        " classes and with seeds that chose nothing. Controls are measured and are in no comparison.",
        in_all=False,
    )


def _candidates(base: RunConfig) -> list[tuple[str, tuple[tuple[str, object], ...]]]:
    """Return names and changes of what may be better than plain HIST."""
    loss, optimizer = base.loss, base.optimizer
    fast_hgnn = ("optimizer.lr_hgnn", 10.0 * optimizer.lr_hgnn)
    several_images = (("data.sampler", "per-class"), ("data.images_per_class", 4))
    return [
        # The output propagation shrinks the logits by the own share.
        ("gain 5", (("loss.hypergraph.output_gain", 5.0),)),
        ("lr-HGNN x 10", (fast_hgnn,)),
        # A tuplet is mostly foreign.
        ("4 images a class", several_images),
        *((f"own share {share}", (("loss.own_share", share),)) for share in (0.3, 0.5, 0.7)),
        ("own share 0.7, lr-HGNN x 10", (("loss.own_share", 0.7), fast_hgnn)),
        # What the HGNN is given, and what it gives back.
        ("unit features", (("loss.hypergraph.features", "unit"),)),
        ("self-loops 0.5", (("loss.hypergraph.self_loops", 0.5),)),
        ("constant H", (("loss.hypergraph.detach", "incidence"),)),
        # The two halves pull apart.
        ("lambda_s falls to 0", (("loss.lambda_s_end", 0.0),)),
        ("lambda_s rises from 0", (("loss.lambda_s", 0.0), ("loss.lambda_s_end", loss.lambda_s))),
        # Overfitting with few classes.
        ("unit variance", (("loss.distance", "mahalanobis"), ("loss.variance", "unit"))),
        (
            "weight decay x 100 on distributions",
            (("optimizer.weight_decay_distributions", 100.0 * optimizer.weight_decay),),
        ),
        ("label smoothing 0.1", (("loss.label_smoothing", 0.1),)),
        ("tau / 4", (("loss.tau", loss.tau / 4),)),
        ("tau rises from tau / 4", (("loss.tau", loss.tau / 4), ("loss.tau_end", loss.tau))),
        # The weights of the last step are noisy.
        ("running average 0.99", (("schedule.ema", 0.99),)),
    ]


def _controls(base: RunConfig) -> list[tuple[str, tuple[tuple[str, object], ...]]]:
    """Return what tells causes apart."""
    several_images = (("data.sampler", "per-class"), ("data.images_per_class", 4))
    return [
        # Its embeddings learn from L_D alone, beside an HGNN that learns and changes nothing.
        ("L_CE trains the HGNN alone", (("loss.hypergraph.detach", "inputs"),)),
        ("4 images a class, L_D alone", (*several_images, ("loss.lambda_s", 0.0))),
        ("tau / 4, L_D alone", (("loss.tau", base.loss.tau / 4), ("loss.lambda_s", 0.0))),
    ]


def _running_average() -> Claim:
    decay = number_axis("decay of the running average", "decay", "schedule.ema", (0.0, 0.95, 0.99))
    off, *others = (level.name for level in decay.levels)
    names = ("hist", "proxy-anchor")
    return Claim(
        "ema",
        "Running average",
        "The running average of the weights is better than the weights of the last step, for every loss.",
        _NOT_IN_THE_STUDY,
        "",
        (decay, loss_axis(names)),
        Above(tuple(minus((other, name), (off, name)) for name in names for other in others)),
        (off, "hist"),
        reading="With a decay of 0 there is no average. The average and the last weights come from the same"
        " training: differences are of one run with itself.",
        in_all=False,
    )
