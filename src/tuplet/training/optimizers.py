"""Optimizers of a run: one over everything, or a second one for the parameters of the classes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, final, overload

import torch
from torch import Tensor

from tuplet.config import OptimizerConfig
from tuplet.losses.base import MetricLoss
from tuplet.losses.hist import HISTLoss
from tuplet.losses.rivals import RivalLoss
from tuplet.models.embedder import Embedder


def build_optimizers(
    network: Embedder, loss: MetricLoss, config: OptimizerConfig, *, capturable: bool = False
) -> list[torch.optim.Optimizer]:
    """Build one optimizer over the parameter groups of network and loss, or two.

    The groups are "backbone" and "embedding"; of HIST also "distributions" and "hgnn"; of a rival loss with
    parameters of its own also "proxies".

    With `class_update` rowwise, a second optimizer takes the parameters that have one row per class, in
    groups of the same names; those groups of the first keep the rest.

    Args:
        network: to train.
        loss: to train.
        config: learning rates of the groups, and which optimizer.
        capturable: keep all state on the device, so that a CUDA graph can contain a step; for Adam and AdamW,
            as the other optimizers keep no state on the host.
    """
    groups = [
        *network.parameter_groups(lr_backbone=config.lr_backbone, lr_embedding=config.lr_embedding),
        *_groups_of_loss(loss, config),
    ]
    if config.class_update == "same":
        return [_build(groups, config, capturable)]
    of_classes = {id(parameter) for parameter in loss.class_parameters().values()}
    rows = [_only(group, lambda parameter: id(parameter) in of_classes) for group in groups]
    others = [_only(group, lambda parameter: id(parameter) not in of_classes) for group in groups]
    # The first optimizer keeps groups without parameters, so that its groups are always the same.
    return [_build(others, config, capturable), RowwiseAdam([group for group in rows if group["params"]])]


@final
class RowwiseAdam(torch.optim.Optimizer):
    """Adam without momentum and with one second moment per row: its state is two numbers per row.

    Adam keeps two more copies of every parameter. With a million classes of 512 dimensions those are 4 GB;
    here they are 8 MB. A row that is missing from a sparse gradient keeps its value and its second moment.
    There is no weight decay.

    Args:
        params: parameters or groups of them, as torch optimizers take them; rows are the first dimension.
        lr: learning rate, >= 0.
        beta2: decay of the second moments, in [0, 1).
        eps: added to the root of the second moment, > 0.

    References: Kingma and Ba, "Adam", ICLR 2015; one second moment per row as for recommenders' embedding
        tables.
    """

    def __init__(
        self, params: Iterable[Any], *, lr: float = 1e-3, beta2: float = 0.999, eps: float = 1e-8
    ) -> None:
        super().__init__(params, {"lr": lr, "beta2": beta2, "eps": eps})

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every row that has a gradient."""
        value = None
        if closure is not None:
            with torch.enable_grad():
                value = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group)
        return value

    def _move(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["steps"] = torch.zeros(len(parameter), device=parameter.device)
            state["second_moment"] = torch.zeros(len(parameter), device=parameter.device)
        places = None
        if gradient.is_sparse:
            gradient = gradient.coalesce()
            places, gradient = gradient.indices()[0], gradient.values()
        wide = gradient.view(len(gradient), -1)
        squares = torch.linalg.vector_norm(wide, dim=1).float().square_().div_(max(1, wide.shape[1]))
        # Adam divides the second moment, which starts at 0, by 1 - beta2^steps. Steps are counted per row.
        # With a common count, a row that is first drawn late would be corrected too little: its second moment
        # would be far too small, and its first step far too large.
        steps, moment = (
            state[name] if places is None else state[name][places] for name in ("steps", "second_moment")
        )
        steps += 1
        moment.lerp_(squares, 1.0 - group["beta2"])
        corrected = moment / (1.0 - torch.pow(group["beta2"], steps))
        factors = corrected.sqrt_().add_(group["eps"]).reciprocal_().mul_(-group["lr"]).to(parameter.dtype)
        factors = factors.view(-1, *[1] * (parameter.ndim - 1))
        if places is None:
            parameter.addcmul_(gradient, factors)
        else:
            parameter.index_add_(0, places, gradient * factors)
            state["steps"][places], state["second_moment"][places] = steps, moment


def _groups_of_loss(loss: MetricLoss, config: OptimizerConfig) -> list[dict[str, Any]]:
    if isinstance(loss, HISTLoss):
        groups = loss.parameter_groups(lr_distributions=config.lr_distributions, lr_hgnn=config.lr_hgnn)
        if config.weight_decay_distributions is not None:
            groups[0]["weight_decay"] = config.weight_decay_distributions
        return groups
    assert isinstance(loss, RivalLoss)
    return loss.parameter_groups(lr_proxies=config.lr_proxies)


def _build(groups: list[dict[str, Any]], config: OptimizerConfig, capturable: bool) -> torch.optim.Optimizer:
    # Fused kernels update all parameters in one pass over memory instead of a dozen.
    if config.name == "sgd":
        decay = config.weight_decay
        return torch.optim.SGD(groups, lr=0.0, momentum=0.9, nesterov=True, weight_decay=decay, fused=True)
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return kind(groups, weight_decay=config.weight_decay, fused=True, capturable=capturable)


def _only(group: dict[str, Any], wanted: Callable[[Tensor], bool]) -> dict[str, Any]:
    return {**group, "params": [parameter for parameter in group["params"] if wanted(parameter)]}
