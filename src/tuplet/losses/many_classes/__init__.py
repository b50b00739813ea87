"""The class head of the loss for any number of classes."""
