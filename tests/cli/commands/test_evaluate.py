from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
from picture_folder import draw, save_model
from PIL import Image
from training_runs import trained_by_command

from tuplet.cli.commands.evaluate import saved_files
from tuplet.cli.console import metric_table
from tuplet.config import RunConfig
from tuplet.config.overrides import override
from tuplet.evaluation.embedding_files import read_embeddings
from tuplet.evaluation.measure import EvalReport
from tuplet.models.embedder import Embedder
from tuplet.training.run_folder import Run, write_config


@pytest.fixture
def says(says: Callable[..., str]) -> Callable[..., str]:
    return partial(says, "evaluate")


@pytest.fixture
def fails(fails: Callable[..., str]) -> Callable[..., str]:
    return partial(fails, "evaluate")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawings: classes 0 to 3 train, 4 to 6 are queries and gallery, 7 to 9 other queries."""
    root = tmp_path_factory.mktemp("evaluate")
    draw(root / "data" / "train", range(4), range(6))
    draw(root / "data" / "query", range(4, 7), range(2))
    draw(root / "data" / "gallery", range(4, 7), range(2, 6))
    draw(root / "others" / "test", range(7, 10), range(5))
    return root


@pytest.fixture(scope="module")
def run(folder: Path, tiny: RunConfig) -> Run:
    changes = {"data.source": "folder", "data.root": str(folder / "data"), "schedule.epochs": 2}
    return trained_by_command(override(tiny, changes), folder)


def test_a_run_has_its_gallery_in_training_and_after(run: Run, says) -> None:
    first, middle, last = (epoch.evaluation for epoch in run.reports())
    assert first is not None
    assert middle is not None
    assert last is not None
    assert (last.num_images, last.num_queries, last.num_gallery) == (6, 6, 12)
    assert last.clustering is None
    assert first.intervals is None
    assert middle.intervals is None
    printed = json.loads(says(run.folder, "--json"))
    assert (printed.pop("notes"), printed.pop("model")) == ([], "last epoch of 2")
    assert EvalReport.from_dict(printed) == last
    assert last.intervals is not None
    words = says(run.folder)
    assert "6 images of 3 classes, 6 queries in a gallery of 12; last epoch of 2" in words
    interval = last.intervals["recall_at_1"]["classes"]
    assert interval is not None
    assert f"{100 * interval.low:6.2f} .. {100 * interval.high:.2f} %" in words
    assert "NMI and AMI are left out" in words


def test_the_same_numbers_from_a_run_its_model_and_its_embeddings(
    run: Run, folder: Path, tmp_path: Path, says
) -> None:
    images = ("--images", folder / "data" / "query", "--gallery-images", folder / "data" / "gallery")
    last = run.reports()[-1].evaluation
    assert last is not None
    for ending in (".npz", ".parquet"):
        save = tmp_path / f"saved{ending}"
        of_run = json.loads(says(run.folder, *images, "--json", "--save", save))
        of_model = json.loads(says(run.model_folder, *images, "--json"))
        gallery = tmp_path / f"saved-gallery{ending}"
        of_file = json.loads(says(save, "--gallery", gallery, "--json"))
        for printed in (of_run, of_model, of_file):
            assert printed["retrieval"] == last.retrieval
            assert printed["num_gallery"] == 12
            assert printed["notes"] == []
        found = read_embeddings(save)
        assert found.names is not None
        assert Path(found.names[0]) == folder / "data" / "query" / "class 4" / "0.png"
        assert found.class_names is not None
        assert found.class_names[found.labels[0]] == "class 4"


def test_several_splits_and_what_training_saw(run: Run, folder: Path, tmp_path: Path, says) -> None:
    train, others = folder / "data" / "train", folder / "others" / "test"
    arguments = [run.folder, "--images", others, "--images", train, "--recall-at", 1, 5, "--kmeans-runs", 1]
    unseen, seen = json.loads(says(*arguments, "--json", "--save", tmp_path / "x.npz"))
    assert (unseen["split"], unseen["num_images"], unseen["num_classes"]) == (str(others), 15, 3)
    assert (seen["split"], seen["num_images"], seen["num_classes"]) == (str(train), 24, 4)
    assert list(unseen["retrieval"]) == ["recall_at_1", "recall_at_5", "r_precision", "map_at_r"]
    assert "runs: 1," in unseen["clustering"]["settings"]
    assert unseen["notes"] == []
    (warning,) = seen["notes"]
    assert warning.startswith("warning: 4 of 4 classes have names of training classes (class 0, ")
    assert len(read_embeddings(tmp_path / "x-1.npz").labels) == 15
    assert len(read_embeddings(tmp_path / "x-2.npz").labels) == 24
    words = says(*arguments)
    assert words.count(" % interval over classes") == 2
    assert words.count("warning: ") == 1


def test_training_images_that_are_gone(run: Run, folder: Path, tmp_path: Path, says) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run.folder, copy)
    config = override(run.config, {"data.root": str(tmp_path / "gone")})
    (copy / "config.yaml").write_text(write_config(config))
    (note,) = json.loads(says(copy, "--images", folder / "others" / "test", "--json"))["notes"]
    assert note.startswith("note: cannot tell whether the model was trained on some of these classes: ")


def test_a_model_from_elsewhere(folder: Path, tmp_path: Path, says, fails) -> None:
    model = tmp_path / "model"
    Embedder("tuplet_convnet", 8, pretrained=False).save_pretrained(model)
    arguments = (model, "--images", folder / "others" / "test", "--compute.num-workers", 0)
    words = says(*arguments, "--kmeans-runs", 0)
    assert "note: nothing says which classes" in words
    assert "short side at 55, 48 x 48 pixels cut out (--data.resize, --data.image-size)" in words
    words = says(*arguments, "--data.image-size", 16, "--data.augmentation", "none")
    assert "images at 16 x 16 pixels" in words
    assert "is a saved model, without images; want --images FOLDER too" in fails(model)
    (model / "model.safetensors").write_bytes(b"junk")
    assert "cannot be read as a saved model" in fails(*arguments)


def test_other_images_by_root(run: Run, folder: Path, says) -> None:
    draw(folder / "half", range(1, 7), range(3))
    words = says(run.folder, "--data.root", folder / "half")
    assert "test split: 9 images of 3 classes" in words
    assert "warning" not in words
    words = says(run.folder, "--data.root", folder / "half", "--data.train-fraction", 0.34)
    assert "warning: 1 of 4 classes have names of training classes (class 3):" in words


def test_embeddings_with_labels_beside(tmp_path: Path, says) -> None:
    np.save(tmp_path / "x.npy", np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1], [1, 0.2]], dtype=np.float16))
    (tmp_path / "y.txt").write_text("oak\noak\nelm\nelm\noak\n")
    words = says(tmp_path / "x.npy", "--labels", tmp_path / "y.txt", "--distance", "euclidean")
    assert words.startswith(
        f"{tmp_path / 'x.npy'}: 5 images of 2 classes, 5 queries, by euclidean distance\n"
    )
    assert "Recall@1     100.00 %  100.00 .. 100.00 %" in words
    assert "NMI" in words
    assert "runs: 3," in says(tmp_path / "x.npy", "--labels", tmp_path / "y.txt", "--kmeans-runs", 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("nowhere", "nowhere does not exist; want the folder of a run, the folder of a saved model, or"),
        ("--json", "tuplet evaluate starts with '--json'; want RUN, MODEL or FILE first"),
        ("DATA", "holds neither a run (config.yaml) nor a saved model (config.json and"),
        ("'DATA/train/class 0/0.png'", "is no file of embeddings by its name; want .npy, .npz or .parquet"),
        ("RUN --gallery-images DATA/gallery", "--gallery-images stands without --images"),
        ("RUN --images DATA", "holds train and query and gallery, which would be taken for classes"),
        ("RUN --images nowhere", "nowhere does not exist; want a folder of class folders"),
        ("RUN --recall-at 0", "tuplet: --recall-at is 0; want one or more ranks, each 1 or more"),
        ("RUN --kmeans-runs -1", "tuplet: --kmeans-runs is -1; want 0 or more"),
        ("RUN --save x.csv", "want a name that ends in .npz or .parquet"),
        ("RUN --distance far", "--distance is 'far'; want one of cosine, euclidean"),
        ("FILE --gallery-labels FILE", "--gallery-labels is missing its gallery"),
        ("FILE --labels nowhere.txt", "nowhere.txt: there is no such file"),
        ("FILE --images DATA", "there is no option --images"),
    ],
)
def test_mistakes_end_in_one_line(run, folder, tmp_path, arguments: str, message: str, fails) -> None:
    np.savez(tmp_path / "x.npz", embeddings=np.eye(4), labels=[0, 0, 1, 1])
    for word, path in (("RUN", run.folder), ("DATA", folder / "data"), ("FILE", tmp_path / "x.npz")):
        arguments = arguments.replace(word, str(path))
    assert message in fails(*shlex.split(arguments))


def test_weights_are_measured_by_their_folder(run: Run, fails) -> None:
    weights = run.model_folder / "model.safetensors"
    for file, folder in ((weights, run.model_folder), (run.checkpoint_file, run.folder)):
        error = fails(file, "--images", run.folder)
        assert error.endswith(f"is a file of weights; want the folder of its run or saved model: {folder}\n")


def test_help_says_what_it_takes(says) -> None:
    words = says()
    for option in ("--images", "--gallery-images", "--labels", "--save", "--json", "--recall-at"):
        assert option in words
    assert max(map(len, words.splitlines())) <= 110


def test_where_embeddings_are_saved(tmp_path: Path) -> None:
    save = tmp_path / "x.y.npz"
    assert saved_files(None, 2, with_gallery=True) == []
    assert saved_files(save, 1, with_gallery=False) == [save]
    names = [file.name for file in saved_files(save, 2, with_gallery=True)]
    assert names == ["x.y-1.npz", "x.y-2.npz", "x.y-gallery.npz"]


def test_one_class_has_no_interval_over_classes() -> None:
    intervals = {"recall_at_1": {"queries": None, "classes": None}}
    report = EvalReport("validation", {"recall_at_1": 1.0}, None, 3, 1, 3, None, intervals)
    assert metric_table(report).splitlines() == [
        "validation split: 3 images of 1 class, 3 queries",
        "  Recall@1     100.00 %",
        "  without intervals: there is one class, and nothing shows how another would do",
    ]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "model")


def pictures(root: Path, sizes: dict[str, int]) -> Path:
    """A folder of noise: this many pictures of each class."""
    rng = np.random.default_rng(crc32(root.name.encode()))
    for name, size in sizes.items():
        (root / name).mkdir(parents=True)
        for number in range(size):
            pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


@pytest.fixture
def notes(model: Path, says: Callable[..., str]) -> Callable[..., list[str]]:
    """Measure images and return what is said of them, but for their classes, of which nothing is known."""
    options = ("--json", "--kmeans-runs", 0, "--compute.num-workers", 0, "--compute.accelerator", "cpu")

    def notes(*arguments: object) -> list[str]:
        *said, unseen = json.loads(says(model, *arguments, *options))["notes"]
        assert unseen.startswith("note: nothing says which classes")
        return said

    return notes


def test_nothing_is_said_of_images_that_can_be_measured(notes, tmp_path: Path) -> None:
    plain = pictures(tmp_path / "plain", {"a": 5, "b": 5})
    assert notes("--images", plain) == []
    others = pictures(tmp_path / "others", {"a": 5, "b": 5})
    assert notes("--images", plain, "--gallery-images", others) == []


def test_one_class_and_classes_of_one_image(notes, tmp_path: Path) -> None:
    one = pictures(tmp_path / "one", {"a": 10})
    lonely = pictures(tmp_path / "lonely", {"a": 8, "b": 1, "c": 1})
    right = "note: there is one class, so every result is right and every measure perfect"
    assert notes("--images", one) == [right]
    left_out = "note: 2 classes with one image: no query can find it, left out of Recall"
    assert notes("--images", lonely) == [left_out]


def test_a_gallery_of_other_classes(notes, fails, model: Path, tmp_path: Path) -> None:
    queries = pictures(tmp_path / "queries", {"a": 1, "b": 2, "c": 1})
    some = pictures(tmp_path / "some", {"b": 10, "z": 5})
    one = pictures(tmp_path / "one", {"c": 9})
    missing = "note: 2 classes without an image in the gallery: left out of Recall"
    assert notes("--images", queries, "--gallery-images", some) == [missing]
    right = "note: there is one class in the gallery, so every result is right"
    assert notes("--images", queries, "--gallery-images", one) == [right, missing]
    none = pictures(tmp_path / "none", {"x": 2, "y": 1})
    error = fails(model, "--images", queries, "--gallery-images", none)
    assert f"{queries} and the gallery have no class in common (3 classes and 2); want " in error


@pytest.mark.parametrize(
    ("ranks", "gallery", "named"),
    [
        ("8 9 100", False, "Recall@9, Recall@100: no query can miss, because it searches only 9 images"),
        ("8 9", True, ""),
        ("10", True, "Recall@10: no query can miss, because it searches only 10 images"),
    ],
)
def test_ranks_that_hold_everything(ranks: str, gallery: bool, named: str, notes, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "pictures", {"a": 5, "b": 5})
    others = pictures(tmp_path / "others", {"a": 5, "b": 5})
    searched = ("--gallery-images", others) if gallery else ()
    said = notes("--images", folder, *searched, "--recall-at", *ranks.split())
    assert said == ([f"note: {named}"] if named else [])
