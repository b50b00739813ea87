"""Losses: HIST (Eq. 1-6) and those that it is compared with."""

from tuplet.losses.hgnn import HGNN
from tuplet.losses.hist import HISTLoss, HISTTerms

__all__ = ["HGNN", "HISTLoss", "HISTTerms"]
