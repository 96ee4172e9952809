"""Merge a delta into the weights of a backbone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from headkit.adapters.backbone.classifier import backbone_parameters, name_of
from headkit.adapters.backbone.fingerprint import backbone_info
from headkit.adapters.backbone.module_copy import forget_results
from headkit.adapters.errors import BackboneMismatch
from headkit.adapters.tensor_bytes import to_safetensors

from .delta import DOWN, SCALE, UP, VALUE, Delta, changes

MERGED = "_headkit_delta"
"""Name of a model's attribute that has the delta in its weights, and the fingerprint after it."""


def merge_delta(model: nn.Module, delta: Delta, expected: str | None = None) -> None:
    """Change the weights of a backbone in place, unless they already have the changes.

    Other models that share tensors with ``model`` keep theirs.

    Args:
        model: The backbone that the delta was trained on, with any classifier or none.
        delta: The changes.
        expected: Fingerprint of the backbone with the changes, if somebody knows it.

    Raises:
        BackboneMismatch: The backbone is another one, or does not have the fingerprint ``expected``
            after the changes. The model stays as it was.
    """
    info = backbone_info(model)
    if info.fingerprint == expected:
        _remember(model, delta, expected)
        return
    if info.fingerprint != delta.base:
        raise BackboneMismatch(
            f"this head has changes to a backbone with the fingerprint {delta.base[:12]}, but "
            f"{name_of(model)} has {info.fingerprint[:12]}: load the weights that the head was "
            "trained on, without the changes of another head"
        )
    before = _replace(model, merged_parameters(model, delta))
    found = backbone_info(model).fingerprint
    if expected is not None and found != expected:
        _replace(model, before)
        raise BackboneMismatch(
            f"with the changes of this head, the backbone has the fingerprint {found[:12]}, "
            f"expected {expected[:12]}: the head was changed after it was trained"
        )
    _remember(model, delta, found)


def merged_parameters(model: nn.Module, delta: Delta) -> dict[str, Tensor]:
    """Return the parameters of ``model`` that a delta changes, after the change.

    The arithmetic is float32 with one rounding for each operation, so all machines get the same
    bits.

    Raises:
        BackboneMismatch: The backbone has no such parameter, or one of another shape.
    """
    arrays = safetensors.torch.load(to_safetensors(delta.tensors))
    own = backbone_parameters(model, all_names=True)
    merged = {}
    for name, change in changes(arrays).items():
        if name not in own:
            raise BackboneMismatch(
                f"this head changes the parameter {name}, which the backbone of {name_of(model)} "
                "does not have: install the version of timm that the head names"
            )
        merged[name] = _change(own[name].detach(), change, name)
    return merged


def delta_of(model: nn.Module) -> tuple[Delta, str] | None:
    """Return the delta in the weights of ``model`` and the fingerprint after it, or None."""
    found: tuple[Delta, str] | None = vars(model).get(MERGED)
    return found


def _remember(model: nn.Module, delta: Delta, fingerprint: str) -> None:
    vars(model)[MERGED] = (delta, fingerprint)


def _change(parameter: Tensor, change: Mapping[str, Tensor], name: str) -> Tensor:
    rows, rest = parameter.shape[:1], parameter.shape[1:]
    fits = {
        VALUE: lambda one: one.shape == parameter.shape,
        SCALE: lambda one: one.shape == rows,
        UP: lambda one: one.shape[:1] == rows,
        DOWN: lambda one: one.shape[1:] == rest,
    }
    for operation, tensor in change.items():
        if not fits[operation](tensor):
            raise BackboneMismatch(
                f"this head changes the parameter {name} by {operation} with the shape "
                f"{list(tensor.shape)}, but the backbone's {name} has {list(parameter.shape)}: "
                "install the version of timm that the head names"
            )
    given = {op: tensor.to(parameter.device, torch.float32) for op, tensor in change.items()}
    result = parameter.to(torch.float32)
    if VALUE in given:
        result = given[VALUE]
    elif SCALE in given:
        result = result * given[SCALE].view(-1, *(1 for _ in rest))
    else:
        # A matrix product adds in an order that depends on the machine.
        for up, down in zip(given[UP].unbind(1), given[DOWN], strict=True):
            result = result + up.view(-1, *(1 for _ in rest)) * down
    return result.to(parameter.dtype)


def _replace(model: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give parameters other values, wherever the model uses them; return the old ones."""
    old = {name: model.get_parameter(name) for name in values}
    new: dict[int, Any] = {
        id(parameter): nn.Parameter(values[name], parameter.requires_grad)
        for name, parameter in old.items()
    }
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if id(parameter) in new:
                setattr(module, name, new[id(parameter)])
    forget_results(model)
    return {name: parameter.detach() for name, parameter in old.items()}
