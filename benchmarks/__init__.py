"""Measure: contenders alternate in one run, results are JSON files, docs are made of them."""
