"""Write arrays as safetensors, whatever their layout in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy


def to_safetensors(
    tensors: Mapping[str, np.ndarray[Any, Any]], metadata: Mapping[str, str] | None = None
) -> bytes:
    """Return arrays as the content of a safetensors file.

    ``safetensors.numpy.save`` writes the memory of an array as it lies. A transposed array, or one
    whose bytes are in the other order, would be read as other numbers.

    Args:
        tensors: Arrays by name.
        metadata: Text by name, see safetensors.
    """
    plain = {name: _lay_out(np.asarray(array)) for name, array in tensors.items()}
    content: bytes = safetensors.numpy.save(plain, None if metadata is None else dict(metadata))
    return content


def _lay_out(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the numbers of an array in C order and in the machine's order of bytes."""
    native = array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
    return np.ascontiguousarray(native).reshape(array.shape)  # a scalar would get an axis
