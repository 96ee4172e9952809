"""Read tables of image paths with a class, several labels or numbers for each image."""
