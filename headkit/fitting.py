"""Fitting with all engines: ``export.engines`` adds its own to the table when it is imported."""

from .adapters.fit import fit
from .export import engines  # noqa: F401

__all__ = ["fit"]
