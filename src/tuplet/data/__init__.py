"""Labelled images: read from folders or generated, split by class, transformed and put into batches."""
