"""Labelled images: folders, CSV files and timm's readers."""
