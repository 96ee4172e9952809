"""Features of a frozen backbone: decode images, run the backbone, keep the result in a cache."""
