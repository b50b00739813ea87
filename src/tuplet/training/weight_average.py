"""An exponential moving average (EMA) of a network's weights over the training steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import final

import torch
from torch import Tensor, nn


@final
class WeightAverage:
    """The running average of a network's weights and running statistics, average <- d average + (1 - d) now.

    Running statistics, such as those of BatchNorm, are averaged like weights: those of the last step belong
    to features that the averaged weights do not compute. Integers, such as BatchNorm's count of batches, are
    copied.

    Args:
        network: whose weights are averaged, on its device, with the values that the average starts from.
        decay: d after the first steps, in [0, 1); see `decay_at`.

    Attributes:
        num_steps: steps averaged so far.
    References: Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992; Morales-
        Brotons et al., "Exponential Moving Average of Weights in Deep Learning", TMLR 2024.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._decay = decay
        self.num_steps = 0
        # `state_dict` returns the parameters' own memory, not copies: they change with every optimizer step.
        self._trained: dict[str, Tensor] = network.state_dict()
        self._average = {name: value.clone() for name, value in self._trained.items()}
        self._names: dict[torch.dtype, list[str]] = {}
        for name, value in self._trained.items():
            self._names.setdefault(value.dtype, []).append(name)

    @torch.no_grad()
    def update(self) -> None:
        """Add the weights after a step; nothing is read on the host."""
        self.num_steps += 1
        weight = 1.0 - decay_at(self.num_steps, self._decay)
        for dtype, names in self._names.items():
            average, trained = ([part[name] for name in names] for part in (self._average, self._trained))
            if dtype.is_floating_point:
                torch._foreach_lerp_(average, trained, weight)
            else:
                torch._foreach_copy_(average, trained)

    def weights(self) -> dict[str, Tensor]:
        """Return the average, by the names of the network's `state_dict`."""
        return self._average

    def load(self, weights: Mapping[str, Tensor], num_steps: int) -> None:
        """Restore the average as it was after so many steps."""
        for name, value in self._average.items():
            value.copy_(weights[name])
        self.num_steps = num_steps

    @contextmanager
    def in_network(self) -> Iterator[None]:
        """Put the average into the network for the block, and the trained weights back after it."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        # Swap values, not tensors: optimizers, DDP and CUDA graphs hold references to the network's tensors.
        for name, value in self._average.items():
            trained = self._trained[name].clone()
            self._trained[name].copy_(value)
            value.copy_(trained)


def decay_at(step: int, decay: float) -> float:
    """Compute the decay of one step, min(decay, (1 + step) / (10 + step)).

    A constant decay would keep decay^t of the untrained weights after t steps, more than a third at 0.999 in
    a training of 1,000. With this warm-up, TensorFlow's, the average covers about the last tenth of the steps
    until it reaches its full length. The warm-up of timm, 1 - step^(-2/3), is made for a million of steps: it
    would hold a decay of 0.999 back until step 32,000, where this one lets go at step 9,000.

    Args:
        step: 1, 2, ...
        decay: in [0, 1).
    References: tf.train.ExponentialMovingAverage; timm.utils.ModelEmaV3.
    """
    return min(decay, (1 + step) / (10 + step))
