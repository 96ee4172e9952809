"""Heads whose logits are one matrix product. Neither torch nor the package ``onnx`` is needed."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # running a model needs no safetensors
    from headkit.adapters.heads.head import Head


def is_linear(head: Head, features: Collection[str]) -> bool:
    """Return True if logits are ``features @ weight.T + bias``, whatever the head's kind.

    This holds for ``linear`` heads and for architectures whose own classifier is an ``nn.Linear``
    or a 1 x 1 convolution. A head of kind ``own`` that does more has more tensors.
    """
    ranks = [np.ndim(tensor) for name, tensor in head.tensors.items() if name.endswith("weight")]
    names = {name.rpartition(".")[2] for name in head.tensors}
    plain = ranks in ([2], [4]) and len(names) == len(head.tensors) and names <= {"weight", "bias"}
    reads_features = len(features) == 1 and not head.levels
    return head.kind in ("own", "linear") and reads_features and plain


def weight_and_bias(head: Head) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return weight ``[num_classes, num_features]`` and bias ``[num_classes]`` of a linear head."""
    tensors = {name.rpartition(".")[2]: np.asarray(t) for name, t in head.tensors.items()}
    weight = tensors["weight"].reshape(head.num_classes, -1).astype(np.float32)
    bias = tensors.get("bias", np.zeros(head.num_classes)).astype(np.float32)
    return weight, bias
