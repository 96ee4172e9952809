"""Products of feature rows and weights, in the order that is fastest on the device."""

from __future__ import annotations

import torch
from torch import Tensor

CACHED_ROWS = 256
"""Rows of a product with few columns whose features stay in the cache."""


def multiply(z: Tensor, weight: Tensor) -> Tensor:
    """Return ``z @ weight.T``, ``[n, num_outputs]``.

    On CPUs, this computes the transposed product for a few rows at a time. With few outputs it
    takes half to two thirds of the time of one product (MKL, measured on an AMD EPYC).
    """
    if z.device.type != "cpu" or len(z) <= CACHED_ROWS:
        return z @ weight.T
    product = z.new_empty(len(z), len(weight))
    for part, out in zip(
        torch.split(z, CACHED_ROWS), torch.split(product, CACHED_ROWS), strict=True
    ):
        out.copy_((weight @ part.T).T)
    return product
