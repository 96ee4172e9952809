"""Ridge regression over levels in the space of images: exact out-of-fold predictions are cheap."""
