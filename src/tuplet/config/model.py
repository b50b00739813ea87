"""The embedding network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tuplet.config.checks import require

Pooling = Literal["avg", "max", "avg+max", "gem", "token"]
BatchNormFreeze = Literal["none", "statistics", "full"]


@dataclass(frozen=True)
class ModelConfig:
    """The embedding network."""

    backbone: str = "resnet50.tv_in1k"
    """Any timm model name, or tuplet_convnet, the small network for small images."""
    embedding_dim: int = 512
    """D, >= 1."""
    pooling: Pooling = "avg+max"
    """How the feature map becomes one vector; token is the class token of a transformer."""
    pretrained: bool = True
    """Start from the backbone's pretrained weights: from `weights`, or else from the hub."""
    weights: Path | None = None
    """A local .safetensors or .pth file of the backbone, loaded strictly."""
    freeze_batch_norm: BatchNormFreeze = "none"
    """statistics: running statistics stay fixed (the paper's "BN freeze"); full: the affine weights too."""

    def __post_init__(self) -> None:
        require(self.embedding_dim >= 1, "model.embedding_dim", self.embedding_dim, "1 or more")
