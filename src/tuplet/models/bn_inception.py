"""BN-Inception with the parameter names of its published weights, known to timm as `bn_inception`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.models import (
    build_model_with_cfg,
    generate_default_cfgs,
    register_model,
    set_pretrained_check_hash,
)
from torch import Tensor, nn

from tuplet.errors import DataError
from tuplet.models.convnet import TimmNetwork
from tuplet.models.weights import squeeze_leading_axes

__all__ = ["BNInception"]


@final
@dataclass(frozen=True)
class InceptionBlock:
    """One inception block: the widths of its four branches, whose outputs are concatenated in this order."""

    name: str
    single: int
    """Of the 1x1 convolution; 0 leaves this branch out."""
    triple: tuple[int, int]
    """Of a 1x1 and a 3x3 convolution."""
    double: tuple[int, int]
    """Of a 1x1 and of two 3x3 convolutions."""
    pool: Literal["average", "max", "halve"]
    """Over 3x3, then a 1x1 convolution; halve: maximum, without a convolution, at half the side."""
    projection: int
    """Of the 1x1 convolution after the pooling."""

    @property
    def stride(self) -> int:
        """Return 2 where the block halves the map, else 1."""
        return 2 if self.pool == "halve" else 1

    def channels(self, in_channels: int) -> int:
        """Return how many channels come out."""
        pooled = in_channels if self.pool == "halve" else self.projection
        return self.single + self.triple[1] + self.double[1] + pooled


BLOCKS = (
    InceptionBlock("inception_3a", 64, (64, 64), (64, 96), "average", 32),
    InceptionBlock("inception_3b", 64, (64, 96), (64, 96), "average", 64),
    InceptionBlock("inception_3c", 0, (128, 160), (64, 96), "halve", 0),
    InceptionBlock("inception_4a", 224, (64, 96), (96, 128), "average", 128),
    InceptionBlock("inception_4b", 192, (96, 128), (96, 128), "average", 128),
    InceptionBlock("inception_4c", 160, (128, 160), (128, 160), "average", 128),
    InceptionBlock("inception_4d", 96, (128, 192), (160, 192), "average", 128),
    InceptionBlock("inception_4e", 0, (128, 192), (192, 256), "halve", 0),
    InceptionBlock("inception_5a", 352, (192, 320), (160, 224), "average", 128),
    InceptionBlock("inception_5b", 352, (192, 320), (192, 224), "max", 128),
)


@final
class BNInception(TimmNetwork):
    """The network of Ioffe and Szegedy as it was trained in Caffe.

    It takes RGB, as every model here does, and reverses the channels itself: the published weights expect
    BGR.

    Args:
        in_chans: channels of the input, 3 for RGB.
        num_classes: outputs of a classifier, 0 for none.
        global_pool: "avg" or "" for none.
    References:
        Ioffe and Szegedy, "Batch Normalization", ICML 2015; the names, and what differs from the paper
        (pooling that rounds up, biases before the norms), are those of bn_inception-52deb4733.pth.
    """

    classifier = "last_linear"

    def __init__(self, in_chans: int = 3, num_classes: int = 1000, global_pool: str = "avg") -> None:
        super().__init__()
        # All modules are attributes of this one, since the keys of the file have no levels.
        self._add("conv1_7x7_s2", in_chans, 64, kernel=7, stride=2)
        self._add("conv2_3x3_reduce", 64, 64, kernel=1)
        self._add("conv2_3x3", 64, 192, kernel=3)
        channels = 192
        for block in BLOCKS:
            self._add_block(block, channels)
            channels = block.channels(channels)
        self.num_features = channels
        self.reset_classifier(num_classes, global_pool)

    def forward_features(self, x: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N 1024 H2 W2"]:
        """Compute the last feature map, of a 32nd of the side.

        Raises:
            DataError: (a ValueError) sides that are not 32 k - 1 .. 32 k + 6 pixels, k >= 1. In others,
                convolution and pooling would halve the map to different sides.
        """
        height, width = x.shape[-2:]
        if min(height, width) < 31 or max((height + 1) % 32, (width + 1) % 32) > 7:
            raise DataError(
                f"images are {height} x {width} pixels; want multiples of 32 for bn_inception, such as 224",
                subject="pixels",
                given=(height, width),
            )
        x = self._convolve("conv1_7x7_s2", x.flip(1))
        x = self._convolve("conv2_3x3_reduce", _halve(x))
        x = _halve(self._convolve("conv2_3x3", x))
        for block in BLOCKS:
            x = self._inception(block, x)
        return x

    def _inception(self, block: InceptionBlock, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N C2 H2 W2"]:
        name = block.name
        branches = [self._convolve(f"{name}_1x1", x)] if block.single else []
        branches.append(self._convolve(f"{name}_3x3", self._convolve(f"{name}_3x3_reduce", x)))
        double = self._convolve(f"{name}_double_3x3_1", self._convolve(f"{name}_double_3x3_reduce", x))
        branches.append(self._convolve(f"{name}_double_3x3_2", double))
        if block.pool == "halve":
            branches.append(_halve(x))
        else:
            pool = F.avg_pool2d if block.pool == "average" else F.max_pool2d
            branches.append(self._convolve(f"{name}_pool_proj", pool(x, 3, stride=1, padding=1)))
        return torch.cat(branches, dim=1)

    def _convolve(self, name: str, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N C2 H2 W2"]:
        return F.relu(getattr(self, f"{name}_bn")(getattr(self, name)(x)), inplace=True)

    def _add(self, name: str, in_channels: int, channels: int, *, kernel: int, stride: int = 1) -> None:
        self.add_module(name, nn.Conv2d(in_channels, channels, kernel, stride, padding=kernel // 2))
        self.add_module(f"{name}_bn", nn.BatchNorm2d(channels))

    def _add_block(self, block: InceptionBlock, in_channels: int) -> None:
        name, stride = block.name, block.stride
        if block.single:
            self._add(f"{name}_1x1", in_channels, block.single, kernel=1)
        reduced, channels = block.triple
        self._add(f"{name}_3x3_reduce", in_channels, reduced, kernel=1)
        self._add(f"{name}_3x3", reduced, channels, kernel=3, stride=stride)
        reduced, channels = block.double
        self._add(f"{name}_double_3x3_reduce", in_channels, reduced, kernel=1)
        self._add(f"{name}_double_3x3_1", reduced, channels, kernel=3)
        self._add(f"{name}_double_3x3_2", channels, channels, kernel=3, stride=stride)
        if block.projection:
            self._add(f"{name}_pool_proj", in_channels, block.projection, kernel=1)


def _halve(x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N C H2 W2"]:
    # Caffe rounds the side of a pooled map up.
    return F.max_pool2d(x, 3, stride=2, ceil_mode=True)


default_cfgs = generate_default_cfgs(
    {
        "bn_inception": {
            "url": "http://data.lip6.fr/cadene/pretrainedmodels/bn_inception-52deb4733.pth",
            "num_classes": 1000,
            "input_size": (3, 224, 224),
            "pool_size": (7, 7),
            "crop_pct": 0.875,
            "interpolation": "bilinear",
            # In RGB: the weights take 0..255 less the means (104, 117, 128) of blue, green and red.
            "mean": (128 / 255, 117 / 255, 104 / 255),
            "std": (1 / 255, 1 / 255, 1 / 255),
            "first_conv": "conv1_7x7_s2",
            "classifier": "last_linear",
        }
    }
)


@register_model
def bn_inception(pretrained: bool = False, **kwargs: Any) -> BNInception:
    """Build a `BNInception` of 10.3 million parameters, with its weights for ImageNet if `pretrained`."""
    if pretrained:
        set_pretrained_check_hash(True)  # the file's name holds the beginning of its hash
    model: BNInception = build_model_with_cfg(
        BNInception,
        "bn_inception",
        pretrained,
        pretrained_filter_fn=lambda found, model: squeeze_leading_axes(found, model.state_dict()),
        **kwargs,
    )
    return model
