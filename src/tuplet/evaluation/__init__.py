"""Measure a network or embeddings; compare two."""
