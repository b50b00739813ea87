"""The cross entropies of the loss for any number of classes, and spread over ranks."""
