"""A small residual network for small images such as characters, registered with timm as `tuplet_convnet`."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, final

import torch.nn.functional as F
from jaxtyping import Float
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

__all__ = ["ConvNet"]


@final
class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a 1x1 shortcut; halves the side of the map."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Sequential(
            nn.AvgPool2d(2, ceil_mode=True),
            nn.Conv2d(in_channels, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )

    def forward(self, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N C2 H2 W2"]:
        """The map at half the side."""
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


@final
class ConvNet(nn.Module):
    """A stem and one residual block a stage, each halving the map; follows timm's conventions for a model.

    Args:
        channels: of the stem and of each residual block.
        in_chans: channels of the input, 3 for RGB.
        num_classes: outputs of a classifier, 0 for none.
        global_pool: "avg" or "" for none.
    """

    def __init__(
        self,
        channels: tuple[int, ...] = (32, 64, 128),
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
    ) -> None:
        super().__init__()
        self.num_classes, self.global_pool = num_classes, global_pool
        self.num_features = self.head_hidden_size = channels[-1]
        self.stem = nn.Sequential(
            nn.Conv2d(in_chans, channels[0], 5, stride=2, padding=2, bias=False),
            nn.BatchNorm2d(channels[0]),
            nn.ReLU(inplace=True),
        )
        self.stages = nn.Sequential(*(ResidualBlock(a, b) for a, b in pairwise(channels)))
        self.fc: nn.Module = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def forward_features(self, x: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N C H2 W2"]:
        """The last feature map."""
        features: Tensor = self.stages(self.stem(x))
        return features

    def forward_head(self, x: Float[Tensor, "N C H W"], pre_logits: bool = False) -> Float[Tensor, "N ..."]:
        """The pooled map, through the classifier unless `pre_logits`."""
        pooled = x.mean(dim=(2, 3)) if self.global_pool else x
        if pre_logits:
            return pooled
        logits: Tensor = self.fc(pooled)
        return logits

    def forward(self, x: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N ..."]:
        """Class logits, or the features where there is no classifier."""
        return self.forward_head(self.forward_features(x))

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier; 0 classes removes it."""
        self.num_classes = num_classes
        self.global_pool = self.global_pool if global_pool is None else global_pool
        self.fc = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.fc


default_cfgs = generate_default_cfgs(
    {
        "tuplet_convnet": {
            "url": "",
            "num_classes": 1000,
            "input_size": (3, 48, 48),
            "pool_size": (6, 6),
            "crop_pct": 1.0,
            "interpolation": "bilinear",
            # Of dark strokes on light paper: the paper comes near zero, as the padding is.
            "mean": (0.9, 0.9, 0.9),
            "std": (0.3, 0.3, 0.3),
            "first_conv": "stem.0",
            "classifier": "fc",
        }
    }
)


@register_model
def tuplet_convnet(pretrained: bool = False, **kwargs: Any) -> ConvNet:
    """A `ConvNet` of 0.3 million parameters; there are no pretrained weights of it."""
    model: ConvNet = build_model_with_cfg(ConvNet, "tuplet_convnet", pretrained, **kwargs)
    return model
