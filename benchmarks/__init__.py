"""Measure: what is compared alternates in one run; results are JSON files; pages show them."""
