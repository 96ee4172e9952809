"""Weights from a file, a folder or the Hub: read them, and match them with an architecture."""
