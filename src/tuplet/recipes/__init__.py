"""Settings as functions that return a `RunConfig`."""
