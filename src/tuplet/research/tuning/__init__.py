"""Search settings."""
