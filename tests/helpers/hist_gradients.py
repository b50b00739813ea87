"""The distances of the HIST loss, and its value and gradients in one list."""

from __future__ import annotations

from typing import get_args

from tuplet.config import Distance

DISTANCES = get_args(Distance)


def gradients(call, loss, embeddings, labels):
    """Return the value, and the gradients by embeddings and parameters; `call` computes what `loss` holds."""
    embeddings = embeddings.detach().clone().requires_grad_()
    loss.zero_grad()
    value = call(embeddings, labels)
    value.backward()
    return [value.detach(), embeddings.grad, *(p.grad for p in loss.parameters() if p.grad is not None)]
