"""Executors of extraction: one module each, with one function that extracts files."""
