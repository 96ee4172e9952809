"""Identify a model's backbone by its tag, the source of its weights, and a hash of its tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from headkit.adapters.errors import ContractError

from .classifier import classifier_tensors, find_classifier, name_of
from .info import BackboneInfo
from .preprocessing import timm_cfg

SOURCE = "_headkit_source"
"""Name of a model's attribute that has the source of its weights."""


UNTRAINED = "_headkit_untrained"
"""Name of a model's attribute that says why its classifier is random, and which one it is."""


def mark_untrained(model: nn.Module, reason: str) -> None:
    """Remember that the classifier that ``model`` has now is random, and why."""
    setattr(model, UNTRAINED, (reason, fingerprint(classifier_tensors(model))))


def forget_untrained(model: nn.Module) -> None:
    """Undo ``mark_untrained``."""
    vars(model).pop(UNTRAINED, None)


def check_trained(model: nn.Module) -> None:
    """Raise ``ContractError`` if the classifier of ``model`` is as random as it was loaded.

    A classifier that was trained or replaced passes.
    """
    reason, random = getattr(model, UNTRAINED, ("", ""))
    if reason and fingerprint(classifier_tensors(model)) == random:
        raise ContractError(
            f"the classifier of {name_of(model)} is random: {reason}. Train it first, load the "
            "backbone without num_classes to keep the classifier of the weights, or call "
            "adapt(model, num_classes) if you want an untrained head"
        )


def backbone_info(model: nn.Module) -> BackboneInfo:
    """Return which backbone ``model`` has; its classifier makes no difference."""
    found = find_classifier(model)
    classifier = {*found.tensors, *found.unused}
    return BackboneInfo(
        tag=timm_cfg(model).get("tag") or "",
        source=getattr(model, SOURCE, "unknown"),
        parameters=sum(p.numel() for name, p in model.named_parameters() if name not in classifier),
        fingerprint=fingerprint(model.state_dict(), classifier),
    )


def fingerprint(state: Mapping[str, Tensor], classifier: Collection[str] = ()) -> str:
    """Return the SHA-256 of a backbone's tensors, 64 hexadecimal digits.

    The hash takes the tensors in ascending order of their names and leaves out those that
    ``classifier`` names. For each tensor it takes the line ``name<TAB>dtype<TAB>shape<LF>``, with
    the dtype as safetensors calls it and the shape as numbers separated by commas, and then the
    tensor's bytes in row-major order, little endian.
    """
    digest = hashlib.sha256()
    for name in sorted(set(state) - set(classifier)):
        tensor = state[name].detach().cpu().contiguous()
        shape = ",".join(map(str, tensor.shape))
        digest.update(f"{name}\t{_DTYPES[tensor.dtype]}\t{shape}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


_DTYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
}
