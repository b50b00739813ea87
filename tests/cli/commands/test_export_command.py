from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from picture_folder import draw
from PIL import Image
from training_runs import trained_by_command

from tuplet.cli.main import main
from tuplet.config import RunConfig
from tuplet.config.overrides import override
from tuplet.models import Embedder
from tuplet.search.index import ImageIndex
from tuplet.training.run_folder import Run


@pytest.fixture
def says(says: Callable[..., str]) -> Callable[..., str]:
    return partial(says, "export")


@pytest.fixture
def fails(fails: Callable[..., str]) -> Callable[..., str]:
    return partial(fails, "export")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawings: classes 0 to 3 train, 4 to 6 are queried."""
    root = tmp_path_factory.mktemp("export")
    draw(root / "drawings" / "train", range(4), range(4))
    draw(root / "drawings" / "test", range(4, 7), range(4))
    return root


@pytest.fixture(scope="module")
def run(folder: Path, tiny: RunConfig) -> Run:
    changes = {"data.source": "folder", "data.root": str(folder / "drawings"), "schedule.epochs": 1}
    return trained_by_command(override(tiny, changes), folder)


@pytest.fixture(scope="module")
def hub(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run exported for the hub, far from it."""
    target = tmp_path_factory.mktemp("hub") / "folder"
    main(["export", str(run.folder), "--to", "hub", "--output", str(target)])
    return target


def test_a_run_becomes_onnx_beside_its_model(run: Run, folder: Path, says, fails) -> None:
    words = says(run.folder, "--to", "onnx")
    assert f"compared  on 10 test images of {folder / 'drawings'}\n" in words
    assert re.search(r"in batches of 1 and of 5: largest difference \d\.\de-\d\d, of at most 1e-04\n", words)
    assert f"written   {run.folder / 'model.onnx'}  " in words
    assert "ONNX, opset 18" in words
    assert "uint8 RGB [N, 3, 16, 16], 0..255; before it the whole picture resized to 16 x 16 pixels" in words
    metadata = {one.key: one.value for one in onnx.load(run.folder / "model.onnx").metadata_props}
    assert metadata["tuplet.run"] == "tiny"
    again = fails(run.folder, "--to", "onnx")
    assert again == f"tuplet: {run.folder / 'model.onnx'} exists; want another --output, or --overwrite\n"


def test_a_program_in_a_folder_compared_on_other_pictures(run: Run, folder: Path, tmp_path, says) -> None:
    pictures = folder / "drawings" / "train"
    words = says(run.folder, "--to", "torch", "--output", tmp_path, "--check", pictures)
    assert f"compared  on 10 pictures of {pictures}\n" in words
    program = torch.export.load(tmp_path / "model.pt2").module()
    pixels = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    torch.testing.assert_close(program(pixels), run.embedder()(pixels), atol=1e-4, rtol=0)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]


def test_the_card_knows_the_run_and_no_place(run: Run, folder: Path, hub: Path) -> None:
    card = (hub / "README.md").read_text()
    assert "16 images of 4 classes trained it" in card
    assert "12 test images of 3 classes that it was not trained on, 12 queries" in card
    assert "**Selection: last epoch of 1.**" in card
    last = run.reports()[-1].evaluation
    assert last is not None
    assert f"**{100 * last.retrieval['recall_at_1']:.2f}**" in card
    assert Path(__file__).parents[2].as_posix() not in card
    for file in hub.iterdir():
        content = file.read_bytes()
        for place in (folder, hub.parent, Path.home()):
            assert place == Path("/") or str(place).encode() not in content, file


def test_the_example_of_the_card_runs_in_its_folder(
    run: Run, folder: Path, hub: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    capsys.readouterr()
    shutil.copytree(hub, tmp_path / "here")
    for name, source in (("a.jpg", "class 4/0.png"), ("b.jpg", "class 5/1.png")):
        Image.open(folder / "drawings" / "test" / source).save(tmp_path / "here" / name)
    monkeypatch.chdir(tmp_path / "here")
    (block,) = re.findall(r"```python\n(.*?)```", (hub / "README.md").read_text(), re.S)
    found: dict[str, torch.Tensor] = {}
    exec(block, found)
    assert found["pixels"].shape == (2, 3, 16, 16)
    a, b = torch.nn.functional.normalize(run.embedder()(found["pixels"])).detach()
    torch.testing.assert_close(found["a"], a)
    printed = re.findall(r"-?\d\.\d+", capsys.readouterr().out)
    assert float(printed[0]) == pytest.approx(float(a @ b), abs=1e-3)


def test_what_the_hub_has_is_exported_again_as_it_was(hub: Path, says) -> None:
    words = says(hub, "--to", "hub")
    assert "before it the whole picture resized to 16 x 16 pixels" in words
    assert "on 10 squares of seeded noise, because no run says which images are its test images" in words
    assert "to do     add a license to README.md" in words
    again = hub.with_name("folder-hub")
    assert f"written   {again}  " in words
    assert (again / "preprocessing.json").read_text() == (hub / "preprocessing.json").read_text()
    assert "Nothing was measured" in (again / "README.md").read_text()
    assert Embedder.from_pretrained(str(again)).embedding.out_features == 16


def test_what_the_hub_has_sees_pictures_as_its_run_does(
    run: Run, folder: Path, hub: Path, tmp_path: Path, capsys
) -> None:
    capsys.readouterr()
    pictures = folder / "drawings" / "test"
    vectors, metrics = [], []
    for model in (run.folder, hub):
        index = tmp_path / model.name
        on = ["--model", str(model), "--index", str(index), "--accelerator", "cpu"]
        main(["index", str(pictures), *on])
        (batch,) = ImageIndex(str(index)).vectors()
        order = np.argsort([one.path for one in batch.pictures])
        vectors.append(batch.vectors[order])
        capsys.readouterr()
        main(["evaluate", str(model), "--images", str(pictures), "--compute.accelerator", "cpu"])
        printed = capsys.readouterr().out
        metrics.append([line for line in printed.splitlines() if "Recall@" in line or "MAP@R" in line])
    assert len(vectors[0]) == 12
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-6)
    assert len(metrics[0]) >= 2
    assert metrics[0] == metrics[1]
    assert "images at 16 x 16 pixels" in printed
    assert ImageIndex(str(tmp_path / hub.name)).model.augmentation == "none"


def test_a_run_without_its_images_says_so(run: Run, tmp_path: Path, says) -> None:
    gone = tmp_path / "gone"
    words = says(run.folder, "--to", "hub", "--output", tmp_path / "hub", "--data.root", gone)
    assert f"on 10 squares of seeded noise, because data.root {gone} does not exist" in words
    assert "note      README.md does not say how many images trained it: data.root" in words
    assert "How many images trained it is not said" in (tmp_path / "hub" / "README.md").read_text()


def test_other_images_are_not_counted_as_those_of_the_training(
    run: Run, folder: Path, tmp_path: Path, says
) -> None:
    shutil.copytree(folder / "drawings", tmp_path / "others")
    (tmp_path / "others" / "train" / "class 0" / "0.png").unlink()
    to = ("--to", "hub", "--output", tmp_path / "hub")
    words = says(run.folder, *to, "--data.root", tmp_path / "others")
    assert "these are other images" in words
    assert "How many images trained it is not said" in (tmp_path / "hub" / "README.md").read_text()


def test_the_path_of_the_first_weights_is_left_behind(tmp_path: Path, says) -> None:
    network = Embedder("tuplet_convnet", 8, pretrained=False)
    network.save_pretrained(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config |= {"weights": "/home/jane/start.pth", "pretrained": True}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    says(tmp_path / "model", "--to", "hub")
    for file in (tmp_path / "model-hub").iterdir():
        assert b"jane" not in file.read_bytes()


def test_one_line_says_what_is_wrong(run: Run, tmp_path: Path, fails, capsys) -> None:
    assert "nowhere does not exist; want the folder of a run" in fails(tmp_path / "nowhere")
    assert "config.yaml is a file; want the folder" in fails(run.config_file, "--to", "onnx")
    assert "starts with '--to'; want RUN or MODEL first" in fails("--to", "onnx", run.folder)
    assert "--to is missing; want one of onnx, torch, hub" in fails(run.folder)
    assert "--to is 'tflite'; want one of onnx, torch, hub" in fails(run.folder, "--to", "tflite")
    assert "does not end in .onnx" in fails(run.folder, "--to", "onnx", "--output", tmp_path / "x.bin")
    empty = fails(run.folder, "--to", "onnx", "--check", tmp_path, "--output", tmp_path / "x.onnx")
    assert "has no images that can be read" in empty
    assert "holds neither a run" in fails(tmp_path, "--to", "onnx")
    (tmp_path / "config.yaml").write_text(run.config_file.read_text())
    assert "has no finished epoch; want one" in fails(tmp_path, "--to", "onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
    main(["export", "--help"])
    assert capsys.readouterr().out.startswith("usage: tuplet export RUN --to onnx|torch|hub")
