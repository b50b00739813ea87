"""Tuning, benchmarks and claims."""
