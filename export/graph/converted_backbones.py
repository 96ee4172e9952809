"""Keep the ONNX graphs of the latest backbones: the next head on one of them exports in seconds."""

from __future__ import annotations

import functools
import hashlib
import pickle
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from types import FunctionType, MethodType
from typing import Any

import onnx
from torch import nn

from headkit.adapters.backbone.classifier import find_classifier, replace_classifier
from headkit.adapters.backbone.fingerprint import fingerprint
from headkit.adapters.backbone.module_copy import all_tensors, copy_structure

MAX_BYTES = 512 * 1024**2
"""Largest number of bytes of all graphs that are kept."""
_kept: OrderedDict[str, bytes] = OrderedDict()
_lock = threading.Lock()
_functions: dict[int, Any] = {}
"""Functions by the number that stands for them in a key: while they live, no other one has it."""


def convert_once(key: str | None, convert: Callable[[], onnx.ModelProto]) -> onnx.ModelProto:
    """Return the graph that was kept under ``key``, or convert and keep it.

    Each call returns its own copy.

    Args:
        key: See ``conversion_key``. If None, nothing is kept.
        convert: The function that converts the backbone.
    """
    with _lock:
        found = None if key is None else _kept.get(key)
        if key is not None and found is not None:
            _kept.move_to_end(key)
    if found is not None:
        graph = onnx.ModelProto()
        graph.ParseFromString(found)
        return graph
    graph = convert()
    # onnx cannot tell the size of a graph above 2 GiB.
    weights = sum(len(tensor.raw_data) for tensor in graph.graph.initializer)
    if key is not None and weights <= MAX_BYTES:
        content = graph.SerializeToString()
        with _lock:
            _kept[key] = content
            while sum(map(len, _kept.values())) > MAX_BYTES:
                _kept.popitem(last=False)
    return graph


def conversion_key(model: nn.Module, *options: object) -> str | None:
    """Return the SHA-256 of what the graph of a model's backbone depends on.

    These are all tensors but those of the classifier, the attributes of all modules, and the code
    of their classes in this process. Return None if something cannot be hashed, and if the model
    has hooks.

    Args:
        model: The model. It is not changed.
        options: Options of the conversion, whose ``repr`` identifies them.
    """
    structure = copy_structure(model, share_tensors=False).eval().requires_grad_(False)
    if _count_hooks(model) != _count_hooks(structure):
        return None
    replace_classifier(structure, 1)
    # What headkit knows about the weights and the classifier, and its method ``train``.
    for name in [name for name in vars(structure) if name.startswith("_headkit")]:
        delattr(structure, name)
    vars(structure).pop("train", None)
    found = find_classifier(model)
    try:
        digest = hashlib.sha256(pickle.dumps(structure))
        tensors = fingerprint(all_tensors(model), {*found.tensors, *found.unused})
    except (pickle.PicklingError, AttributeError, KeyError, TypeError, RuntimeError):
        return None  # such as an attribute that is a local function, or a tensor of complex numbers
    # pickle knows classes and functions by their names alone.
    for name, function in _functions_of(structure):
        _functions[id(function)] = function
        digest.update(f"{name}\t{id(function)}\n".encode())
    digest.update(f"{tensors}\n{options!r}".encode())
    return digest.hexdigest()


def _functions_of(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield all functions that the modules and their classes have, with their names."""
    classes = dict.fromkeys(one for module in model.modules() for one in type(module).__mro__)
    for cls in classes:
        for name, value in vars(cls).items():
            yield from _function_in(name, value)
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            yield from _function_in(f"{path}.{name}", value)


def _function_in(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    while isinstance(value, functools.partial):
        value = value.func
    if isinstance(value, staticmethod | classmethod | MethodType):
        value = value.__func__
    elif isinstance(value, property):
        value = value.fget
    if isinstance(value, FunctionType):
        yield name, value


def _count_hooks(model: nn.Module) -> int:
    return sum(
        len(registry)
        for module in model.modules()
        for name, registry in vars(module).items()
        if name.endswith("_hooks") and isinstance(registry, dict)
    )
