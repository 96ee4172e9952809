"""Keep the backbones that were converted last: the next head on one of them exports in a second."""

from __future__ import annotations

import hashlib
import pickle
from collections import OrderedDict
from collections.abc import Callable

import onnx
import torch
from torch import nn

from headkit.adapters.backbone.classifier import find_classifier, replace_classifier
from headkit.adapters.backbone.module_copy import all_tensors, copy_structure

MAX_BYTES = 256 * 1024**2
"""Largest number of bytes of all graphs that are kept."""
_kept: OrderedDict[str, bytes] = OrderedDict()


def convert_once(key: str | None, convert: Callable[[], onnx.ModelProto]) -> onnx.ModelProto:
    """Return the graph that was kept under ``key``, or convert and keep it.

    Each call returns its own copy.

    Args:
        key: See ``conversion_key``. If None, nothing is kept.
        convert: The function that converts the backbone.
    """
    if key is not None and key in _kept:
        _kept.move_to_end(key)
        kept = onnx.ModelProto()
        kept.ParseFromString(_kept[key])
        return kept
    graph = convert()
    if key is not None and graph.ByteSize() <= MAX_BYTES:
        _kept[key] = graph.SerializeToString()
        while sum(map(len, _kept.values())) > MAX_BYTES:
            _kept.popitem(last=False)
    return graph


def conversion_key(model: nn.Module, *options: object) -> str | None:
    """Return the SHA-256 of everything in a model that the graph of its backbone can depend on.

    These are all tensors but those of the classifier, and the type and all attributes of all
    modules. If they cannot be hashed, return None.

    Args:
        model: The model. It is not changed.
        options: Options of the conversion, whose ``repr`` says all about them.
    """
    structure = copy_structure(model, share_tensors=False).eval().requires_grad_(False)
    replace_classifier(structure, 1)
    for name in [name for name in vars(structure) if name.startswith("_headkit")]:
        delattr(structure, name)  # what headkit knows about the weights and the classifier
    try:
        digest = hashlib.sha256(pickle.dumps(structure))
    except (pickle.PicklingError, AttributeError, TypeError, RuntimeError):
        return None  # such as an attribute that is a local function
    digest.update(repr(options).encode())
    found = find_classifier(model)
    classifier = {*found.tensors, *found.unused}
    for name, tensor in sorted(all_tensors(model).items()):
        if name not in classifier:
            digest.update(f"{name}\t{tensor.dtype}\t{tuple(tensor.shape)}\n".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
