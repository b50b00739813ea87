"""The `tuplet` command."""
