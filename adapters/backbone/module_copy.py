"""A structural copy of a model, to try something on without touching the model."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from headkit.adapters.compat import is_hook_registry, is_member_registry

_PLAIN = (bool, int, float, str, bytes, type(None), type, torch.dtype, torch.device, torch.Size)


def all_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by name, non-persistent and repeated ones too."""
    return {
        f"{path}.{name}" if path else name: tensor
        for path, module in model.named_modules(remove_duplicate=False)
        for own in (module.named_parameters, module.named_buffers)
        for name, tensor in own(recurse=False, remove_duplicate=False)
    }


def copy_structure(model: nn.Module, *, share_tensors: bool) -> nn.Module:
    """Copy the modules of ``model``, without its hooks and at no cost of tensor memory.

    What ``copy.deepcopy`` does, five times as fast: of a module's twenty attributes nearly all are
    plain values or empty, and only the others are handed to it.

    Args:
        model: stays as it is.
        share_tensors: the copy uses the model's own tensors; otherwise it gets stand-ins on the
            meta device.
    """
    memo: dict[int, Any] = {}
    modules = list(model.modules())
    for module in modules:
        memo[id(module)] = module.__class__.__new__(module.__class__)
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if id(tensor) not in memo:
                memo[id(tensor)] = tensor if share_tensors else _stand_in(tensor)
    for module in modules:
        memo[id(module)].__dict__.update(
            {name: _copy(name, value, memo) for name, value in vars(module).items()}
        )
    copied: nn.Module = memo[id(model)]
    return copied


def _copy(name: str, value: Any, memo: dict[int, Any]) -> Any:
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, tuple) and all(isinstance(held, _PLAIN) for held in value):
        return value
    if isinstance(value, set) and all(isinstance(held, _PLAIN) for held in value):
        return set(value)
    if is_member_registry(name):
        return type(value)((key, memo.get(id(held))) for key, held in value.items())
    if isinstance(value, dict) and is_hook_registry(name):
        return type(value)()
    return copy.deepcopy(value, memo)


def _stand_in(tensor: Tensor) -> Tensor:
    # Not empty_like, which takes ten times as long on the meta device.
    empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(empty, requires_grad=tensor.requires_grad)
    return empty
