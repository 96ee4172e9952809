"""The methods of tuning: the function ``place`` of each module says what it changes."""

from __future__ import annotations

from types import ModuleType

from . import affine, bias, last, lora

METHODS: dict[str, ModuleType] = {
    module.__name__.rpartition(".")[2]: module for module in (affine, bias, lora, last)
}

RATES: dict[str, tuple[float, ...]] = {
    "affine": (3e-3, 1e-2),
    "bias": (3e-3, 1e-2),
    "lora": (3e-3, 1e-2),
    "last": (1e-4, 3e-4, 1e-3),
}
"""Learning rates from which held-out images choose one."""

DEFAULT_METHODS = ("affine", "lora")
"""Methods from which held-out images choose one, each at the last of its learning rates."""
