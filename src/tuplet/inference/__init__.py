"""Use a trained network: load, encode, export."""
