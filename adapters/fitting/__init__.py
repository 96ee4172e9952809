"""Fit a head on features, calibrate it, measure it and report it."""
