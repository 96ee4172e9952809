"""The types of a head's tensors, under the names that safetensors has for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes  # noqa: F401 - NumPy and safetensors then know bfloat16
import numpy as np

from headkit.adapters.bounds import describe
from headkit.adapters.errors import HeadFormatError

_NAMES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
}
FLOATS = ("F64", "F32", "F16", "BF16")
INTEGERS = ("I64", "I32")


def check_dtype(name: str, dtype: str, shape: Sequence[int]) -> None:
    """Raise ``HeadFormatError`` if a head cannot have a tensor of this type.

    Args:
        name: Name of the tensor.
        dtype: Type as safetensors writes it: ``F32``, ``I64``, ….
        shape: Its shape; only scalars, such as the counters of BatchNorm, may be integers.
    """
    if dtype not in FLOATS and not (dtype in INTEGERS and not shape):
        raise HeadFormatError(
            f"tensor {describe(name)} has the type {dtype} and the shape {list(shape)[:8]}, "
            f"expected one of {', '.join(FLOATS)}: convert the head to F32"
        )


def dtype_name(tensor: np.ndarray[Any, Any]) -> str:
    """Return safetensors' name of an array's type; NumPy's for one that a head cannot have."""
    dtype = np.asarray(tensor).dtype
    return _NAMES.get(dtype.name, dtype.name)
