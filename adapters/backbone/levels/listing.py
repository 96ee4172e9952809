"""List the levels of a model or of an architecture."""

from __future__ import annotations

from typing import Any

from torch import nn

from headkit.adapters.backbone.level import Level
from headkit.adapters.backbone.load import check_architecture, create_model

from .find import examine_levels


def levels(model: str | nn.Module, **timm_kwargs: Any) -> tuple[Level, ...]:
    """Return the levels of a backbone: intermediate outputs that a head may read.

    The first one is ``last``, the features that enter the architecture's own classifier. The others
    are what timm's ``forward_intermediates`` returns, without the deepest one, which becomes the
    last features; if it returns more than six, they are three of them. The name of a level is the
    path of the module whose output it is.

    Args:
        model: A timm model, or the name of an architecture, whose weights are not loaded.
        **timm_kwargs: Arguments of ``timm.create_model`` for an architecture, such as ``img_size``.

    Raises:
        UnknownArchitecture: timm has no such architecture.
        ContractError: ``model`` is neither, its features are not pooled, or headkit does not know
            how it uses its classifier.
    """
    if isinstance(model, str):
        check_architecture(model)
        found = examine_levels(create_model(model, pretrained=False, device="meta", **timm_kwargs))
        if found.reason:  # perhaps timm needs values to run the model
            found = examine_levels(create_model(model, pretrained=False, **timm_kwargs))
    else:
        found = examine_levels(model)
    return (found.last, *found.levels)
