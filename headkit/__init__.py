"""Swappable classifier heads for every timm image model.

Everything loads on first use: ``import headkit`` alone imports neither torch nor timm.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from .adapters.located import RESOLVERS

if TYPE_CHECKING:
    from .adapters.adapt import adapt, attach, head_of, save_head
    from .adapters.backbone import fingerprint, freeze, load_backbone, load_backbone_of
    from .adapters.errors import (
        BackboneMismatch,
        ContractError,
        DataError,
        DependencyMissing,
        ExportError,
        HeadFormatError,
        HeadkitError,
        OutputError,
        ParityError,
        RegistryError,
        StoreError,
        UnknownArchitecture,
        WeightsError,
    )
    from .adapters.head import Head
    from .adapters.split import classify, features
    from .benchmarks.bench import bench
    from .benchmarks.compare import compare
    from .describe import info
    from .export.exporter import export
    from .export.graft import graft
    from .export.predictor import Predictor
    from .fitting import fit
    from .registry.catalogue import models
    from .registry.store import HeadStore

_HOME = {
    "adapters.adapt": ("adapt", "attach", "head_of", "save_head"),
    "adapters.backbone": ("fingerprint", "freeze", "load_backbone", "load_backbone_of"),
    "adapters.errors": (
        "BackboneMismatch",
        "ContractError",
        "DataError",
        "DependencyMissing",
        "ExportError",
        "HeadFormatError",
        "HeadkitError",
        "OutputError",
        "ParityError",
        "RegistryError",
        "StoreError",
        "UnknownArchitecture",
        "WeightsError",
    ),
    "adapters.head": ("Head",),
    "adapters.split": ("classify", "features"),
    "export.graft": ("graft",),
    "export.predictor": ("Predictor",),
    "benchmarks.bench": ("bench",),
    "benchmarks.compare": ("compare",),
    "describe": ("info",),
    "fitting": ("fit",),
    "registry.catalogue": ("models",),
    "registry.store": ("HeadStore",),
}
# `export` is a function and a package: the package is callable, see export/__init__.py.
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "BackboneMismatch",
    "ContractError",
    "DataError",
    "DependencyMissing",
    "ExportError",
    "Head",
    "HeadFormatError",
    "HeadStore",
    "HeadkitError",
    "OutputError",
    "ParityError",
    "Predictor",
    "RegistryError",
    "StoreError",
    "UnknownArchitecture",
    "WeightsError",
    "adapt",
    "attach",
    "bench",
    "classify",
    "compare",
    "export",
    "features",
    "fingerprint",
    "fit",
    "freeze",
    "graft",
    "head_of",
    "info",
    "load_backbone",
    "load_backbone_of",
    "models",
    "save_head",
]


def _resolve(reference: str) -> Path | None:
    found: Path | None = import_module(".registry.store", __name__).located(reference)
    return found


RESOLVERS.append(_resolve)


def __getattr__(name: str) -> object:
    if name == "export":
        return import_module(".export", __name__)
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
