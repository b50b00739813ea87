"""Recipes: named settings, as functions that return a `RunConfig`."""
