"""How ranks are counted exactly, in blocks."""
