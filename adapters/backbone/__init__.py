"""Frozen backbones: load, freeze, identify, find the classifier, split ``model(x)`` in two."""
