"""Measure models and tools: runs alternate what they compare, and write results as JSON files."""
