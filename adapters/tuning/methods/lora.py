"""``lora``: a product of low rank for each layer (Hu et al., 2021, arXiv:2106.09685).

It covers linear layers and convolutions without groups, as PEFT does.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from headkit.adapters.backbone.delta.delta import UP
from headkit.adapters.tuning.change import Change
from headkit.adapters.tuning.layers import Layer


def place(model: nn.Module, layers: Sequence[Layer], rank: int) -> list[Change]:
    """Return the changes to train, of at most ``rank``."""
    changes = []
    for one in layers:
        weight = model.get_submodule(one.path).weight
        assert isinstance(weight, nn.Parameter)  # noqa: S101 - for the type checker
        smallest = min(len(weight), weight[0].numel())
        if one.groups == 1:
            changes.append(Change(f"{one.path}.weight", UP, min(rank, smallest)))
    return changes
