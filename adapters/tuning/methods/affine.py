"""``affine``: all vectors of a backbone, and a scale for each output of its layers.

The method is that of SSF (Lian et al., 2022, arXiv:2210.08823), with the shifts that the backbone
has: biases, and the shifts of norms. A layer in front of a BatchNorm needs no scale of its own,
because the norm has one.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from headkit.adapters.backbone.delta.delta import SCALE, VALUE
from headkit.adapters.tuning.change import Change, vectors
from headkit.adapters.tuning.layers import Layer


def place(model: nn.Module, layers: Sequence[Layer], rank: int) -> list[Change]:
    """Return the changes to train. ``rank`` has no effect."""
    del rank
    whole = list(vectors(model))
    rows = [f"{one.path}.weight" for one in layers if not one.before_norm]
    scaled = [Change(name, SCALE) for name in rows if name not in whole]  # a layer of one input
    return [*(Change(name, VALUE) for name in whole), *scaled]
