"""What an index of many vectors costs: building it, searching it, and how much of the exact answer it finds.

    python -m benchmarks.search --to docs/results/search

writes search.json and search.md there. The vectors are generated: clusters around centres that lie in 48 of
the dimensions, with noise in all of them, as embeddings of pictures lie. Clusters of fifty are easy to find;
with --cluster-size 1 there are none, which is harder than real pictures are. They are written in batches, and
the exact answer is counted from products while they are, so that memory stays small. Two cores unless --cores
says otherwise.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Literal

import numpy as np
import pyarrow
import torch
import tyro

from benchmarks.cells import describe_machine
from benchmarks.pages import bytes_text, commit_text, duration, write_results

BATCH = 25_000
COMMIT_ROWS = 250_000
LATENT = 48
TOP = 10
BLOCK_BYTES = 1 << 27


@dataclass(frozen=True)
class Arguments:
    """Time an index of generated vectors."""

    rows: int = 1_000_000
    """Vectors, >= 1,000."""
    dim: int = 512
    """Width of each."""
    cluster_size: int = 50
    """Vectors that lie about one centre, >= 1; 1: no clusters."""
    queries: int = 500
    """Searches of each approximate index."""
    exact_queries: int = 20
    """Searches that look at every vector."""
    kinds: tuple[Literal["ivf-rq", "ivf-sq", "ivf-pq", "hnsw-sq"], ...] = (
        "ivf-rq",
        "ivf-sq",
        "hnsw-sq",
        "ivf-pq",
    )
    """Approximate indexes, one after the other; the last two take long to build."""
    codes: tuple[Literal["int8", "bits"], ...] = ()
    """Further indexes of the same vectors in few bytes, with all directions, as by tuplet index --bytes."""
    cores: int = 2
    """Of the processor that everything runs on."""
    seed: int = 0
    """Of the vectors."""
    to: Path = Path("docs/results/search")
    """Folder of the results."""
    scratch: Path | None = None
    """Folder for the index, which takes 4 bytes a row and dimension and is removed; None: a temporary one."""


def main(arguments: Arguments) -> None:
    """Write the vectors, build and search each index, write the results."""
    os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[: arguments.cores]))
    torch.set_num_threads(arguments.cores)
    from tuplet.inference.encoder import IndexedModel
    from tuplet.metrics.small_vectors import Directions
    from tuplet.search.index import LEAST_PROBES, REFINE_FACTOR, ImageIndex

    scratch = Path(mkdtemp(dir=arguments.scratch, prefix="search-"))
    try:
        model = IndexedModel("generated", "0" * 64, arguments.dim, 1, 1, "none")
        generated = _Generated(arguments)
        directions = Directions(next(generated.batches())[1])
        indexes = {"float32": ImageIndex.create(str(scratch / "float32"), model)}
        for kind in arguments.codes:
            code = directions.code(kind, arguments.dim).to_json()
            indexes[kind] = ImageIndex.create(str(scratch / kind), replace(model, code=code))
        index = indexes["float32"]
        began = time.perf_counter()
        truth = _write(list(indexes.values()), generated)
        written = time.perf_counter() - began
        report: dict[str, Any] = {
            "environment": describe_machine("cpu"),
            "settings": {**asdict(arguments), "scratch": ""},
            "search": {"top": TOP, "least_probes": LEAST_PROBES, "refine_factor": REFINE_FACTOR},
            "write_seconds": written,
            "floor": _floor(arguments),
            "cells": [_measured(index, "exact", generated.queries[: arguments.exact_queries], truth)],
        }
        for kind in arguments.kinds:
            report["cells"].append(_built(index, kind, generated.queries, truth, scratch))
            print(*row(report, report["cells"][-1]), sep="  ", file=sys.stderr, flush=True)
        for kind in arguments.codes:
            cell = _measured(indexes[kind], kind, generated.queries, truth)
            report["cells"].append({**cell, "bytes": _size(scratch / kind)})
            print(*row(report, report["cells"][-1]), sep="  ", file=sys.stderr, flush=True)
    finally:
        shutil.rmtree(scratch)
    write_results(arguments.to, "search", report, page(report))


class _Generated:
    """Vectors of unit length, the same for the same seed, a batch at a time."""

    def __init__(self, arguments: Arguments) -> None:
        random = np.random.default_rng(arguments.seed)
        self.arguments = arguments
        self.spread = random.standard_normal((LATENT, arguments.dim), dtype=np.float32)
        centres = max(1, arguments.rows // arguments.cluster_size)
        self.centres = random.standard_normal((centres, LATENT), dtype=np.float32)
        self.queries = self.drawn(arguments.queries, np.random.default_rng([arguments.seed, 1]))

    def drawn(self, count: int, random: np.random.Generator) -> np.ndarray:
        chosen = self.centres[random.integers(0, len(self.centres), count)]
        latent = chosen + 0.5 * random.standard_normal((count, LATENT), dtype=np.float32)
        noise = 0.7 * random.standard_normal((count, self.arguments.dim), dtype=np.float32)
        vectors = latent @ self.spread + noise
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def batches(self) -> Iterator[tuple[int, np.ndarray]]:
        for start in range(0, self.arguments.rows, BATCH):
            random = np.random.default_rng([self.arguments.seed, 2, start])
            yield start, self.drawn(min(BATCH, self.arguments.rows - start), random)


def _write(indexes: list[Any], generated: _Generated) -> np.ndarray:
    """The rows of the nearest vectors to each query, by all products; the vectors are then in each index."""
    waiting: list[list[pyarrow.Table]] = [[] for _ in indexes]
    best = np.full((len(generated.queries), TOP), -np.inf, dtype=np.float32)
    rows = np.zeros_like(best, dtype=np.int64)
    for start, vectors in generated.batches():
        numbers = np.arange(start, start + len(vectors))
        names = [f"{number:09d}" for number in numbers]
        modified = pyarrow.array(numbers).cast(pyarrow.timestamp("us", "UTC"))
        columns = {
            "id": names,
            "path": names,
            "label": pyarrow.nulls(len(names), pyarrow.string()),
            "size": numbers,
            "modified": modified,
            "content": names,
            "thumbnail": pyarrow.array([b""] * len(names), pyarrow.binary()),
        }
        last = start + len(vectors) == generated.arguments.rows
        for index, tables in zip(indexes, waiting, strict=True):
            own = columns | _stored(vectors, index.model.small)
            tables.append(pyarrow.table(own, schema=index.table.schema))
            if last or len(tables) * BATCH >= COMMIT_ROWS:
                index.table.add(pyarrow.concat_tables(tables))
                tables.clear()
        scores = np.concatenate([best, generated.queries @ vectors.T], axis=1)
        known = np.concatenate([rows, np.broadcast_to(numbers, (len(rows), len(numbers)))], axis=1)
        kept = np.argpartition(-scores, TOP, axis=1)[:, :TOP]
        best, rows = (np.take_along_axis(one, kept, axis=1) for one in (scores, known))
    return rows


def _stored(vectors: np.ndarray, small: Any) -> dict[str, pyarrow.Array]:
    """The columns of the vectors, as `vector_cells` would fill them row by row."""

    def lists(rows: np.ndarray) -> pyarrow.Array:
        return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(rows.ravel()), rows.shape[1])

    if small is None:
        return {"vector": lists(vectors)}
    projected = small.project(vectors)
    columns = {"vector": lists(small.bits(projected))}
    return columns | ({"code": lists(small.bytes(projected))} if small.kind == "int8" else {})


def _floor(arguments: Arguments) -> dict[str, float]:
    """What an exact search cannot do without: all bytes copied once, and all products from memory."""
    block = np.ones((BLOCK_BYTES // (4 * arguments.dim), arguments.dim), dtype=np.float32)
    target, query = np.empty_like(block), np.ones(arguments.dim, dtype=np.float32)
    share = arguments.rows / len(block)
    copies, products = [], []
    for _ in range(7):
        began = time.perf_counter()
        np.copyto(target, block)
        copied = time.perf_counter()
        _ = block @ query
        products.append(time.perf_counter() - copied)
        copies.append(copied - began)
    return {
        "copy_seconds": float(np.median(copies)) * share,
        "product_seconds": float(np.median(products)) * share,
        "bytes": 4.0 * arguments.rows * arguments.dim,
    }


def _built(index: Any, kind: Any, queries: np.ndarray, truth: np.ndarray, scratch: Path) -> dict[str, Any]:
    from tuplet.search.approximate import build_approximate_index

    before = _size(scratch)
    began = time.perf_counter()
    build_approximate_index(index, kind)
    built = time.perf_counter() - began
    size = _size(scratch) - before
    return {**_measured(index, kind, queries, truth), "build_seconds": built, "bytes": size}


def _measured(index: Any, kind: str, queries: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    times, shares = [], []
    for query, wanted in zip(queries, truth, strict=False):
        began = time.perf_counter()
        found = index.nearest(query, TOP, exact=kind == "exact")
        times.append(time.perf_counter() - began)
        shares.append(len({int(one.picture.path) for one in found} & set(wanted.tolist())) / TOP)
    rest = times[1:] or times
    return {
        "kind": kind,
        "num_queries": len(times),
        "recall": float(np.mean(shares)),
        "first_seconds": times[0],
        "median_seconds": float(np.median(rest)),
        "p99_seconds": float(np.percentile(rest, 99)),
    }


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def row(report: dict[str, Any], cell: dict[str, Any]) -> tuple[str, ...]:
    """One line of the table."""
    floor = report["floor"]["copy_seconds"]
    return (
        cell["kind"],
        duration(cell["build_seconds"]) if "build_seconds" in cell else "",
        bytes_text(cell["bytes"]) if "bytes" in cell else "",
        duration(cell["first_seconds"]),
        duration(cell["median_seconds"]),
        duration(cell["p99_seconds"]),
        f"{cell['median_seconds'] / floor:.3g}",
        f"{100 * cell['recall']:.1f} %",
    )


def page(report: dict[str, Any]) -> str:
    """The results as Markdown."""
    settings, machine, floor, search = (report[key] for key in ("settings", "environment", "floor", "search"))
    size = settings["cluster_size"]
    lines = [
        "# Searching many vectors",
        "",
        f"{settings['rows']:,} generated vectors of {settings['dim']} dimensions, seed {settings['seed']},"
        f" in {f'clusters of {size}' if size > 1 else 'no clusters'};"
        f" {machine['processor']}, {settings['cores']} cores; {commit_text(machine)},"
        f" {machine['started'][:10]}.",
        "",
        f"    {machine['command']}",
        "",
        "| index | build | its bytes | first search | median | p99 | median to the floor | recall@10 |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        *(f"| {' | '.join(row(report, cell))} |" for cell in report["cells"]),
        "",
        f"- *floor*: all {bytes_text(floor['bytes'])} copied once in memory:"
        f" {duration(floor['copy_seconds'])}; the products alone, from memory, take",
        f"  {duration(floor['product_seconds'])}. The exact search reads them from the disk's cache and"
        " cannot be faster;",
        "  an approximate one looks at a part of them.",
        f"- *approximate*: at least {search['least_probes']} parts are looked into, and the"
        f" {search['refine_factor'] * search['top']} best candidates ranked by",
        f"  their true distance. Recall is of the {search['top']} nearest by all products, over"
        f" {settings['queries']:,} vectors that are not",
        "  in the index.",
        f"- writing the vectors took {duration(report['write_seconds'])}, with counting the exact answer.",
        *_about_codes(settings),
        "",
    ]
    return "\n".join(lines)


def _about_codes(settings: dict[str, Any]) -> list[str]:
    """What the rows of small vectors are, if there are any."""
    if not settings.get("codes"):
        return []
    return [
        "- *int8*, *bits*: the whole index of the same vectors in few bytes, without floats. A search goes"
        " through the bits",
        "  of every vector, and ranks 400 candidates by their bytes, or by their bits against the query as"
        " floats.",
    ]


if __name__ == "__main__":
    main(tyro.cli(Arguments))
