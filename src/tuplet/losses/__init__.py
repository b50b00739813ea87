"""Losses: HIST (Equations 1-6)."""

from tuplet.losses.hist import HGNN, HISTLoss, HISTTerms

__all__ = ["HGNN", "HISTLoss", "HISTTerms"]
