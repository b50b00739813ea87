"""tuplet: labelled images in, an embedding model and an honest account of it out."""
