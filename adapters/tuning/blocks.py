"""Order the parameters of a backbone by depth."""

from __future__ import annotations

from typing import Any, cast

from timm.models import group_parameters
from torch import nn

from headkit.adapters.backbone.classifier import backbone_parameters, name_of
from headkit.adapters.errors import ContractError


def blocks(model: nn.Module) -> list[list[str]]:
    """Return the names of the parameters of each block of a backbone, in the order of depth.

    The blocks are those of timm's ``group_matcher``, which layer-wise learning rates use as well.
    What follows the last block with a matrix, such as a final norm, belongs to that block.

    Raises:
        ContractError: The architecture has no ``group_matcher``.
    """
    if not hasattr(model, "group_matcher"):
        raise ContractError(
            f"{name_of(model)} has no group_matcher, so its last block is unknown: use another "
            "method"
        )
    own = backbone_parameters(model)
    matcher = cast(Any, model).group_matcher(coarse=False)
    groups = [
        [name for name in names if name in own]
        for _, names in sorted(group_parameters(model, matcher).items())
    ]
    ordered: list[list[str]] = []
    for names in filter(None, groups):
        has_matrix = any(own[name].ndim > 1 for name in names)
        if has_matrix or not ordered:
            ordered.append(names)
        else:
            ordered[-1] += names
    return ordered
