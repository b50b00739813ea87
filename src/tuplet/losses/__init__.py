"""Losses: HIST (Equations 1-6)."""

from tuplet.losses.hgnn import HGNN
from tuplet.losses.hist import HISTLoss, HISTTerms

__all__ = ["HGNN", "HISTLoss", "HISTTerms"]
