"""Train on a batch in parts with a loss over the whole batch, in the memory of one part (GradCache).

Averaging the losses of parts would give another loss, because HIST relates every sample to all others of the
batch. But the chain rule splits at the embeddings z: the gradient with respect to a weight w is

    dL/dw = sum_i (dz_i/dw)^T dL/dz_i,

and the only thing that needs the whole batch is dL/dz, N x D numbers. So: embed all parts without keeping
their feature maps, compute the loss once and keep dL/dz, then embed each part again and send its rows back.
The price is one more forward pass of the network.

References: Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", RepL4NLP
    2021.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Float, UInt8
from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricModule
from torch import Tensor

Result = TypeVar("Result")


@dataclass(frozen=True)
class _RandomState:
    """The generators of the CPU and of the device, which dropout and stochastic depth draw from."""

    cpu: Tensor
    device: Tensor | None

    @classmethod
    def now(cls, device: torch.device) -> _RandomState:
        on_gpu = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return cls(torch.get_rng_state(), on_gpu)

    def restore(self, device: torch.device) -> None:
        torch.set_rng_state(self.cpu)
        if self.device is not None:
            torch.cuda.set_rng_state(self.device, device)


def backward_in_parts(
    fabric: Fabric,
    network: _FabricModule,
    pixels: UInt8[Tensor, "n 3 H W"],
    num_parts: int,
    loss: Callable[[Float[Tensor, "n D"]], tuple[Tensor, Result]],
    *,
    synchronise: bool = True,
) -> Result:
    """Add the gradients of a batch to those of the network and the loss, part by part.

    The gradients equal those of the undivided batch, except where a layer of the network mixes the images of
    a batch: a BatchNorm that is not frozen normalises each part by itself. Dropout and stochastic depth drop
    the same units of every image in both passes.

    Args:
        fabric: its precision scales the gradients.
        network: set up by the fabric, in training mode.
        pixels: of this rank.
        num_parts: equal parts of the batch, a divisor of n.
        loss: computes the scalar to minimise from the embeddings of all parts, and anything to return.
        synchronise: let DistributedDataParallel average the network's gradients over the ranks, once.

    Returns: what the loss returned beside its scalar.
    """
    parts = pixels.chunk(num_parts)
    states: list[_RandomState] = []
    with torch.no_grad(), _unchanged(network.buffers()):
        embedded = []
        for part in parts:
            states.append(_RandomState.now(pixels.device))
            embedded.append(network(part))
    after = _RandomState.now(pixels.device)

    embeddings = torch.cat(embedded).requires_grad_()
    total, result = loss(embeddings)
    fabric.backward(total)
    assert embeddings.grad is not None
    # In 16-mixed, `fabric.backward` multiplies by the loss scale. The gradient of the embeddings contains it
    # already, and the backward passes below multiply again: divide once. Scales are powers of two, so the
    # division is exact.
    gradients = (embeddings.grad / _scale(fabric, total)).chunk(num_parts)

    for number, (part, state, gradient) in enumerate(zip(parts, states, gradients, strict=True), 1):
        state.restore(pixels.device)
        last = number == num_parts
        # Gradients add up on this rank without communication; with the last part DDP averages the sum.
        with fabric.no_backward_sync(network, enabled=not (synchronise and last)):
            fabric.backward(network(part), gradient)
    after.restore(pixels.device)
    return result


def _scale(fabric: Fabric, like: Tensor) -> Tensor:
    scaler: Any = getattr(fabric.strategy.precision, "scaler", None)
    one = torch.ones((), device=like.device)
    scaled: Tensor = one if scaler is None else scaler.scale(one)
    return scaled


@contextmanager
def _unchanged(buffers: Iterator[Tensor] | Sequence[Tensor]) -> Iterator[None]:
    """Restore buffers after the block, so that running statistics count each image once, not twice."""
    kept = [(buffer, buffer.clone()) for buffer in buffers]
    try:
        yield
    finally:
        for buffer, value in kept:
            buffer.copy_(value)
