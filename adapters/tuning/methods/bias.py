"""``bias``: all vectors of a backbone, such as biases and the parameters of norms.

The method is BitFit (Zaken et al., 2022, arXiv:2106.10199) with norms.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from headkit.adapters.backbone.delta.delta import VALUE
from headkit.adapters.tuning.change import Change, vectors
from headkit.adapters.tuning.layers import Layer


def place(model: nn.Module, layers: Sequence[Layer], rank: int) -> list[Change]:
    """Return the changes to train. ``layers`` and ``rank`` have no effect."""
    del layers, rank
    return [Change(name, VALUE) for name in vectors(model)]
