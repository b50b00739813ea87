r"""Does a calibration keep its promise? Train, calibrate, index and classify birds, ten species unknown.

The model trains on half of the training species and is calibrated on the other half. Of the 100 test species,
ten are left out of the index; of each of the others, every second picture is in it. All other pictures are
asked: what share is answered, how many answers are right, and how many pictures of the ten species are
recognised as unknown?

    python -m benchmarks.birds --data ../shared/data/cub200_2010 \
        --weights ../shared/weights/tf_efficientnet_lite0.safetensors --to runs/birds
"""

from __future__ import annotations

import argparse
import csv
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tuplet.cli.main import main as tuplet
from tuplet.data.files import write_atomically
from tuplet.evaluation.calibration import read_calibration
from tuplet.metrics.answers import AnswersAt
from tuplet.metrics.open_set import Answers
from tuplet.report.markdown import table_head, table_row

NUM_UNKNOWN = 10


@dataclass(frozen=True)
class Story:
    """What to run.

    Attributes:
        data: folder with train/SPECIES/* and test/SPECIES/*.
        to: a folder for everything.
        training: arguments of `tuplet train` after the data.
        goal: arguments of `tuplet calibrate` after the run.
    """

    data: Path
    to: Path
    training: Sequence[str]
    goal: Sequence[str]


def run(story: Story) -> dict[str, Any]:
    """Run the story and return what was promised and what came of it."""
    folder = story.to / "run"
    if not (folder / "calibration.json").exists():
        split = ["--evaluation.split", "validation", "--evaluation.validation-folds", "2"]
        tuplet(
            ["train", "folder", "--data.root", str(story.data), "--to", str(folder), *split, *story.training]
        )
        tuplet(["calibrate", str(folder), *story.goal])
    unknown = lay_out(story.data / "test", story.to)
    index, answers = str(story.to / "index"), story.to / "answers.csv"
    tuplet(["index", str(story.to / "indexed"), "--model", str(folder), "--index", index])
    tuplet(["classify", str(story.to / "asked"), "--index", index, "--to", str(answers)])
    calibration = read_calibration(folder / "calibration.json")
    asked = read_answers(answers, unknown, calibration.num_votes)
    levels = {"same": calibration.same_from, "same_or_unsure": calibration.unsure_from}
    kept = {name: asdict(asked.at_threshold(threshold)) for name, threshold in levels.items()}
    promised = {"same": calibration.validation.answers, "same_or_unsure": calibration.validation.not_nothing}
    return {
        "goal": calibration.goal_words,
        "thresholds": levels,
        "validation": _of(calibration.validation, promised),
        "test": None
        if calibration.test is None
        else _of(
            calibration.test,
            {"same": calibration.test.answers, "same_or_unsure": calibration.test.not_nothing},
        ),
        "index": {
            "indexed_pictures": sum(1 for _ in (story.to / "indexed").glob("*/*")),
            "indexed_species": sum(1 for _ in (story.to / "indexed").iterdir()),
            "pictures": len(asked.scores),
            "species": len(np.unique(asked.labels)),
            "known": int(asked.known.sum()),
            **kept,
        },
    }


def _of(check: Any, levels: dict[str, AnswersAt]) -> dict[str, Any]:
    return {
        "pictures": check.num_images,
        "species": check.num_classes,
        "ece": check.ece,
        "auroc": check.auroc,
        **{name: asdict(at) for name, at in levels.items()},
    }


def lay_out(test: Path, to: Path) -> set[str]:
    """Link the pictures to index and those to ask, and return the species that are not indexed."""
    species = sorted(one.name for one in test.iterdir() if one.is_dir())
    unknown = set(random.Random(0).sample(species, NUM_UNKNOWN))
    for name in species:
        for place, picture in enumerate(sorted((test / name).iterdir())):
            part = "asked" if name in unknown or place % 2 else "indexed"
            link = to / part / name / picture.name
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.exists():
                link.symlink_to(picture.resolve())
    return unknown


def read_answers(file: Path, unknown: set[str], num_votes: int) -> Answers:
    """Return the answers in a file that tuplet classify wrote, by the species of each picture.

    An answer "nothing like it here" has no label: it counts as a wrong answer with its low score.
    """
    with file.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    species = [Path(row["picture"]).parent.name for row in rows]
    known = np.array([name not in unknown for name in species])
    right = np.array([row["label"] == name for row, name in zip(rows, species, strict=True)])
    scores = np.array([float(row["cosine"]) for row in rows])
    labels = np.unique(species, return_inverse=True)[1].astype(np.int64)
    return Answers(scores, right & known, known, labels, num_votes)


def table(found: dict[str, Any]) -> str:
    """Return the story as a table of Markdown."""
    columns = {"promised": found["validation"], "test, asked as in calibration": found["test"]}
    columns["index less ten species"] = found["index"]
    columns = {title: column for title, column in columns.items() if column is not None}
    asked = (f"{one['pictures']:,} ({one['species']})" for one in columns.values())
    lines = [
        *table_head(["", *columns], "l" + "r" * len(columns)),
        table_row(["pictures (species) that are asked", *asked]),
    ]
    words = {
        "answered": 'known: answered "same"',
        "right": 'known: answered "same", rightly',
        "precision": 'share of all answers "same" that is right',
        "detected": 'unknown: not answered "same"',
    }
    for name, title in words.items():
        lines.append(table_row([title, *(_cell(one["same"], name) for one in columns.values())]))
    more = {"answered": 'known: "same" or "unsure"', "detected": 'unknown: "nothing like it here"'}
    for name, title in more.items():
        lines.append(table_row([title, *(_cell(one["same_or_unsure"], name) for one in columns.values())]))
    return "\n".join(lines)


def _cell(at: dict[str, Any], name: str) -> str:
    interval = at["intervals"][name]
    ends = "" if interval is None else f" ({100 * interval['low']:.1f} to {100 * interval['high']:.1f})"
    return f"{100 * at[name]:.1f} %{ends}"


def _training(weights: Path, epochs: int, side: int) -> list[str]:
    values = {
        "model.backbone": "tf_efficientnet_lite0",
        "model.weights": weights,
        "data.image-size": side,
        "data.resize": round(side * 9 / 8),
        "data.cache": "memory",
        "loss.tau": 24,
        "loss.alpha": 1.15,
        "optimizer.lr-backbone": 3e-4,
        "optimizer.lr-embedding": 3e-4,
        "schedule.epochs": epochs,
        "evaluation.every-epochs": epochs,
        "evaluation.kmeans-runs": 0,
    }
    return [part for name, value in values.items() for part in (f"--{name}", str(value))]


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--side", type=int, default=64, help="pixels of the square that the model sees")
    parser.add_argument("--precision", type=float, default=0.8, help="that the answers 'same' should have")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    given = parser.parse_args()
    training = _training(given.weights, given.epochs, given.side)
    found = run(Story(given.data, given.to, training, ["--precision", str(given.precision)]))
    if given.json is not None:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(given.json, (json.dumps(found, indent=2) + "\n").encode())
    print(table(found))


if __name__ == "__main__":
    _main()
