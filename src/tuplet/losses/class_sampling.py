"""Which classes a training step sums over, where it does not sum over all."""

from __future__ import annotations

import torch
from jaxtyping import Int64
from torch import Tensor


def draw_classes(num_classes: int, always: Int64[Tensor, " E"], *, fraction: float) -> Int64[Tensor, " S"]:
    """Some classes, and a random sample of the others, ascending.

    Args:
        num_classes: C, >= 0; classes are 0..C-1.
        always: classes that are among them whatever is drawn.
        fraction: share of C that they are together, unless `always` alone is more; in (0, 1].

    Source: An et al., "Killing Two Birds with One Stone: Efficient and Robust Training of Face Recognition
        CNNs by Partial FC", CVPR 2022.
    """
    priority = torch.rand(num_classes, device=always.device)
    priority[always] = -1.0
    count = max(len(always), round(fraction * num_classes))
    return priority.topk(count, largest=False, sorted=False).indices.sort().values
