"""How good embeddings are, as pure functions: retrieval (exact, ties defined) and clustering."""
