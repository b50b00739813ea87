"""The embedding network: pixels in, embeddings out."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, final, get_args

import torch
from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.constants import SAFETENSORS_SINGLE_FILE
from jaxtyping import Float, UInt8
from safetensors.torch import load_model
from torch import Tensor, nn

from tuplet.config import BatchNormFreeze, Pooling
from tuplet.config.checks import require_choice, type_name, whole_number
from tuplet.errors import DataError, ModelError, one_line
from tuplet.models.backbones import create_backbone


@final
class GlobalPool(nn.Module):
    """Pooling of a feature map, or of a sequence of tokens, to one vector.

    Args:
        kind: avg, max, avg+max (their sum, as the paper has it), gem (generalised mean, its power learnt,
            starting at 3) or token (the class token of a transformer).
        num_prefix_tokens: tokens before those of the patches; 0 for feature maps.
    References:
        Radenovic et al., "Fine-tuning CNN Image Retrieval with No Human Annotation", TPAMI 2019, for gem.
    """

    def __init__(self, kind: Pooling, num_prefix_tokens: int = 0) -> None:
        super().__init__()
        self.kind, self.num_prefix_tokens = kind, num_prefix_tokens
        self.power = nn.Parameter(torch.tensor(3.0)) if kind == "gem" else None

    def forward(self, features: Float[Tensor, "N *P C"]) -> Float[Tensor, "N C"]:
        """Pool features whose channels are last."""
        tokens = features.flatten(1, -2)
        if self.kind == "token":
            return tokens[:, 0]
        patches = tokens[:, self.num_prefix_tokens :]
        if self.kind == "avg":
            return patches.mean(dim=1)
        if self.kind == "max":
            return patches.amax(dim=1)
        if self.power is not None:
            return patches.clamp_min(1e-6).pow(self.power).mean(dim=1).pow(1.0 / self.power)
        return patches.mean(dim=1) + patches.amax(dim=1)


MODEL_CARD = """---
{{ card_data }}
---

An embedding network trained by tuplet:
near embeddings (by cosine) mean similar images.

```python
from tuplet import Embedder

network = Embedder.from_pretrained("THIS FOLDER OR REPOSITORY")
embeddings = network(pixels)  # uint8 RGB [N, 3, H, W], 0..255
```
"""


@final
class Embedder(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="tuplet",
    tags=["metric-learning"],
    model_card_template=MODEL_CARD,
):
    """A timm backbone, global pooling, a linear layer and a LayerNorm without affine parameters.

    It carries its own input statistics: give it pixels as they are, 0..255. Saved and loaded with
    `save_pretrained` and `from_pretrained` (safetensors and JSON, a folder or the Hugging Face hub).

    Args:
        backbone: any timm model name, bn_inception, or tuplet_convnet; a transformer takes any whole number
            of patches.
        embedding_dim: width of the embeddings, D >= 1.
        pooling: avg, max, avg+max, gem, or token (transformers with a class token only).
        pretrained: start from pretrained weights: those in `weights`, or else the hub's.
        weights: a .safetensors or .pth file of the backbone, loaded strictly; its classifier is dropped. Not
            read unless `pretrained`.
        freeze_batch_norm: "statistics" keeps the running statistics of the backbone's BatchNorms fixed and
            lets their affine weights learn, as the authors' code does; "full" fixes those too.
    Raises:
        ModelError: (a ValueError) an unknown backbone, a pooling that does not fit it, weights that do not
            fit (the keys are named), or pretrained weights that cannot be fetched.
        SettingsError: a pooling, a freeze or an embedding_dim that does not exist.
    References: Lim et al., CVPR 2022, for pooling, layer and norm.
    Example:
        >>> network = Embedder("tuplet_convnet", 64, pretrained=False).eval()
        >>> network(torch.zeros(2, 3, 48, 48, dtype=torch.uint8)).shape
        torch.Size([2, 64])
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: str,
        embedding_dim: int,
        *,
        pooling: Pooling = "avg+max",
        pretrained: bool = True,
        weights: str | os.PathLike[str] | None = None,
        freeze_batch_norm: BatchNormFreeze = "none",
    ) -> None:
        super().__init__()
        require_choice("pooling", pooling, get_args(Pooling))
        require_choice("freeze_batch_norm", freeze_batch_norm, get_args(BatchNormFreeze))
        embedding_dim = whole_number("embedding_dim", embedding_dim)
        if isinstance(self._hub_mixin_config, dict):
            # What the hub's mixin recorded of the call is what it saves, and JSON takes Python's numbers
            # only.
            self._hub_mixin_config["embedding_dim"] = embedding_dim
        self.freeze_batch_norm = freeze_batch_norm
        self.backbone = create_backbone(backbone, pretrained=pretrained, weights=weights)
        prefix_tokens = int(getattr(self.backbone, "num_prefix_tokens", 0))
        # Tokens before those of the patches may be registers only, which have not learnt to be a summary.
        has_class_token = prefix_tokens > 0 and getattr(self.backbone, "cls_token", True) is not None
        if pooling == "token" and not has_class_token:
            line = f"backbone {backbone} has no class token; want another pooling, perhaps avg"
            raise ModelError(line, subject="pooling", given=pooling, wanted="avg")
        # Most maps are N x C x H x W; timm says so where channels come last.
        self.channels_last = getattr(self.backbone, "output_fmt", "NCHW") == "NHWC"
        self.pool = GlobalPool(pooling, prefix_tokens)
        self.embedding = nn.Linear(int(self.backbone.num_features), embedding_dim)
        nn.init.kaiming_normal_(self.embedding.weight, mode="fan_out")
        nn.init.zeros_(self.embedding.bias)
        self.norm = nn.LayerNorm(embedding_dim, elementwise_affine=False)
        settings = self.backbone.pretrained_cfg
        self.register_buffer("mean", torch.tensor(settings["mean"]).view(1, 3, 1, 1) * 255.0)
        self.register_buffer("std", torch.tensor(settings["std"]).view(1, 3, 1, 1) * 255.0)
        if freeze_batch_norm == "full":
            for module in self._batch_norms():
                module.requires_grad_(False)
        self._compiled: Callable[[Tensor], Tensor] | None = None
        self.train()

    def forward(self, pixels: UInt8[Tensor, "N 3 H W"]) -> Float[Tensor, "N D"]:
        """Compute one embedding per image.

        Args:
            pixels: RGB, 0..255, of a size that the backbone takes.
        Returns: rows of mean 0 and variance 1 (LayerNorm), not of length one; compare them by cosine.
        Raises:
            DataError: (a ValueError) no tensor, or pixels of another type or shape.
            ModelError: the backbone gives several feature maps, as CoaT and CrossViT do.
        """
        embeddings: Tensor = self.norm(self.embedding(self.pooled(pixels)))
        return embeddings

    def pooled(self, pixels: UInt8[Tensor, "N 3 H W"]) -> Float[Tensor, "N F"]:
        """Compute the pooled features of each image, the input of the embedding layer.

        Args:
            pixels: as in `forward`.
        """
        _require_pixels(pixels)
        compiled = self._compiled if self.training else None
        features = (compiled or self.backbone.forward_features)((pixels - self.mean) / self.std)
        if not isinstance(features, Tensor):
            name = self.backbone.pretrained_cfg["architecture"]
            line = f"backbone {name} gives {len(features)} feature maps; want one of one map, as resnet50 is"
            raise ModelError(line, subject="backbone", given=name, wanted="resnet50")
        if features.ndim == 4 and not self.channels_last:
            features = features.permute(0, 2, 3, 1)
        vectors: Tensor = self.pool(features)
        return vectors

    def size_error(self, size: int, cause: Exception) -> ModelError:
        """Return the error for squares of `size` pixels, which the backbone refused with `cause`."""
        own = self.backbone.pretrained_cfg["input_size"][-1]
        return ModelError(
            f"backbone {self.backbone.pretrained_cfg['architecture']} cannot take images of {size} x {size}"
            f" pixels ({one_line(cause)}); want another data.image_size, such as its own {own}",
            subject="data.image_size",
            given=size,
            wanted=own,
        )

    def compile_backbone(self, mode: str = "default") -> None:
        """Run the backbone through torch.compile from now on, in training but not in evaluation.

        Args:
            mode: of torch.compile.
        """
        # A compiled module would give its parameters other names, so only the function is compiled.
        self._compiled = torch.compile(self.backbone.forward_features, mode=mode, dynamic=False)

    def train(self, mode: bool = True) -> Embedder:
        """Switch between training and evaluation; frozen BatchNorms stay in evaluation."""
        super().train(mode)
        if self.freeze_batch_norm != "none":
            for module in self._batch_norms():
                module.eval()
        return self

    def parameter_groups(self, *, lr_backbone: float, lr_embedding: float) -> list[dict[str, Any]]:
        """Return optimizer groups that hold every parameter of the network that learns, once.

        Args:
            lr_backbone: learning rate of the backbone and of a learnt pooling, >= 0.
            lr_embedding: learning rate of the embedding layer, >= 0.
        Returns: two dictionaries with "name", "params" and "lr", as torch optimizers take them.
        """
        backbone = [*self.backbone.parameters(), *self.pool.parameters()]
        return [
            {"name": "backbone", "params": [p for p in backbone if p.requires_grad], "lr": lr_backbone},
            {"name": "embedding", "params": list(self.embedding.parameters()), "lr": lr_embedding},
        ]

    def _batch_norms(self) -> list[nn.Module]:
        return [m for m in self.backbone.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]

    @classmethod
    def _from_pretrained(
        cls, *, model_id: str, map_location: str = "cpu", strict: bool = True, **kwargs: Any
    ) -> Embedder:
        # The hub's own version ignores keys that are missing, and prints.
        download = ("revision", "cache_dir", "force_download", "local_files_only", "token")
        options = {name: kwargs.pop(name) for name in download if name in kwargs}
        folder = Path(model_id)
        if folder.is_dir():
            file = str(folder / SAFETENSORS_SINGLE_FILE)
        else:
            file = hf_hub_download(model_id, SAFETENSORS_SINGLE_FILE, **options)
        model = cls(**{**kwargs, "pretrained": False, "weights": None})
        load_model(model, file, strict=strict, device=map_location)
        return model.eval()


def _require_pixels(pixels: Tensor) -> None:
    wanted = "torch.uint8 [N, 3, H, W], RGB 0..255"
    if not isinstance(pixels, Tensor):
        wanted += (
            "; convert an RGB image with torchvision's pil_to_tensor(image)[None], an array [N, 3, H, W] with"
            " torch.from_numpy(array)"
        )
        line = f"pixels are of type {type_name(pixels)}; want {wanted}"
        raise DataError(line, subject="pixels", given=type(pixels), wanted=wanted)
    if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] != 3:
        given = (pixels.dtype, list(pixels.shape))
        line = f"pixels are {given[0]} of shape {given[1]}; want {wanted}"
        raise DataError(line, subject="pixels", given=given, wanted=wanted)
