"""The losses that loss_step.py compares: how each is built, filled, and what memory it asks for."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tuplet import HISTLoss

HIST = ("auto", "compiled", "plain", "expansion")
OTHERS = ("proxy_anchor", "arcface", "soft_triple")
KEEPING = ("auto", "compiled")
"""Those that keep memory from step to step."""
METHODS = (*HIST, *OTHERS)
WIDTH = 512
"""D, and the hidden width h."""
BLOCK = 1 << 25
"""Random numbers drawn; larger parameters repeat them, as drawing 1.5 billion takes longer than a step."""

Loss = Callable[[Tensor, Tensor], Tensor]

# Memory of a step, parameters and gradients included, in units of C x D and of N x C floats: what this
# benchmark measured at 4,000 and 20,000 classes. It says which cells cannot fit; the limit that holds is in
# loss_step/cell.py.
_UNITS = {
    "auto": (6.1, 1.0),
    "compiled": (6.1, 1.0),
    "plain": (12.3, 1.4),
    "expansion": (6.0, 6.0 * WIDTH),
    "proxy_anchor": (6.3, 6.7),
    "arcface": (6.3, 0.5),
    "soft_triple": (60.0, 1.0),
}


def bytes_needed(method: str, num_samples: int, num_classes: int) -> int:
    """About what a step takes, parameters and gradients included."""
    by_width, by_samples = _UNITS.get(method, (0.0, 0.0))
    return int(4 * num_classes * (by_width * WIDTH + by_samples * num_samples))


def build(method: str, num_classes: int, device: torch.device) -> tuple[nn.Module, Loss]:
    """The module that holds the parameters, and the loss of embeddings and labels."""
    with torch.device("meta"):
        module = _module(method, num_classes)
    module = module.to_empty(device=device)
    _fill(module)
    if method == "expansion":
        return module, lambda embeddings, labels: expansion(module, embeddings, labels)
    if method in HIST:
        return module, lambda embeddings, labels: module.terms(embeddings, labels).total
    return module, module


def default_value(module: nn.Module, embeddings: Tensor, labels: Tensor) -> float:
    """What HISTLoss says with the same parameters and its default implementation."""
    given, module.implementation = module.implementation, "chunked"
    with torch.no_grad():
        value = float(module.terms(embeddings, labels).total)
    module.implementation = given
    return value


def expansion(loss: HISTLoss, embeddings: Tensor, labels: Tensor) -> Tensor:
    """Equations 1-6 as published: every distance through its N x C x D differences."""
    x, mu = F.normalize(embeddings, dim=1), F.normalize(loss.means, dim=1)
    variances = loss.log_variances.clamp(0.0, 6.0).exp()
    distances = ((x[:, None] - mu[None]) ** 2 / variances[None]).sum(dim=2)
    distribution = F.cross_entropy(-loss.tau * distances, labels)  # Eq. 1-2
    classes = labels.unique()
    own = (labels[:, None] == classes).float()
    incidence = own + (1.0 - own) * torch.exp(-loss.alpha * distances[:, classes])  # Eq. 3-4
    logits = loss.hgnn(embeddings, incidence)
    return distribution + loss.lambda_s * F.cross_entropy(logits, labels)  # Eq. 5-6


def _module(method: str, num_classes: int) -> nn.Module:
    if method in HIST:
        implementation = "auto" if method == "expansion" else method
        return HISTLoss(num_classes, WIDTH, hidden_dim=WIDTH, num_layers=2, implementation=implementation)
    from pytorch_metric_learning import losses

    kinds = {
        "proxy_anchor": losses.ProxyAnchorLoss,
        "arcface": losses.ArcFaceLoss,
        "soft_triple": losses.SoftTripleLoss,
    }
    return kinds[method](num_classes=num_classes, embedding_size=WIDTH)


@torch.no_grad()
def _fill(module: nn.Module) -> None:
    # A standard deviation of 1/sqrt(D) clips half of the log-variances, as the default initialisation does.
    for parameter in module.parameters():
        flat = parameter.view(-1)
        block = torch.randn(min(BLOCK, len(flat)), device=flat.device) * WIDTH**-0.5
        for part in flat.split(BLOCK):
            part.copy_(block[: len(part)])
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d):
            part.reset_parameters()
