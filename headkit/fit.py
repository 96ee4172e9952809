"""Fitting with all engines: ``export.engines`` adds its own to the table when it is imported."""

from headkit.adapters.fitting.fit import fit
from headkit.export.runtimes import extraction as engines  # noqa: F401

__all__ = ["fit"]
