from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from tuplet.errors import DataError, ModelError
from tuplet.models import Embedder
from tuplet.models.bn_inception import BNInception


@pytest.fixture(scope="module")
def network() -> BNInception:
    """With statistics and affine weights that are no identity, so that a norm left out would show."""
    torch.manual_seed(0)
    network = BNInception().eval()
    for name, value in network.state_dict().items():
        if "_bn." in name and value.is_floating_point():
            value.uniform_(0.5, 1.5)
    return network


def as_published(network: BNInception) -> dict[str, Tensor]:
    """A state as the published file has it: norms with a leading axis of one, and no counts of batches."""
    return {
        key: value[None] if "_bn." in key else value
        for key, value in network.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }


def unit(state: dict[str, Tensor], name: str, x: Tensor, stride: int = 1) -> Tensor:
    """Convolution, norm and ReLU from the tensors of one name."""
    weight = state[f"{name}.weight"]
    y = F.conv2d(x, weight, state[f"{name}.bias"], stride=stride, padding=weight.shape[-1] // 2)
    mean, var, scale, shift = (
        state[f"{name}_bn.{part}"].view(1, -1, 1, 1)
        for part in ("running_mean", "running_var", "weight", "bias")
    )
    return ((y - mean) / (var + 1e-5).sqrt() * scale + shift).clamp_min(0)


def padded_average(x: Tensor) -> Tensor:
    """Averages over 3x3 in which the zeros beyond the edge count."""
    return F.pad(x, (1, 1, 1, 1)).unfold(2, 3, 1).unfold(3, 3, 1).mean(dim=(-1, -2))


def padded_max(x: Tensor) -> Tensor:
    return F.pad(x, (1, 1, 1, 1), value=-torch.inf).unfold(2, 3, 1).unfold(3, 3, 1).amax(dim=(-1, -2))


def halved(x: Tensor) -> Tensor:
    """Largest of 3x3 at every other place, the last windows cut off by the edge."""
    return F.pad(x, (0, 1, 0, 1), value=-torch.inf).unfold(2, 3, 2).unfold(3, 3, 2).amax(dim=(-1, -2))


def inception(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """A block by which keys there are: without a 1x1 branch it halves the map; the last one pools by max."""
    stride = 1 if f"{name}_1x1.weight" in state else 2
    triple = unit(state, f"{name}_3x3", unit(state, f"{name}_3x3_reduce", x), stride)
    double = unit(state, f"{name}_double_3x3_1", unit(state, f"{name}_double_3x3_reduce", x))
    double = unit(state, f"{name}_double_3x3_2", double, stride)
    if stride == 2:
        return torch.cat([triple, double, halved(x)], dim=1)
    pooled = padded_max(x) if name == "inception_5b" else padded_average(x)
    return torch.cat(
        [unit(state, f"{name}_1x1", x), triple, double, unit(state, f"{name}_pool_proj", pooled)], dim=1
    )


@torch.no_grad()
def test_the_map_is_what_plain_functions_make_of_the_tensors(network: BNInception) -> None:
    network = copy.deepcopy(network).double()
    state = network.state_dict()
    rgb = torch.rand(2, 3, 96, 96, generator=torch.manual_seed(1), dtype=torch.float64) * 255 - 110
    x = halved(unit(state, "conv1_7x7_s2", rgb[:, [2, 1, 0]], stride=2))
    x = halved(unit(state, "conv2_3x3", unit(state, "conv2_3x3_reduce", x)))
    sides = []
    for name in ("3a", "3b", "3c", "4a", "4b", "4c", "4d", "4e", "5a", "5b"):
        x = inception(state, f"inception_{name}", x)
        sides.append(x.shape[-1])
    assert sides == [12, 12, 6, 6, 6, 6, 6, 3, 3, 3]
    found = network.forward_features(rgb)
    assert 1e-3 < found.std() < 1e6
    torch.testing.assert_close(found, x, rtol=1e-8, atol=1e-8 * float(found.abs().max()))
    logits = x.mean(dim=(2, 3)) @ state["last_linear.weight"].T + state["last_linear.bias"]
    torch.testing.assert_close(network(rgb), logits)


def test_size_and_stride(network: BNInception) -> None:
    assert sum(parameter.numel() for parameter in network.parameters()) == 11_295_240
    embedder = Embedder("bn_inception", 512, pretrained=False)
    assert sum(parameter.numel() for parameter in embedder.backbone.parameters()) == 10_270_240
    assert embedder.embedding.in_features == 1024
    with torch.no_grad():
        assert network.forward_features(torch.rand(1, 3, 224, 224)).shape == (1, 1024, 7, 7)
    kinds = [type(module) for module in network.modules()]
    assert (kinds.count(torch.nn.Conv2d), kinds.count(torch.nn.BatchNorm2d)) == (69, 69)


def test_its_input_is_bgr_in_255_steps_less_the_means_of_caffe(network: BNInception) -> None:
    embedder = Embedder("bn_inception", 8, pretrained=False).eval()
    state = embedder.backbone.state_dict()
    pixels = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8, generator=torch.manual_seed(0))
    seen = []
    embedder.backbone.conv1_7x7_s2.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    embedder(pixels)
    red, green, blue = pixels[0].float()
    torch.testing.assert_close(seen[0][0], torch.stack([blue - 104, green - 117, red - 128]))
    assert state["conv1_7x7_s2.weight"].shape == (64, 3, 7, 7)


def test_keys_and_shapes_are_those_of_the_published_file(network: BNInception, shared: Path) -> None:
    published = json.loads((shared / "paper" / "bn_inception_checkpoint.json").read_text())
    found = {key: list(value.shape) for key, value in network.state_dict().items()}
    counts = [key for key in found if key.endswith("num_batches_tracked")]
    assert {key: shape for key, shape in found.items() if key not in counts} == published["shapes"]


def test_a_file_as_published_loads_strictly(network: BNInception, tmp_path: Path) -> None:
    file = tmp_path / "bn_inception.pth"
    torch.save(as_published(network), file, _use_new_zipfile_serialization=False)
    assert torch.load(file, weights_only=True)["conv1_7x7_s2_bn.weight"].shape == (1, 64)
    backbone = Embedder("bn_inception", 8, weights=file).backbone
    wanted = {key: value for key, value in network.state_dict().items() if "last_linear" not in key}
    found = backbone.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize(
    ("key", "change", "given"),
    [
        ("inception_4d_1x1.bias", None, "inception_4d_1x1.bias"),
        ("inception_4d_1x1.mask", torch.zeros(96), "inception_4d_1x1.mask"),
        ("conv2_3x3_bn.bias", torch.zeros(2, 192), "conv2_3x3_bn.bias [2, 192] for [192]"),
        ("conv2_3x3_bn.bias", torch.zeros(192, 1), "conv2_3x3_bn.bias [192, 1] for [192]"),
        ("conv2_3x3_bn.bias", torch.zeros(1, 191), "conv2_3x3_bn.bias [1, 191] for [192]"),
    ],
)
def test_another_file_says_what_does_not_fit(
    network: BNInception, key: str, change: Tensor | None, given: str, tmp_path: Path
) -> None:
    state = as_published(network)
    if change is None:
        del state[key]
    else:
        state[key] = change
    file = tmp_path / "w.pth"
    torch.save(state, file)
    with pytest.raises(ModelError) as caught:
        Embedder("bn_inception", 8, weights=file)
    assert (caught.value.given, caught.value.wanted) == ([given], "bn_inception")


@pytest.fixture
def published_at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Lets the weights be fetched from another address, into an empty cache."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "cache"))

    def at(url: str) -> None:
        here = replace(timm.get_pretrained_cfg("bn_inception"), url=url)
        monkeypatch.setattr(timm, "get_pretrained_cfg", lambda name: here)
        monkeypatch.setitem(timm.models._registry._model_pretrained_cfgs, "bn_inception", here)

    return at


def test_published_weights_are_fetched_and_their_hash_is_checked(
    network: BNInception, published_at, tmp_path: Path
) -> None:
    assert timm.get_pretrained_cfg("bn_inception").url.endswith("/bn_inception-52deb4733.pth")
    file = tmp_path / "w.pth"
    torch.save(as_published(network), file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    file = file.rename(tmp_path / f"bn_inception-{digest[:9]}.pth")
    published_at(file.as_uri())
    backbone = Embedder("bn_inception", 8).backbone
    assert torch.equal(
        backbone.inception_5b_pool_proj_bn.bias, network.state_dict()["inception_5b_pool_proj_bn.bias"]
    )
    wrong = file.rename(tmp_path / "bn_inception-52deb4733.pth")
    published_at(wrong.as_uri())
    with pytest.raises(ModelError) as caught:
        Embedder("bn_inception", 8)
    assert 'invalid hash value (expected "52deb4733"' in str(caught.value.__cause__)


def test_no_network_says_where_the_file_is(published_at) -> None:
    published_at("http://127.0.0.1:9/bn_inception-52deb4733.pth")
    with pytest.raises(ModelError) as caught:
        Embedder("bn_inception", 8)
    assert "http://127.0.0.1:9/bn_inception-52deb4733.pth" in str(caught.value)


def test_sides_that_do_not_halve_evenly_are_refused(network: BNInception) -> None:
    with torch.no_grad():
        for side in (31, 38, 63, 70):
            assert network.forward_features(torch.rand(1, 3, side, 38)).shape[2:] == ((side + 1) // 32, 1)
        for height, width in ((30, 64), (64, 39), (16, 16), (80, 80)):
            with pytest.raises(DataError) as caught:
                network.forward_features(torch.rand(1, 3, height, width))
            assert caught.value.given == (height, width)
