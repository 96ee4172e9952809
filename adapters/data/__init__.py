"""Open labeled images: folders, CSV files and data sets that timm's readers know."""
