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

    Each tensor of the backbone comes from the weights; otherwise this is an error. The model keeps
    the classifier of the weights, see ``adapters.backbone.load``.

    Args:
        architecture: timm model name with an optional pretrained tag: ``resnet50.a1_in1k``; or the
            place of a model that timm saved: ``local-dir:FOLDER`` or ``hf-hub:USER/REPO``.
        weights: A ``.safetensors`` file; a file of ``torch.save``, which is read with
            ``weights_only=True``; or a folder with one of them. If None, timm loads its pretrained
            weights from the Hugging Face Hub or from its cache.
        delta: A head with a delta, or its file. The delta is merged into the weights, and the head
            is not attached, so you can fit other heads on the tuned backbone.
        remap: Match the tensors of ``weights`` by position instead of by name. The shapes must be
            equal in this order.
        img_size: Edge of the input images in pixels, or height and width. Default: the
            architecture's own. timm resamples position embeddings for another size.
        crop_pct: Edge of the crop divided by the edge of the resized image, see timm.
        crop_mode: ``center``, ``squash`` or ``border``, see timm.
        **timm_kwargs: Any arguments of ``timm.create_model``. ``pretrained=False`` selects random
            weights. If ``num_classes`` is not that of the weights, the classifier is new and
            random.

    Raises:
        UnknownArchitecture: timm has no such model or pretrained tag.
        WeightsError: The weights cannot be downloaded or read, or do not fit.
        ContractError: The architecture is not supported, or cannot take images of ``img_size``.
        ValueError: An argument is out of its range.
        HeadFormatError: ``delta`` is not a head file, or is a head without a delta.
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
