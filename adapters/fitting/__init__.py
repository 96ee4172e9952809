"""Fit a head to features, calibrate it, measure it and report on it."""
