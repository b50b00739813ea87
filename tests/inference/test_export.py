from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import Tensor

from tuplet.config import DataConfig
from tuplet.data.decoding import decode_image
from tuplet.data.transforms import eval_transform
from tuplet.errors import DataError, InputError, MissingExtraError, ModelError, SettingsError
from tuplet.inference import export
from tuplet.inference.export import (
    embeddings_by_batch,
    export_file,
    export_hub,
    largest_difference,
    noise,
    pictures_of_folder,
)
from tuplet.inference.trained_model import prepared_as
from tuplet.models import Embedder

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "export.md").read_text()
PHOTOGRAPHS = DataConfig(image_size=24, resize=30)
CHARACTERS = DataConfig(image_size=24, resize=40, augmentation="affine")


def network_of(backbone: str, pooling, dimensions: int = 12) -> Embedder:
    torch.manual_seed(0)
    return Embedder(backbone, dimensions, pooling=pooling, pretrained=False).eval()


@pytest.fixture(scope="module")
def network() -> Embedder:
    return network_of("tuplet_convnet", "avg+max")


@pytest.fixture(scope="module")
def exported(network: Embedder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One network as model.onnx and model.pt2."""
    folder = tmp_path_factory.mktemp("exported")
    pixels, facts = noise(PHOTOGRAPHS), {"run": "birds"}
    for name in ("model.onnx", "model.pt2"):
        largest = export_file(network, folder / name, pixels, data=PHOTOGRAPHS, facts=facts)
        assert largest <= 1e-4
    assert sorted(path.name for path in folder.iterdir()) == ["model.onnx", "model.pt2"]
    return folder


def photographs(folder: Path) -> Path:
    """Two smooth pictures, one wide and one tall, as a.jpg and b.jpg."""
    x, y = np.meshgrid(np.linspace(0, 6, 90), np.linspace(0, 4, 61))
    wide = np.stack([np.sin(x + y), np.cos(x * y / 2), np.sin(y * 2)], axis=2) * 100 + 128
    Image.fromarray(wide.astype(np.uint8)).save(folder / "a.jpg", quality=95)
    Image.fromarray(255 - wide.transpose(1, 0, 2).astype(np.uint8)).save(folder / "b.jpg", quality=95)
    return folder


def in_onnxruntime(file: Path) -> Callable[[Tensor], np.ndarray]:
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(None, {"pixels": pixels.numpy()})[0]


def random_pixels(count: int, side: int) -> Tensor:
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=torch.manual_seed(9))


def test_onnx_is_valid_and_takes_any_number_of_images(exported: Path, network: Embedder) -> None:
    file = exported / "model.onnx"
    onnx.checker.check_model(str(file), full_check=True)
    model = onnx.load(file)
    assert [(one.domain, one.version) for one in model.opset_import] == [("", 18)]
    assert (model.producer_name, len(model.graph.input), len(model.graph.output)) == ("tuplet", 1, 1)
    (pixels,), (embeddings,) = model.graph.input, model.graph.output
    assert pixels.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    for one, name, wanted in ((pixels, "pixels", ["N", 3, 24, 24]), (embeddings, "embeddings", ["N", 12])):
        sides = [side.dim_param or side.dim_value for side in one.type.tensor_type.shape.dim]
        assert (one.name, sides) == (name, wanted)
    run = in_onnxruntime(file)
    for count in (1, 3, 17):
        images = random_pixels(count, 24)
        np.testing.assert_allclose(run(images), network(images).detach().numpy(), atol=1e-4)


def test_a_transformer_at_another_size_than_its_own(tmp_path: Path) -> None:
    network = network_of("test_vit", "token")
    data = DataConfig(image_size=96, resize=96)
    export_file(network, tmp_path / "vit.onnx", noise(data), data=data)
    images = random_pixels(3, 96)
    found = in_onnxruntime(tmp_path / "vit.onnx")(images)
    np.testing.assert_allclose(found, network(images).detach().numpy(), atol=1e-4)


def test_both_files_say_how_pictures_are_prepared(exported: Path) -> None:
    metadata = {one.key: one.value for one in onnx.load(exported / "model.onnx").metadata_props}
    extra = {"tuplet.json": ""}
    torch.export.load(exported / "model.pt2", extra_files=extra)
    assert metadata == {f"tuplet.{key}": value for key, value in json.loads(extra["tuplet.json"]).items()}
    assert metadata["tuplet.run"] == "birds"
    assert metadata["tuplet.architecture"] == "tuplet_convnet"
    how = json.loads(metadata["tuplet.preprocessing"])
    assert (how["image_size"], how["resize_short_side"], how["crop"]) == (24, 30, "centre")
    assert (how["interpolation"], how["antialias"]) == ("bilinear", True)


def test_no_file_of_this_machine_is_named(exported: Path) -> None:
    places = {*map(str, (ROOT, Path.home(), exported, Path(torch.__file__).parents[1])), sys.prefix}
    for file in exported.iterdir():
        content = file.read_bytes()
        assert b"embedder.py" not in content
        assert not [place for place in places if place != "/" and place.encode() in content]


def _others(picture: Image.Image) -> dict[str, Image.Image]:
    """A picture as files whose pixels are not simply red, green and blue of 8 bits."""
    half = picture.convert("RGBA")
    half.putalpha(Image.linear_gradient("L").resize(picture.size))
    grey = np.asarray(picture.convert("L")).astype(np.uint16) * 200 + 77
    return {"half.png": half, "palette.png": half.quantize(64), "grey.png": Image.fromarray(grey)}


@pytest.mark.parametrize("data", [PHOTOGRAPHS, CHARACTERS], ids=["photographs", "characters"])
def test_the_page_shows_how_to_use_onnx_without_tuplet(
    data: DataConfig, network: Embedder, exported: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    content = onnx.load(exported / "model.onnx")
    for one in content.metadata_props:
        if one.key == "tuplet.preprocessing":
            one.value = json.dumps(export.preparation(data))
    onnx.save(content, photographs(tmp_path) / "model.onnx")
    block = re.findall(r"## With onnxruntime alone\n```python\n(.*?)```", PAGE, re.S)[0]
    monkeypatch.chdir(tmp_path)
    found: dict[str, np.ndarray] = {}
    exec(block, found)
    squares = torch.stack([eval_transform(data)(decode_image(Path(name))) for name in ("a.jpg", "b.jpg")])
    assert abs(found["pixels"].astype(int) - squares.numpy().astype(int)).max() <= 1
    for name, picture in _others(Image.open("a.jpg")).items():
        picture.save(name)
        wanted_square = eval_transform(data)(decode_image(Path(name))).numpy().astype(int)
        assert abs(found["square"](name).astype(int) - wanted_square).max() <= 1, name
    wanted = torch.nn.functional.normalize(network(squares)).detach()
    for name, row in zip("ab", wanted, strict=True):
        assert float(found[name] @ row.numpy()) > 0.999
    assert abs(float(capsys.readouterr().out) - float(wanted[0] @ wanted[1])) < 1e-3


def test_the_page_shows_how_to_use_a_program_of_torch_export(
    exported: Path, network: Embedder, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(exported)
    found: dict[str, Callable[[Tensor], Tensor]] = {}
    exec(re.findall(r"## With PyTorch alone\n```python\n(.*?)```", PAGE, re.S)[0], found)
    assert capsys.readouterr().out == "torch.Size([7, 12])\n"
    images = random_pixels(4, 24)
    torch.testing.assert_close(found["network"](images), network(images), atol=1e-4, rtol=0)


def test_the_page_shows_how_to_export_from_python(network: Embedder, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    network.save_pretrained("runs/x")
    Path("PHOTOS").mkdir()
    photographs(Path("PHOTOS"))
    (block,) = re.findall(r"## From Python\n```python\n(.*?)```", PAGE, re.S)
    found: dict[str, float] = {}
    exec(block, found)
    assert found["largest"] <= 1e-4
    assert Path("x.onnx").is_file()


def test_the_hub_folder_loads_and_prepares_as_before(tmp_path: Path, network: Embedder) -> None:
    for data in (PHOTOGRAPHS, CHARACTERS):
        folder = tmp_path / data.augmentation
        assert export_hub(network, folder, noise(data), data=data, card="a card") == 0.0
        names = ["README.md", "config.json", "model.safetensors", "preprocessing.json"]
        assert sorted(path.name for path in folder.iterdir()) == names
        assert (folder / "README.md").read_text() == "a card"
        images = random_pixels(4, 24)
        torch.testing.assert_close(Embedder.from_pretrained(str(folder))(images), network(images))
        picture = torch.arange(3 * 50 * 70).reshape(3, 50, 70).to(torch.uint8)
        again = prepared_as(DataConfig(), folder)
        torch.testing.assert_close(eval_transform(again)(picture), eval_transform(data)(picture))
    assert prepared_as(PHOTOGRAPHS, tmp_path) == PHOTOGRAPHS
    (folder / "preprocessing.json").write_text('{"image_size": 24}')
    with pytest.raises(ModelError) as error:
        prepared_as(PHOTOGRAPHS, folder)
    assert error.value.subject == str(folder / "preprocessing.json")


def test_the_largest_difference_is_found_wherever_it_is() -> None:
    pixels, wanted = noise(PHOTOGRAPHS), torch.arange(20.0).reshape(10, 2)
    calls: list[int] = []

    def shifted(by: float, only_of: int) -> Callable[[Tensor], Tensor]:
        def embedding(part: Tensor) -> Tensor:
            calls.append(len(part))
            first = next(row for row in range(10) if torch.equal(pixels[row], part[0]))
            found = wanted[first : first + len(part)].clone()
            if len(part) == only_of and first == 5:
                found[0, 1] += by
            return found

        return embedding

    assert largest_difference(shifted(0, 1), [wanted, wanted], pixels) == 0.0
    assert calls == [1] * 10 + [5] * 2
    for size in (1, 5):
        small = largest_difference(shifted(-5e-5, size), [wanted, wanted], pixels)
        assert small == pytest.approx(5e-5, rel=0.1)
        for by in (-2e-4, float("nan")):
            with pytest.raises(ModelError) as error:
                largest_difference(shifted(by, size), [wanted, wanted], pixels)
            assert error.value.wanted == 1e-4
            assert error.value.given == pytest.approx(abs(by), rel=0.1, nan_ok=True)
    of_other_shapes = (lambda part: part[:, 0, 0, :1].float(), lambda part: part.reshape(-1, 7))
    for embedding in of_other_shapes:
        with pytest.raises(ModelError):
            largest_difference(embedding, [wanted, wanted], pixels)


def test_what_differs_leaves_nothing_and_replaces_nothing(tmp_path: Path, network, monkeypatch) -> None:
    monkeypatch.setattr(Embedder, "from_pretrained", lambda folder: lambda part: network(part) + 2e-4)
    old = tmp_path / "old"
    old.mkdir()
    (old / "README.md").write_text("old")
    for folder in (tmp_path / "new", old):
        with pytest.raises(ModelError):
            export_hub(network, folder, noise(PHOTOGRAPHS), data=PHOTOGRAPHS, card="new", overwrite=True)
        assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert [path.name for path in old.iterdir()] == ["README.md"]
    assert (old / "README.md").read_text() == "old"


def test_only_an_earlier_export_is_replaced_and_only_when_asked(tmp_path: Path, network: Embedder) -> None:
    def write(folder: Path, card: str, overwrite: bool) -> None:
        export_hub(network, folder, noise(PHOTOGRAPHS), data=PHOTOGRAPHS, card=card, overwrite=overwrite)

    folder = tmp_path / "hub"
    folder.mkdir()
    write(folder, "first", overwrite=False)
    with pytest.raises(SettingsError, match=r"hub exists; want another --output, or --overwrite"):
        write(folder, "second", overwrite=False)
    assert (folder / "README.md").read_text() == "first"
    write(folder, "second", overwrite=True)
    assert (folder / "README.md").read_text() == "second"
    (tmp_path / "link").symlink_to(folder)
    write(tmp_path / "link", "third", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert (folder / "README.md").read_text() == "third"
    (folder / "photo.jpg").write_text("of value")
    with pytest.raises(SettingsError) as error:
        write(folder, "fourth", overwrite=True)
    assert error.value.subject == str(folder)
    assert (folder / "photo.jpg").read_text() == "of value"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hub", "link"]
    file = tmp_path / "model.pt2"
    file.write_text("old")
    with pytest.raises(SettingsError) as error:
        export_file(network, file, noise(PHOTOGRAPHS), data=PHOTOGRAPHS)
    assert error.value.subject == str(file)
    assert file.read_text() == "old"


def test_what_cannot_be_exported_is_one_line(tmp_path: Path, network: Embedder, monkeypatch, capsys) -> None:
    def refused(kind: type[InputError], network: Embedder, count: int = 10, to: str = "onnx") -> InputError:
        file = tmp_path / ("x.onnx" if to == "onnx" else "x.pt2")
        with pytest.raises(kind) as error:
            export_file(network, file, noise(PHOTOGRAPHS)[:count], data=PHOTOGRAPHS)
        assert "\n" not in str(error.value)
        assert capsys.readouterr() == ("", "")
        return error.value

    refused(ModelError, network_of("tuplet_convnet", "avg").train())
    refused(DataError, network, 4)
    error = refused(ModelError, network_of("test_vit", "token"))
    assert (error.subject, error.given, error.wanted) == ("data.image_size", 24, 160)
    with monkeypatch.context() as changed:
        changed.setattr(export, "_MOST_BYTES", 1000)
        assert refused(ModelError, network).wanted == 1000
    with monkeypatch.context() as changed:
        changed.setitem(sys.modules, "onnxscript", None)
        changed.setattr(export.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else 1)
        assert refused(MissingExtraError, network).subject == "onnxscript"

    def refuse(*_: object, **__: object) -> None:
        sys.stdout.write("a page of advice")
        raise RuntimeError("data-dependent\nand more")

    monkeypatch.setattr(torch.export, "export", refuse)
    assert "data-dependent" in str(refused(ModelError, network, to="torch"))
    assert not list(tmp_path.iterdir())


def test_pictures_to_compare_on_are_spread_over_a_folder(tmp_path: Path) -> None:
    for number in range(19):
        folder = tmp_path / f"{number // 10}"
        folder.mkdir(exist_ok=True)
        Image.new("RGB", (24, 24), (number, 2 * number, 255 - number)).save(folder / f"{number:02}.png")
    (tmp_path / "notes.txt").write_text("no image")
    data = DataConfig(image_size=24, resize=24)
    found = pictures_of_folder(tmp_path, data)
    assert found[:, 0].flatten(1).unique(dim=1).tolist() == [[number] for number in range(0, 19, 2)]
    assert found[:, 2, 0, 0].tolist() == [255 - number for number in range(0, 19, 2)]
    (tmp_path / "0" / "00.png").write_bytes(b"broken")
    assert pictures_of_folder(tmp_path, data)[:, 0, 0, 0].tolist() == [*range(2, 19, 2), 2]
    (tmp_path / "empty").mkdir()
    for name in ("nowhere", "empty"):
        with pytest.raises(DataError) as error:
            pictures_of_folder(tmp_path / name, data)
        assert error.value.subject == str(tmp_path / name)


def test_what_is_compared_with_is_the_network_itself(network: Embedder) -> None:
    pixels = noise(PHOTOGRAPHS)
    for found in embeddings_by_batch(network, pixels):
        torch.testing.assert_close(found, network(pixels).detach(), atol=1e-5, rtol=0)
