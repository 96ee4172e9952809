"""Swappable classifier heads for every timm image model.

Each name loads when it is first used. ``import headkit`` itself imports neither torch nor timm.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headkit.adapters.backbone.fingerprint import fingerprint
    from headkit.adapters.backbone.forward import classify, features
    from headkit.adapters.backbone.freeze import freeze
    from headkit.adapters.backbone.levels import levels
    from headkit.adapters.data.summary import describe_data
    from headkit.adapters.errors import (
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
        SignatureError,
        StoreError,
        UnknownArchitecture,
        WeightsError,
    )
    from headkit.adapters.heads.attach import adapt, attach, head_of, save_head
    from headkit.adapters.heads.backbone_of_head import load_backbone_of
    from headkit.adapters.heads.from_checkpoint import extract_head
    from headkit.adapters.heads.head import Head
    from headkit.adapters.heads.tuned_backbone import load_backbone
    from headkit.adapters.tuning.batches import Augmentation
    from headkit.benchmarks.bench.bench import bench
    from headkit.benchmarks.compare.compare import compare
    from headkit.export.exporter import export
    from headkit.export.graph.graft import graft
    from headkit.export.predict.predictor import Predictor
    from headkit.registry.catalogue import models
    from headkit.registry.store.store import HeadStore

    from .diff import diff_heads
    from .estimator import HeadClassifier
    from .evaluate import evaluate
    from .evaluation import Evaluation
    from .extract import extract
    from .fit import fit
    from .info import info
    from .tune import tune

    __version__: str

_NAMES_BY_MODULE = {
    "adapters.heads.attach": ("adapt", "attach", "head_of", "save_head"),
    "adapters.heads.backbone_of_head": ("load_backbone_of",),
    "adapters.heads.from_checkpoint": ("extract_head",),
    "adapters.backbone.fingerprint": ("fingerprint",),
    "adapters.backbone.freeze": ("freeze",),
    "adapters.backbone.forward": ("classify", "features"),
    "adapters.backbone.levels": ("levels",),
    "adapters.data.summary": ("describe_data",),
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
        "SignatureError",
        "StoreError",
        "UnknownArchitecture",
        "WeightsError",
    ),
    "adapters.heads.head": ("Head",),
    "adapters.heads.tuned_backbone": ("load_backbone",),
    "benchmarks.bench.bench": ("bench",),
    "benchmarks.compare.compare": ("compare",),
    "export.graph.graft": ("graft",),
    "export.predict.predictor": ("Predictor",),
    "diff": ("diff_heads",),
    "evaluate": ("evaluate",),
    "evaluation": ("Evaluation",),
    "estimator": ("HeadClassifier",),
    "extract": ("extract",),
    "fit": ("fit",),
    "info": ("info",),
    "adapters.tuning.batches": ("Augmentation",),
    "registry.catalogue": ("models",),
    "registry.store.store": ("HeadStore",),
    "tune": ("tune",),
}
_MODULE_OF = {name: module for module, names in _NAMES_BY_MODULE.items() for name in names}

__all__ = [
    "Augmentation",
    "BackboneMismatch",
    "ContractError",
    "DataError",
    "DependencyMissing",
    "Evaluation",
    "ExportError",
    "Head",
    "HeadClassifier",
    "HeadFormatError",
    "HeadStore",
    "HeadkitError",
    "OutputError",
    "ParityError",
    "Predictor",
    "RegistryError",
    "SignatureError",
    "StoreError",
    "UnknownArchitecture",
    "WeightsError",
    "adapt",
    "attach",
    "bench",
    "classify",
    "compare",
    "describe_data",
    "diff_heads",
    "evaluate",
    "export",
    "extract",
    "extract_head",
    "features",
    "fingerprint",
    "fit",
    "freeze",
    "graft",
    "head_of",
    "info",
    "levels",
    "load_backbone",
    "load_backbone_of",
    "models",
    "save_head",
    "tune",
]


class _Face(ModuleType):
    """The package ``headkit``, whose ``extract``, ``fit`` and others are always the functions.

    When Python imports the module ``headkit.fit``, it binds the module to the package. Without this
    class, ``headkit.fit`` would be the module or the function, depending on earlier imports.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if isinstance(value, ModuleType) and name in _MODULE_OF:
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Face


def __getattr__(name: str) -> object:
    if name == "__version__":
        return import_module("importlib.metadata").version(__name__)
    if name == "export":
        return import_module(".export", __name__)
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
