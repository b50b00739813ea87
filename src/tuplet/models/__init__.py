"""Embedding networks: a timm backbone, pooling and a linear layer."""

from tuplet.models.embedder import Embedder

__all__ = ["Embedder"]
