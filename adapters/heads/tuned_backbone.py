"""Load a backbone, and merge the delta of a head into its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from headkit.adapters.backbone import load
from headkit.adapters.backbone.config.input_size import ImageSize
from headkit.adapters.backbone.delta.merge import merge_delta
from headkit.adapters.errors import HeadFormatError

from .head import Head


def load_backbone(
    architecture: str,
    weights: str | Path | None = None,
    *,
    delta: Head | str | Path | None = None,
    remap: bool = False,
    img_size: ImageSize | None = None,
    crop_pct: float | None = None,
    crop_mode: str | None = None,
    **timm_kwargs: Any,
) -> nn.Module:
    """Load a frozen backbone: a timm model in eval mode whose parameters do not train.

    Args:
        architecture: timm model name, see ``adapters.backbone.load.load_backbone``, as are all
            other arguments but ``delta``.
        weights: See there.
        delta: A head with a delta, or its file. The delta is merged into the weights, so that other
            heads can be fitted on the tuned backbone; the head itself is not attached.
        remap: See there.
        img_size: See there.
        crop_pct: See there.
        crop_mode: See there.
        **timm_kwargs: See there.

    Raises:
        UnknownArchitecture, WeightsError, ContractError, ValueError: See there.
        HeadFormatError: ``delta`` is not a head file, or a head without a delta.
        BackboneMismatch: The weights are not those that the delta changes.
    """
    head = delta if delta is None or isinstance(delta, Head) else Head.load(delta)
    if head is not None and head.delta is None:
        raise HeadFormatError(
            "this head has no delta: load the backbone without delta, and attach the head"
        )
    inputs: dict[str, Any] = {"img_size": img_size, "crop_pct": crop_pct, "crop_mode": crop_mode}
    model = load.load_backbone(architecture, weights, remap=remap, **inputs, **timm_kwargs)
    if head is not None and head.delta is not None:
        merge_delta(model, head.delta, head.backbone.fingerprint)
    return model
