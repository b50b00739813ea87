"""All claims by their keys, and the generated base for which no files are needed."""

from __future__ import annotations

from dataclasses import replace

from tuplet.config import RunConfig
from tuplet.config.overrides import override
from tuplet.errors import InputError
from tuplet.recipes.catalogue import demo
from tuplet.research.claims.claim import Claim
from tuplet.research.claims.hist_study import (
    alpha,
    batch_size,
    distances,
    layers,
    sizes,
    state_of_the_art,
    temperature,
)
from tuplet.research.claims.open_questions import (
    agreement,
    cost,
    covariance,
    hgnn,
    imbalance,
    label_noise,
    many_classes,
    steps,
)


def claims_of(base: RunConfig) -> dict[str, Claim]:
    """Every claim by its key, in the order of the report.

    Args:
        base: which of the study's settings are the original ones depends on its data and backbone.
    """
    claims = (
        *(batch_size(), layers(), alpha(), temperature(), state_of_the_art(base)),
        *(sizes(), distances()),
        *(steps(base), label_noise(), many_classes(), cost(), imbalance(), agreement(), hgnn(), covariance()),
    )
    return {claim.key: claim for claim in claims}


def chosen_claims(text: str, base: RunConfig) -> list[Claim]:
    """The claims that a word on the command line names: all, or keys separated by commas.

    Raises:
        InputError: (a ValueError) an unknown key.
    """
    known = claims_of(base)
    if text == "all":
        return list(known.values())
    keys = list(dict.fromkeys(part.strip() for part in text.split(",")))
    unknown = [key for key in keys if key not in known]
    if unknown:
        raise InputError(f"there is no claim {unknown[0]!r}; want all, or some of {','.join(known)}")
    return [known[key] for key in keys]


def glyphs() -> RunConfig:
    """Generated characters and a small network, seconds a run on two cores: to see a study at work."""
    return override(
        demo(),
        {
            "name": "glyphs",
            "data.glyph_train_classes": 40,
            "data.glyph_test_classes": 40,
            "data.glyphs_per_class": 12,
            "data.image_size": 32,
            "data.resize": 32,
            "schedule.epochs": 6,
            "evaluation.kmeans_runs": 0,
        },
    )


def base_of(claim: Claim, on: RunConfig) -> RunConfig:
    """What a claim's points change: the config that the study is run on, or generated characters."""
    if claim.base == "on":
        return on
    return replace(glyphs(), compute=on.compute)
