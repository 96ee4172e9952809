"""``last``: all parameters of the last block of a backbone."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from headkit.adapters.backbone.delta.delta import VALUE
from headkit.adapters.tuning.blocks import blocks
from headkit.adapters.tuning.change import Change
from headkit.adapters.tuning.layers import Layer


def place(model: nn.Module, layers: Sequence[Layer], rank: int) -> list[Change]:
    """Return the changes to train. ``layers`` and ``rank`` have no effect."""
    del layers, rank
    return [Change(name, VALUE) for name in blocks(model)[-1]]
