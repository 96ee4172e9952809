"""The methods of tuning: the function ``place`` of each module says what it changes."""

from __future__ import annotations

from types import ModuleType

from . import affine, bias, last, lora

METHODS: dict[str, ModuleType] = {
    module.__name__.rpartition(".")[2]: module for module in (affine, bias, lora, last)
}
