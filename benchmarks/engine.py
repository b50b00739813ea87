"""What PyTorch and onnxruntime cost: a search, an index, and a plain timm loop over the same pictures.

    python -m benchmarks.engine --photos PHOTOS --weights LITE0.safetensors --to docs/results/engine

writes engine.json and engine.md. Every cell is a process of its own, its start included, and the engines take
turns, so that a busy machine slows all of them alike. `--base FOLDER` adds another checkout of tuplet.
`python -m benchmarks.serve_load --engine onnx` loads the server.
"""

from __future__ import annotations

import shutil
import statistics
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import tyro

from benchmarks.cells import Cell, Cost, describe_machine, run_command
from benchmarks.pages import write_results
from tuplet.models.embedder import Embedder

SIZES = {"tf_efficientnet_lite0": 96, "resnet50": 224}
"""Pixels."""
PLAIN_LOOP = """
import sys, timm, torch
from pathlib import Path
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2
folder, backbone, weights, size = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
network = timm.create_model(backbone, pretrained=False, num_classes=0).eval()
steps = [v2.Resize(round(size * 256 / 224)), v2.CenterCrop(size), v2.ToImage()]
prepare = v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)])
class Pictures(Dataset):
    files = sorted(Path(folder).rglob("*.jpg"))
    def __len__(self): return len(self.files)
    def __getitem__(self, row): return prepare(Image.open(self.files[row]).convert("RGB"))
with torch.inference_mode():
    for pixels in DataLoader(Pictures(), 64, num_workers=2):
        network(pixels)
"""


@dataclass(frozen=True)
class Arguments:
    """Time searches and indexes."""

    photos: Path
    """Folder of JPEGs, at any depth."""
    weights: Path | None = None
    """Of tf_efficientnet_lite0; without, both networks start at random, which takes the same time."""
    base: Path | None = None
    """Another checkout of tuplet, whose search is timed too."""
    pictures: int = 1500
    """Pictures to index, >= 1."""
    networks: tuple[str, ...] = ("tf_efficientnet_lite0", "resnet50")
    """The first at 96 pixels, the second at 224; the searches take the first."""
    repeats: int = 3
    """Processes of each kind; the median counts."""
    to: Path = Path("docs/results/engine")
    """Folder of the results."""


def main(arguments: Arguments) -> None:
    """Time everything, and write it."""
    cells: list[Cell] = []
    with TemporaryDirectory(prefix="engine-") as scratch:
        photos, root = Path(scratch, "photos"), Path(scratch)
        for number, file in enumerate(sorted(arguments.photos.rglob("*.jpg"))[: arguments.pictures]):
            folder = photos / file.parent.name
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, folder / f"{number}.jpg")
        for backbone in arguments.networks:
            cells += _indexing(arguments, root, photos, backbone, SIZES[backbone])
        if "tf_efficientnet_lite0" in arguments.networks:
            cells += _searching(arguments, root, photos)
    report = {"environment": describe_machine("cpu"), "settings": asdict(arguments), "cells": cells}
    write_results(arguments.to, "engine", report, page(report["environment"], cells))


def _indexing(arguments: Arguments, root: Path, photos: Path, backbone: str, size: int) -> list[Cell]:
    model, weights = root / backbone, arguments.weights if "lite0" in backbone else None
    Embedder(backbone, 128, pretrained=weights is not None, weights=weights).save_pretrained(model)
    pictures = sum(1 for _ in photos.rglob("*.jpg"))
    costs: dict[str, list[Cost]] = {}
    for _ in range(arguments.repeats):
        plain = [sys.executable, "-c", PLAIN_LOOP, str(photos), backbone, str(weights), str(size)]
        costs.setdefault("plain timm loop", []).append(run_command(plain))
        for engine in ("torch", "onnx"):
            uri = root / f"{backbone}-{engine}"
            shutil.rmtree(uri, ignore_errors=True)
            name = f"tuplet index --engine {engine}"
            if engine == "onnx" and not model.with_suffix(".onnx").exists():
                one = root / "one"
                one.mkdir(exist_ok=True)
                shutil.copy(next(photos.rglob("*.jpg")), one / "a.jpg")
                command = _index(one, model, root / f"{backbone}-export", size, engine)
                costs["export, once"] = [run_command(command)]
            costs.setdefault(name, []).append(run_command(_index(photos, model, uri, size, engine)))
    return [
        {"what": f"{backbone}, {size} px", "how": how, "pictures": pictures, **_median(found)}
        for how, found in costs.items()
    ]


def _index(photos: Path, model: Path, uri: Path, size: int, engine: str) -> list[str]:
    command = [sys.executable, "-m", "tuplet", "index", str(photos), "--model", str(model)]
    return [*command, "--index", str(uri), "--image-size", str(size), "--engine", engine]


def _searching(arguments: Arguments, root: Path, photos: Path) -> list[Cell]:
    image, model = next(photos.rglob("*.jpg")), root / "tf_efficientnet_lite0"
    index = [str(root / "tf_efficientnet_lite0-onnx")]
    command = [sys.executable, "-m", "tuplet", "search", str(image), "--index"]
    kinds = {
        "torch": ([*command, *index, "--engine", "torch"], None),
        "onnx": ([*command, *index, "--engine", "onnx"], None),
    }
    if arguments.base is not None:
        few = root / "few"
        few.mkdir()
        for number, file in enumerate(list(photos.rglob("*.jpg"))[:20]):
            shutil.copy(file, few / f"{number}.jpg")
        source = arguments.base / "src"
        enter = ["-c", "import sys; from tuplet.cli import main; sys.exit(main())"]
        run_command([sys.executable, *enter, *_index(few, model, root / "base", 96, "torch")[3:-2]], source)
        old = [sys.executable, *enter, *command[3:], str(root / "base")]
        kinds[f"torch, {arguments.base.name}"] = (old, source)
    costs: dict[str, list[Cost]] = {}
    for _ in range(arguments.repeats):
        for name, (words, source) in kinds.items():
            costs.setdefault(name, []).append(run_command(words, source))
    return [{"what": "tuplet search", "how": how, **_median(found)} for how, found in costs.items()]


def _median(costs: list[Cost]) -> dict[str, float]:
    return {
        "seconds": statistics.median(one.seconds for one in costs),
        "cpu_seconds": statistics.median(one.cpu_seconds for one in costs),
    }


def page(machine: Cell, cells: list[Cell]) -> str:
    """Return the results as Markdown."""
    lines = [
        "# What each engine costs",
        "",
        f"{machine['processor']}, {machine['cores']} cores; commit {machine['commit']}.",
        "",
    ]
    lines += ["| what | how | seconds | CPU seconds | pictures/s |", "| --- | --- | --: | --: | --: |"]
    for cell in cells:
        speed = ""
        if "pictures" in cell and cell["how"] != "export, once":
            speed = f"{cell['pictures'] / cell['seconds']:.1f}"
        head = f"| {cell['what']} | {cell['how']} | {cell['seconds']:.1f} | {cell['cpu_seconds']:.1f} |"
        lines.append(f"{head} {speed} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(tyro.cli(Arguments))
