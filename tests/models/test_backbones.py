from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import checkpoint_filter_fn

from tuplet.errors import ModelError
from tuplet.models import Embedder
from tuplet.models.backbones import create_backbone

DINO, DINOV2 = "vit_small_patch16_224.dino", "vit_small_patch14_dinov2.lvd142m"


def pixels(side: int) -> torch.Tensor:
    return torch.randint(0, 256, (1, 3, side, side), dtype=torch.uint8, generator=torch.manual_seed(0))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files of weights as timm publishes them, their position embeddings large enough to matter."""
    files = {}
    for name in (DINO, DINOV2):
        torch.manual_seed(0)
        state = timm.create_model(name, pretrained=False).state_dict()
        state["pos_embed"] = torch.randn_like(state["pos_embed"])
        files[name] = tmp_path_factory.mktemp("weights") / f"{name}.safetensors"
        save_file(state, files[name])
    return files


@pytest.mark.parametrize(("name", "side"), [(DINO, 96), (DINOV2, 56)])
@torch.no_grad()
def test_a_transformer_takes_any_whole_number_of_patches(
    name: str, side: int, weights: dict[str, Path]
) -> None:
    network = Embedder(name, 16, pooling="token", weights=weights[name]).eval()
    own = timm.create_model(name, pretrained=False).state_dict()["pos_embed"]
    assert network.backbone.pos_embed.shape == own.shape
    # The same weights, their position embeddings resampled once for a network of this one size.
    fixed = timm.create_model(name, pretrained=False, img_size=side).eval()
    fixed.load_state_dict(checkpoint_filter_fn(timm.models.load_state_dict(str(weights[name])), fixed))
    tokens = fixed.forward_features((pixels(side) - network.mean) / network.std)[:, 0]
    wanted = network.norm(network.embedding(tokens))
    torch.testing.assert_close(network(pixels(side)), wanted, rtol=1e-3, atol=1e-4)


def test_a_part_of_a_patch_is_refused(weights: dict[str, Path]) -> None:
    network = Embedder(DINOV2, 16, pooling="token", weights=weights[DINOV2])
    with pytest.raises(AssertionError):  # timm's own, which names the sizes
        network(pixels(100))


@torch.no_grad()
def test_a_transformer_saved_and_loaded_is_the_same(weights: dict[str, Path], tmp_path: Path) -> None:
    network = Embedder(DINOV2, 16, pooling="token", weights=weights[DINOV2]).eval()
    network.save_pretrained(tmp_path)
    again = Embedder.from_pretrained(tmp_path)
    for side in (56, 70):
        assert torch.equal(network(pixels(side)), again(pixels(side)))


def test_weights_of_another_patch_size_do_not_fit(weights: dict[str, Path]) -> None:
    with pytest.raises(ModelError) as caught:
        Embedder(DINO, 16, pooling="token", weights=weights[DINOV2])
    assert "patch_embed.proj.weight [384, 3, 14, 14] for [384, 3, 16, 16]" in caught.value.given


def test_a_network_without_position_embeddings_is_made_as_timm_makes_it() -> None:
    torch.manual_seed(3)
    ours = create_backbone("resnet18", pretrained=False, weights=None)
    torch.manual_seed(3)
    theirs = timm.create_model("resnet18", pretrained=False)
    assert torch.equal(ours.layer4[1].conv2.weight, theirs.layer4[1].conv2.weight)
