"""Pictures indexed by their embeddings: what is near what, and what is there twice."""
