"""The queue of a study: what fails stops nothing, what was begun goes on, what is finished stays as it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tuplet.claims.measures import seed_pairs, shared_neighbours
from tuplet.claims.plan import Job, run_key
from tuplet.claims.running import failure_file, failure_of, run_folder, run_jobs, state_of
from tuplet.config import RunConfig
from tuplet.experiment import Images
from tuplet.overrides import override
from tuplet.runs import Run
from tuplet.training import launch


@pytest.fixture(scope="module")
def quick(tiny: RunConfig) -> RunConfig:
    return override(tiny, {"schedule.epochs": 2, "evaluation.kmeans_runs": 0})


def job(config: RunConfig, **changes) -> Job:
    changed = override(config, {path.replace("__", "."): value for path, value in changes.items()})
    return Job(run_key(changed), changed, ", ".join(f"{path}={value}" for path, value in changes.items()))


def test_a_failed_run_is_told_and_stops_nothing(tmp_path: Path, quick: RunConfig) -> None:
    jobs = [
        job(quick, seed=1, optimizer__lr_backbone=1e30, schedule__warmup_epochs=0),
        job(quick, seed=2, data__batch_size=64),
        job(quick, seed=3),
    ]
    fabric, images = launch(quick), Images()
    told: list[str] = []
    failures: list[str] = []

    def run() -> None:
        run_jobs(
            jobs,
            tmp_path,
            fabric=fabric,
            images=images,
            on_job=lambda one, left: told.append(f"{one.title} {left}"),
            on_failure=lambda one, error: failures.append(error),
        )

    run()
    assert [state_of(tmp_path, one.key) for one in jobs] == ["failed", "failed", "finished"]
    assert [line.rpartition(" ")[2] for line in told] == ["3", "2", "1"]
    assert "training stopped at epoch 1" in failures[0]
    assert "36 training images; want at least data.batch_size = 64" in failures[1]
    assert failure_of(tmp_path, jobs[1].key) == failures[1]
    assert Run(run_folder(tmp_path, jobs[2].key)).config == jobs[2].config

    told.clear()
    run()  # what diverged would diverge again; what else failed may have been mended
    assert [line.rpartition(" ")[0] for line in told] == [jobs[1].title]
    failure_file(tmp_path, jobs[0].key).unlink()
    assert state_of(tmp_path, jobs[0].key) == "begun"


def test_a_stopped_run_goes_on_and_others_jobs_are_done_too(tmp_path: Path, quick: RunConfig) -> None:
    mine, other = job(quick, seed=4), job(quick, seed=5)
    fabric, images = launch(quick), Images()

    def stop(run: Run, report) -> None:
        if report.epoch == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_jobs([mine], tmp_path, fabric=fabric, images=images, on_epoch=stop)
    assert state_of(tmp_path, mine.key) == "begun"
    epochs = []
    run_jobs(
        [other],  # as another command in the same folder
        tmp_path,
        fabric=fabric,
        images=images,
        on_epoch=lambda run, report: epochs.append((run.config.seed, report.epoch)),
    )
    assert sorted(epochs) == [(4, 2), (5, 0), (5, 1), (5, 2)]
    assert [state_of(tmp_path, one.key) for one in (mine, other)] == ["finished", "finished"]


def test_images_are_decoded_once_for_runs_on_the_same_ones(quick: RunConfig) -> None:
    images = Images()
    first = images.of(quick)
    for changes in ({"data.label_noise": 0.2}, {"data.batch_size": 4}, {"seed": 9}, {"data.imbalance": 3}):
        assert images.of(override(quick, changes)) is first
    assert len(first.train) == 36
    more = images.of(override(quick, {"data.glyph_train_classes": 7}))
    assert len(more.train) == 42
    assert len(images.of(quick).train) == 36


def test_state_of_what_was_never_begun(tmp_path: Path, quick: RunConfig) -> None:
    assert state_of(tmp_path, run_key(replace(quick, seed=77))) == "not run"


def test_shared_neighbours_against_loops() -> None:
    generator = np.random.default_rng(0)
    first = generator.standard_normal((12, 4)).astype(np.float32)
    second = (first + 0.6 * generator.standard_normal((12, 4))).astype(np.float32)

    def nearest(rows: np.ndarray, i: int) -> set[int]:
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        order = sorted((j for j in range(12) if j != i), key=lambda j: -float(unit[i] @ unit[j]))
        return set(order[:3])

    wanted = np.mean([len(nearest(first, i) & nearest(second, i)) / 3 for i in range(12)])
    assert 0 < wanted < 1
    assert shared_neighbours(first, second, num_neighbours=3) == pytest.approx(wanted)
    assert shared_neighbours(first, 5 * first, num_neighbours=3) == 1.0


def test_pairs_of_seeds_are_disjoint() -> None:
    assert seed_pairs((3, 4, 5, 6, 7)) == [(3, 4), (5, 6)]
    assert seed_pairs((3,)) == []
