"""Losses compared under one protocol: equal trials, equal seeds, the same images."""
