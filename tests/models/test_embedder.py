from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from tuplet.errors import DataError, InputError, ModelError
from tuplet.models import Embedder


def pixels(count: int = 3, side: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=torch.manual_seed(0))


@pytest.mark.parametrize(
    ("backbone", "pooling", "side"),
    [
        ("tuplet_convnet", "avg+max", 48),
        ("tuplet_convnet", "gem", 33),
        ("resnet18", "avg", 64),
        ("test_efficientnet", "max", 96),
        ("test_vit", "token", 160),
        ("test_vit", "avg+max", 160),
        ("test_mambaout", "gem", 160),
    ],
)
def test_any_backbone_gives_normalised_rows_and_gradients(backbone: str, pooling, side: int) -> None:
    network = Embedder(backbone, 24, pooling=pooling, pretrained=False).eval()
    embeddings = network(pixels(2, side))
    assert embeddings.shape == (2, 24)
    torch.testing.assert_close(embeddings.mean(dim=1), torch.zeros(2), atol=1e-5, rtol=0)
    # GeM's roots of near-zero activations make embeddings small beside LayerNorm's epsilon.
    assert embeddings.var(dim=1, unbiased=False).le(1.0 + 1e-4).all()
    embeddings.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.embedding.parameters())


def test_pooling_is_what_its_name_says() -> None:
    outputs = {}
    for pooling in ("avg", "max", "avg+max"):
        torch.manual_seed(0)
        network = Embedder("tuplet_convnet", 8, pooling=pooling, pretrained=False).eval()
        outputs[pooling] = network.pool(torch.arange(24.0).reshape(1, 2, 4, 3))
    torch.testing.assert_close(outputs["avg"], torch.tensor([[10.5, 11.5, 12.5]]))
    torch.testing.assert_close(outputs["max"], torch.tensor([[21.0, 22.0, 23.0]]))
    torch.testing.assert_close(outputs["avg+max"], outputs["avg"] + outputs["max"])


def test_it_normalises_with_the_statistics_of_its_backbone() -> None:
    network = Embedder("resnet18", 8, pretrained=False)
    expected = torch.tensor(timm.data.IMAGENET_DEFAULT_MEAN) * 255
    torch.testing.assert_close(network.mean.flatten(), expected)


@pytest.mark.parametrize(
    ("given", "fact", "conversion"),
    [
        (torch.zeros(1, 3, 8, 8), (torch.float32, [1, 3, 8, 8]), ""),
        (torch.zeros(1, 1, 8, 8, dtype=torch.uint8), (torch.uint8, [1, 1, 8, 8]), ""),
        (Image.new("RGB", (8, 8)), Image.Image, "pil_to_tensor(image)[None]"),
        (np.zeros((1, 3, 8, 8), np.uint8), np.ndarray, "torch.from_numpy(array)"),
        (["a.png"], list, "pil_to_tensor(image)[None]"),
    ],
    ids=["float", "gray", "PIL", "numpy", "paths"],
)
def test_what_is_no_batch_of_pixels_gets_one_sentence(given: Any, fact: object, conversion: str) -> None:
    network = Embedder("tuplet_convnet", 8, pretrained=False)
    with pytest.raises(DataError) as caught:
        network(given)
    assert (caught.value.subject, caught.value.given) == ("pixels", fact)
    assert conversion in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_width_of_numpy_is_saved_like_any_other(tmp_path: Path) -> None:
    Embedder("tuplet_convnet", np.int64(8), pretrained=False).save_pretrained(tmp_path)
    assert Embedder.from_pretrained(tmp_path).embedding.out_features == 8


def test_saved_and_loaded_is_the_same_network(tmp_path: Path, capsys) -> None:
    network = Embedder("tuplet_convnet", 8, pooling="gem", pretrained=False).eval()
    network.save_pretrained(tmp_path)
    again = Embedder.from_pretrained(tmp_path)
    assert not again.training
    assert torch.equal(network(pixels()), again(pixels()))
    assert capsys.readouterr().out == ""
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors", ".md"}


@pytest.mark.parametrize("freeze", ["none", "statistics", "full"])
def test_batch_norm_freeze(freeze) -> None:
    network = Embedder("tuplet_convnet", 8, pretrained=False, freeze_batch_norm=freeze).train()
    norm = network.backbone.stem[1]
    before = norm.running_mean.clone()
    network(pixels()).square().sum().backward()
    assert torch.equal(norm.running_mean, before) == (freeze != "none")
    assert (norm.weight.grad is None) == (freeze == "full")
    groups = network.parameter_groups(lr_backbone=0.1, lr_embedding=0.2)
    assert [(group["name"], group["lr"]) for group in groups] == [("backbone", 0.1), ("embedding", 0.2)]
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in network.parameters() if p.requires_grad)


def weights_file(path: Path, change=lambda state: state) -> Path:
    torch.manual_seed(1)
    state = timm.create_model("tuplet_convnet", num_classes=10).state_dict()
    save_file(change(state), path)
    return path


def test_local_weights_load_strictly_whatever_their_classifier(tmp_path: Path) -> None:
    torch.manual_seed(1)
    wanted = timm.create_model("tuplet_convnet", num_classes=10).state_dict()["stem.0.weight"]
    whole = weights_file(tmp_path / "w.safetensors")
    headless = weights_file(
        tmp_path / "h.safetensors", lambda state: {k: v for k, v in state.items() if not k.startswith("fc.")}
    )
    for file in (whole, headless):
        assert torch.equal(Embedder("tuplet_convnet", 8, weights=file).backbone.stem[0].weight, wanted)


def test_weights_that_do_not_fit_name_the_keys(tmp_path: Path) -> None:
    def broken(state):
        state.pop("stem.0.weight")
        state["extra.weight"] = torch.zeros(1)
        state["stem.1.weight"] = torch.zeros(3)
        return state

    file = weights_file(tmp_path / "w.safetensors", broken)
    with pytest.raises(ModelError) as caught:
        Embedder("tuplet_convnet", 8, weights=file)
    assert caught.value.subject == str(file)
    assert caught.value.given == ["stem.0.weight", "extra.weight", "stem.1.weight [3] for [32]"]
    text = tmp_path / "notes.txt"
    text.write_text("no weights")
    for unreadable in (text, tmp_path / "missing.pth"):
        with pytest.raises(ModelError) as caught:
            Embedder("tuplet_convnet", 8, weights=unreadable)
        assert caught.value.subject == str(unreadable)


def test_weights_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for name, subject in (("resnet18", "weights"), ("tuplet_convnet", "backbone")):
        with pytest.raises(ModelError) as caught:
            Embedder(name, 8)
        assert (caught.value.subject, caught.value.given) == (subject, name)


@pytest.mark.parametrize(
    ("backbone", "width", "settings", "subject"),
    [
        ("resnot50", 8, {}, "backbone"),
        ("resnet18", 8, {"pooling": "token"}, "pooling"),
        ("vit_little_patch16_reg1_gap_256", 8, {"pooling": "token"}, "pooling"),  # a register, no class token
        ("tuplet_convnet", 0, {}, "embedding_dim"),
        ("tuplet_convnet", 2.5, {}, "embedding_dim"),
        ("tuplet_convnet", 8, {"pooling": "sum"}, "pooling"),
        ("tuplet_convnet", 8, {"freeze_batch_norm": "half"}, "freeze_batch_norm"),
    ],
)
def test_unusable_settings(backbone: str, width: Any, settings: dict[str, Any], subject: str) -> None:
    with pytest.raises(InputError) as caught:
        Embedder(backbone, width, pretrained=False, **settings)
    assert caught.value.subject == subject


def test_a_backbone_of_several_feature_maps_is_named() -> None:
    with torch.device("meta"):
        network = Embedder("crossvit_tiny_240", 8, pooling="avg", pretrained=False)
    with pytest.raises(ModelError) as caught:
        network(torch.zeros(1, 3, 240, 240, dtype=torch.uint8, device="meta"))
    assert (caught.value.subject, caught.value.given) == ("backbone", "crossvit_tiny_240")


def test_real_pretrained_weights(shared: Path) -> None:
    file = shared / "weights" / "tf_efficientnet_lite0.safetensors"
    network = Embedder("tf_efficientnet_lite0", 16, weights=file).eval()
    torch.testing.assert_close(network.mean.flatten(), torch.full((3,), 127.5))
    assert network(pixels(2, 64)).shape == (2, 16)
    with pytest.raises(ModelError) as caught:
        Embedder("resnet18", 16, weights=file)
    assert caught.value.wanted == "resnet18"
