"""Tell which backbone a model has: its tag, where its weights came from, a hash of its tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from .classifier import classifier_tensors
from .info import BackboneInfo
from .preprocessing import timm_cfg

SOURCE = "_headkit_source"
"""Attribute of a model that says where its weights came from."""


def backbone_info(model: nn.Module) -> BackboneInfo:
    """Tell which backbone ``model`` is, whatever classifier it carries."""
    trained = set(classifier_tensors(model))
    return BackboneInfo(
        tag=timm_cfg(model).get("tag") or "",
        source=getattr(model, SOURCE, "unknown"),
        parameters=sum(p.numel() for name, p in model.named_parameters() if name not in trained),
        fingerprint=fingerprint(model.state_dict(), trained),
    )


def fingerprint(state: Mapping[str, Tensor], classifier: Collection[str] = ()) -> str:
    """Return the SHA-256 of a backbone's tensors, 64 hexadecimal digits.

    Over the tensors in ascending order of their names, those named in ``classifier`` left out:
    the line ``name<TAB>dtype<TAB>shape<LF>``, with the dtype as safetensors calls it and the shape
    as numbers joined by commas, then the tensor's bytes in row-major order, little endian.
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
