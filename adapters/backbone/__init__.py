"""Backbones: load, freeze and identify them, find their classifier, split ``model(x)`` in two."""
