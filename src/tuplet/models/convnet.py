"""A small residual network for small images such as characters, known to timm as `tuplet_convnet`."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, ClassVar, final

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
        """Compute the map at half the side."""
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class TimmNetwork(nn.Module):
    """What timm calls of a network beside its `forward_features`: pooling, and a classifier to be replaced.

    A subclass ends its constructor with `reset_classifier`.
    """

    classifier: ClassVar[str]
    """The attribute of the last layer."""
    num_features: int

    def forward_features(self, x: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N C H2 W2"]:
        """Compute the last feature map."""
        raise NotImplementedError

    def forward_head(self, x: Float[Tensor, "N C H W"], pre_logits: bool = False) -> Float[Tensor, "N ..."]:
        """Pool a map, and classify it unless `pre_logits`."""
        pooled = x.mean(dim=(2, 3)) if self.global_pool else x
        if pre_logits:
            return pooled
        logits: Tensor = self.get_classifier()(pooled)
        return logits

    def forward(self, x: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N ..."]:
        """Compute class logits, or the features where there is no classifier."""
        return self.forward_head(self.forward_features(x))

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier; 0 classes removes it. The pooling, "avg" or "" for none, stays if None."""
        self.num_classes, self.head_hidden_size = num_classes, self.num_features
        if global_pool is not None:
            self.global_pool = global_pool
        layer = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        setattr(self, self.classifier, layer)

    def get_classifier(self) -> nn.Module:
        """Return the last layer."""
        layer: nn.Module = getattr(self, self.classifier)
        return layer


@final
class ConvNet(TimmNetwork):
    """A stem and one residual block a stage, each halving the map.

    Args:
        channels: of the stem and of each residual block.
        in_chans: channels of the input, 3 for RGB.
        num_classes: outputs of a classifier, 0 for none.
        global_pool: "avg" or "" for none.
    """

    classifier = "fc"

    def __init__(
        self,
        channels: tuple[int, ...] = (32, 64, 128),
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(in_chans, channels[0], 5, stride=2, padding=2, bias=False),
            nn.BatchNorm2d(channels[0]),
            nn.ReLU(inplace=True),
        )
        self.stages = nn.Sequential(*(ResidualBlock(a, b) for a, b in pairwise(channels)))
        self.num_features = channels[-1]
        self.reset_classifier(num_classes, global_pool)

    def forward_features(self, x: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N C H2 W2"]:
        """Compute the last feature map."""
        features: Tensor = self.stages(self.stem(x))
        return features


default_cfgs = generate_default_cfgs(
    {
        "tuplet_convnet": {
            "url": "",
            "num_classes": 1000,
            "input_size": (3, 48, 48),
            "pool_size": (6, 6),
            "crop_pct": 1.0,
            "interpolation": "bilinear",
            # Of dark strokes on light paper: the paper comes out near zero, which is what padding adds.
            "mean": (0.9, 0.9, 0.9),
            "std": (0.3, 0.3, 0.3),
            "first_conv": "stem.0",
            "classifier": "fc",
        }
    }
)


@register_model
def tuplet_convnet(pretrained: bool = False, **kwargs: Any) -> ConvNet:
    """Build a `ConvNet` of 0.3 million parameters; there are no pretrained weights for it."""
    model: ConvNet = build_model_with_cfg(ConvNet, "tuplet_convnet", pretrained, **kwargs)
    return model
