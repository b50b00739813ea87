"""The losses that HIST is compared with, from pytorch-metric-learning, with the settings of their papers."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from tuplet.config import LossName
from tuplet.config.checks import positive_number, require, require_choice, whole_number
from tuplet.config.loss import RIVALS
from tuplet.errors import MissingExtraError
from tuplet.losses.base import LossTerms, MetricLoss, leading_widths
from tuplet.losses.many_classes.scores import without_autocast

MINED_SIMILARITY = 0.1
"""epsilon of the pairs that multi-similarity mines (Wang et al., CVPR 2019)."""

WIDTH_AXES = {"proxies": 1, "fc": 0, "W": 0}
"""Which axis of each parameter of pytorch-metric-learning is as wide as the embeddings."""

CENTRE_WEIGHT = 0.2
"""Weight of the distances between the centres of a class of soft-triple (Qian et al., ICCV 2019)."""


@final
class RivalLoss(MetricLoss):
    """A loss that HIST is compared with, as pytorch-metric-learning implements it.

    Proxies, centres and class weights are parameters that train with the network: pass `parameter_groups` to
    the optimizer. All compare by cosine, or by the squared distance of embeddings of length one, and compute
    in float32 or wider, whatever the type of the embeddings, and also under autocast.

    Args:
        name: proxy-anchor, proxy-nca, soft-triple and arcface have parameters per class; multi-similarity
            (with the miner of its paper), triplet (with semi-hard triplets) and supcon compare the samples of
            a batch, which needs several of a class.
        num_classes: training classes, C >= 1.
        embedding_dim: width of the embeddings, D >= 1.
        matryoshka: leading widths, ascending and below D, whose loss is added; each mines its own pairs.
        settings: margin, scale, positive_scale and num_centers, as far as the loss has them (see
            `LossConfig`); those left out or None are as published.
    Raises:
        SettingsError: (a ValueError) a name that is none of these, or a setting outside its range.
        MissingExtraError: pytorch-metric-learning is not installed.
    """

    def __init__(
        self,
        name: LossName,
        num_classes: int,
        embedding_dim: int,
        *,
        matryoshka: Sequence[int] = (),
        **settings: float | None,
    ) -> None:
        super().__init__()
        require_choice("the rival", name, RIVALS)
        self.settings = dict(RIVALS[name])
        for key, value in settings.items():
            if value is not None:
                require(key in self.settings, key, value, f"only {', '.join(self.settings)}, for {name}")
                checked = whole_number if key == "num_centers" else positive_number
                self.settings[key] = checked(key, value)
        self.num_classes = whole_number("num_classes", num_classes)
        self.embedding_dim = whole_number("embedding_dim", embedding_dim)
        self.matryoshka = leading_widths(matryoshka, self.embedding_dim)
        self.name = name
        self.loss, self.miner = _build(name, self.settings, self.num_classes, self.embedding_dim)

    def terms(self, embeddings: Float[Tensor, "N D"], labels: Int[Tensor, " N"]) -> LossTerms:
        """Compute the loss of one batch; arguments and errors as in `forward`."""
        embeddings, labels = self.checked(embeddings, labels, width=self.embedding_dim)
        return self.with_leading(LossTerms(self.leading_loss(embeddings, labels)), embeddings, labels)

    def leading_loss(self, leading: Float[Tensor, "N w"], labels: Int[Tensor, " N"]) -> Float[Tensor, ""]:
        """Compute the loss of the first w coordinates, with those of proxies, centres or class weights."""
        width, own = leading.shape[1], dict(self.loss.named_parameters())
        # In bfloat16 a cosine has two or three digits, and a scale of 64 multiplies the error. The library
        # would also cast its parameters to the type of the embeddings permanently, so it gets copies.
        wide = functools.reduce(torch.promote_types, (row.dtype for row in own.values()), torch.float32)
        wide = torch.promote_types(wide, leading.dtype)
        is_whole = width == self.embedding_dim
        rows = {
            name: (row if is_whole else row.narrow(WIDTH_AXES[name], 0, width)).to(wide)
            for name, row in own.items()
        }
        with without_autocast(leading.device):
            leading = leading.to(wide)
            inputs = (leading, labels, None if self.miner is None else self.miner(leading.detach(), labels))
            total: Tensor = functional_call(self.loss, rows, inputs)
            num_centers = int(self.settings.get("num_centers", 0))
            if num_centers > 1:
                total = total + CENTRE_WEIGHT * centre_distance(rows["fc"].T, num_centers)
        return total

    def parameter_groups(self, *, lr_proxies: float) -> list[dict[str, Any]]:
        """Return optimizer groups that hold every parameter of the loss once; an empty list if it has none.

        Args:
            lr_proxies: learning rate of proxies, centres or class weights, >= 0.
        """
        parameters = list(self.parameters())
        return [{"name": "proxies", "params": parameters, "lr": lr_proxies}] if parameters else []


def centre_distance(centres: Float[Tensor, "CK D"], num_centers: int) -> Float[Tensor, ""]:
    """Compute half the mean distance between the centres of one class, at unit length.

    Args:
        centres: `num_centers` rows per class, class after class.
        num_centers: K >= 2.
    References: Qian et al., "SoftTriple Loss", ICCV 2019, Eq. 11.
    """
    of_class = F.normalize(centres, dim=1).view(-1, num_centers, centres.shape[1])
    first, second = torch.triu_indices(num_centers, num_centers, offset=1, device=centres.device)
    similarity = (of_class @ of_class.mT)[:, first, second]
    # |a - b|^2 = 2 - 2 a.b at unit length. The slope of a root is infinite at zero, where centres coincide,
    # as soft-triple wants them to: the clamp stops the gradient there.
    distances: Tensor = (2.0 - 2.0 * similarity).clamp_min(1e-5).sqrt()
    return distances.mean() / 2.0


def _build(
    name: LossName, settings: dict[str, float], num_classes: int, dim: int
) -> tuple[Any, Callable[[Tensor, Tensor], Any] | None]:
    """Build the loss and the miner of pytorch-metric-learning."""
    try:
        from pytorch_metric_learning import distances, losses, miners
    except ImportError:
        raise MissingExtraError("pytorch_metric_learning", "baselines", purpose=f"loss {name}") from None
    margin, scale = settings.get("margin", 0.0), settings.get("scale", 0.0)
    if name == "proxy-anchor":
        return losses.ProxyAnchorLoss(num_classes, dim, margin=margin, alpha=scale), None
    if name == "proxy-nca":
        return losses.ProxyNCALoss(num_classes, dim, softmax_scale=scale), None
    if name == "soft-triple":
        size = {"centers_per_class": settings["num_centers"]}
        return losses.SoftTripleLoss(num_classes, dim, la=scale, margin=margin, **size), None
    if name == "arcface":
        return losses.ArcFaceLoss(num_classes, dim, margin=math.degrees(margin), scale=scale), None
    if name == "multi-similarity":
        loss = losses.MultiSimilarityLoss(alpha=settings["positive_scale"], beta=scale, base=margin)
        return loss, miners.MultiSimilarityMiner(epsilon=MINED_SIMILARITY)
    if name == "supcon":
        return losses.SupConLoss(temperature=1.0 / scale), None
    squared = distances.LpDistance(power=2)
    loss = losses.TripletMarginLoss(margin=margin, distance=squared)
    return loss, miners.TripletMarginMiner(margin=margin, type_of_triplets="semihard", distance=squared)
