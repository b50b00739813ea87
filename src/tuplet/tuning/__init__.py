"""Bayesian optimisation over a config: spaces, a shared storage, workers, and what they found."""
