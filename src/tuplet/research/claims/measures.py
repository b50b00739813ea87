"""What is measured of finished runs: agreement of two seeds, the frozen backbone, maps of the embeddings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from lightning_fabric import Fabric

from tuplet.config import RunConfig
from tuplet.data.files import write_atomically
from tuplet.data.load import split_of
from tuplet.evaluation.evaluate import EmbeddedSplit, EvalReport, embed
from tuplet.metrics.retrieval import nearest_neighbours
from tuplet.report import plots
from tuplet.research.bench.result import frozen_backbone
from tuplet.research.claims.plan import Plan, run_key
from tuplet.research.claims.running import run_folder, state_of
from tuplet.training.experiment import ImageCache
from tuplet.training.run_folder import Run

NUM_NEIGHBOURS = 10
"""Nearest others of each test image, of which two models may share some."""


def measure(plan: Plan, folder: Path, *, fabric: Fabric, images: ImageCache) -> Iterator[str]:
    """What is being measured, before it is; whatever was measured before is not repeated.

    Args:
        plan: of the study.
        folder: of the study.
        fabric: launched; one rank.
        images: of the runs.
    """
    for entry in plan.entries.values():
        claim = plan.claims[entry.key]
        if claim.metric == "agreement":
            for point in entry.points:
                for seeds in seed_pairs(plan.seeds(entry)):
                    pair = [plan.config(entry, point, seed) for seed in seeds]
                    if _finished(folder, *pair) and not agreement_file(folder, *pair).exists():
                        yield f"neighbours shared by seeds {seeds[0]} and {seeds[1]}: {', '.join(point)}"
                        _write_agreement(folder, pair[0], pair[1], fabric=fabric, images=images)
        if entry.key == "5" and not frozen_file(folder, plan.base).exists():
            yield "the frozen backbone"
            found = frozen_backbone(plan.base, fabric=fabric, images=images.of(plan.base))
            _write(frozen_file(folder, plan.base), asdict(found))
    config = mapped_run(plan, folder)
    if config is not None and not maps_file(folder, config).exists():
        yield "maps of the embeddings"
        _write_maps(folder, config, fabric=fabric, images=images)


def shared_neighbours(
    first: Float[np.ndarray, "N D"], second: Float[np.ndarray, "N E"], *, num_neighbours: int
) -> float:
    """The mean share of each row's nearest others, by cosine, that two embeddings of the same rows share.

    Args:
        first: embeddings by one model, finite.
        second: by another, of the same N items in the same order.
        num_neighbours: how many others, in 1..N-1.

    Returns: in [0, 1].
    """
    one, other = (nearest_neighbours(each, num_neighbours)[0].numpy() for each in (first, second))
    shared = [len(np.intersect1d(a, b)) for a, b in zip(one, other, strict=True)]
    return float(np.mean(shared)) / num_neighbours


def seed_pairs(seeds: tuple[int, ...]) -> list[tuple[int, int]]:
    """The seeds two by two, each in one pair; an odd one is left over."""
    return list(zip(seeds[::2], seeds[1::2], strict=False))


def agreement_file(folder: Path, first: RunConfig, second: RunConfig) -> Path:
    """Where the agreement of two runs is."""
    return folder / "measures" / f"agreement-{run_key(first)}-{run_key(second)}.json"


def frozen_file(folder: Path, base: RunConfig) -> Path:
    """Where the measurement of the frozen backbone is."""
    return folder / "measures" / f"frozen-{run_key(base)}.json"


def maps_file(folder: Path, config: RunConfig) -> Path:
    """Where the maps of a run's embeddings are."""
    return folder / "measures" / f"maps-{run_key(config)}.json"


def read_measure(file: Path) -> dict[str, Any] | None:
    """What was measured; None where it was not yet."""
    if not file.exists():
        return None
    tree: dict[str, Any] = json.loads(file.read_text())
    return tree


def read_frozen(folder: Path, base: RunConfig) -> EvalReport | None:
    """What the frozen backbone measures; None where it was not measured yet."""
    tree = read_measure(frozen_file(folder, base))
    return None if tree is None else EvalReport.from_dict(tree)


def mapped_run(plan: Plan, folder: Path) -> RunConfig | None:
    """The finished run whose embeddings are mapped: the first seed at the published point of a claim."""
    for entry in plan.entries.values():
        claim = plan.claims[entry.key]
        if claim.base == "on" and claim.published in entry.points:
            config = plan.config(entry, claim.published, plan.base.seed)
            if _finished(folder, config):
                return config
    return None


def _finished(folder: Path, *configs: RunConfig) -> bool:
    return all(state_of(folder, run_key(config)) == "finished" for config in configs)


def _embedded(
    folder: Path, config: RunConfig, *, fabric: Fabric, images: ImageCache
) -> tuple[EmbeddedSplit, EmbeddedSplit]:
    """Training and test images of a finished run with their embeddings."""
    run = Run(run_folder(folder, run_key(config)))
    split = split_of(images.of(config), config)
    network = fabric.setup_module(run.embedder()).eval()
    train, test = (
        embed(network, table, config.data, fabric=fabric, num_workers=config.compute.num_workers)
        for table in (split.train, split.test)
    )
    return train, test


def _write_agreement(
    folder: Path, first: RunConfig, second: RunConfig, *, fabric: Fabric, images: ImageCache
) -> None:
    both = [_embedded(folder, config, fabric=fabric, images=images)[1] for config in (first, second)]
    others = min(NUM_NEIGHBOURS, len(both[0].table) - 1)
    share = shared_neighbours(both[0].embeddings, both[1].embeddings, num_neighbours=others)
    _write(agreement_file(folder, first, second), {"share": share, "num_neighbours": others})


def _write_maps(folder: Path, config: RunConfig, *, fabric: Fabric, images: ImageCache) -> None:
    parts = _embedded(folder, config, fabric=fabric, images=images)
    names = ("training", config.evaluation.split)
    tree = {
        name: asdict(plots.embedding_map(part.embeddings, part.labels, part.table.class_names))
        for name, part in zip(names, parts, strict=True)
    }
    _write(maps_file(folder, config), tree)


def _write(file: Path, tree: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, (json.dumps(tree, indent=1) + "\n").encode())
