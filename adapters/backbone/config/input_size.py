"""Choose the size of a backbone's input images, and how they are cropped."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import timm
import torch
from torch import nn

from headkit.adapters.backbone.preprocessing import preprocessing, timm_cfg
from headkit.adapters.errors import ContractError, first_line

logger = logging.getLogger("headkit")

ImageSize = int | Sequence[int]
"""Edge of square images in pixels, or height and width."""
CropMode = Literal["center", "squash", "border"]
MAX_EDGE = 4096
"""Largest edge of an input image, in pixels."""
_OVERLAY = "pretrained_cfg_overlay"
_RECORDED = ("input_size", "crop_pct", "crop_mode")


def check_input_options(
    img_size: ImageSize | None, crop_pct: float | None, crop_mode: str | None
) -> tuple[int, int] | None:
    """Return height and width; None if there is no size.

    Raises:
        ValueError: A value is out of its range.
    """
    if crop_pct is not None and not 0 < crop_pct <= 1:
        raise ValueError(f"crop_pct is {crop_pct}, expected a fraction above 0 and at most 1")
    if crop_mode is not None and crop_mode not in get_args(CropMode):
        raise ValueError(
            f"crop_mode is {crop_mode!r}, expected one of {', '.join(get_args(CropMode))}"
        )
    if img_size is None:
        return None
    edges = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
    if len(edges) != 2 or not all(isinstance(n, int) and 1 <= n <= MAX_EDGE for n in edges):
        raise ValueError(
            f"img_size is {img_size!r}, expected an edge, or height and width, of 1 to {MAX_EDGE} "
            "pixels"
        )
    height, width = edges
    return height, width


def input_arguments(
    architecture: str,
    arguments: Mapping[str, Any],
    img_size: ImageSize | None,
    crop_pct: float | None,
    crop_mode: str | None,
) -> dict[str, Any]:
    """Return the arguments of ``timm.create_model`` for images of another size or crop.

    An architecture that is built for a size, such as a ViT, gets ``img_size``. All of them get the
    values in their ``pretrained_cfg``, from which timm takes the preprocessing.

    Args:
        architecture: timm model name.
        arguments: The other arguments of ``timm.create_model``.
        img_size: Edge of the images, or height and width.
        crop_pct: Edge of the crop divided by the edge of the resized image.
        crop_mode: ``center``, ``squash`` or ``border``, as timm names them.

    Raises:
        ContractError: The architecture cannot be built for this size.
        ValueError: A value is out of its range.
    """
    size = check_input_options(img_size, crop_pct, crop_mode)
    chosen: dict[str, Any] = {"crop_pct": crop_pct, "crop_mode": crop_mode}
    changed = dict(arguments)
    if size is not None:
        chosen["input_size"] = (int(arguments.get("in_chans") or 3), *size)
        if _is_built_for_a_size(architecture, arguments, size):
            changed["img_size"] = size
    overlay = {name: value for name, value in chosen.items() if value is not None}
    if overlay:
        changed[_OVERLAY] = {**(arguments.get(_OVERLAY) or {}), **overlay}
    return changed


def recorded_arguments(arguments: Mapping[str, Any], cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of ``timm.create_model`` with the size and the crop that a head records.

    Args:
        arguments: The other arguments.
        cfg: The ``pretrained_cfg`` of a head, which has checked it.
    """
    overlay = {name: cfg[name] for name in _RECORDED}
    overlay["input_size"] = tuple(overlay["input_size"])
    return {**arguments, _OVERLAY: {**(arguments.get(_OVERLAY) or {}), **overlay}}


def check_input_size(model: nn.Module, size: tuple[int, int]) -> None:
    """Run a model on one black image, which shows whether it can take this size.

    Raises:
        ContractError: It cannot; the message has the reason.
    """
    architecture = timm_cfg(model)["architecture"]
    channels, *found = preprocessing(model)["input_size"]
    if tuple(found) != size:
        raise _refusal(architecture, size, f"it takes {found[0]} x {found[1]} images")
    parameter = next(model.parameters())
    image = torch.zeros(1, channels, *size, device=parameter.device, dtype=parameter.dtype)
    try:
        with torch.no_grad():
            model.eval()(image)
    except Exception as error:  # timm's and torch's checks raise errors of many types
        raise _refusal(architecture, size, first_line(error)) from error
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    if isinstance(patch, tuple) and any(n % edge for n, edge in zip(size, patch, strict=False)):
        logger.warning(
            "%s divides images into patches of %s pixels, so it ignores the last rows or columns "
            "of %d x %d images: choose multiples of the patch size",
            architecture,
            " x ".join(map(str, patch)),
            *size,
        )


def _is_built_for_a_size(
    architecture: str, arguments: Mapping[str, Any], size: tuple[int, int]
) -> bool:
    """Try on a structure without memory whether the architecture takes ``img_size``."""
    kept = {k: v for k, v in arguments.items() if k not in ("pretrained", _OVERLAY)}
    try:
        with torch.device("meta"):
            model = timm.create_model(architecture, pretrained=False, img_size=size, **kept)
    except TypeError as error:
        if "img_size" in str(error):
            return False
        raise _refusal(architecture, size, first_line(error)) from error
    except Exception as error:
        raise _refusal(architecture, size, first_line(error)) from error
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    if isinstance(grid, tuple) and not all(grid):
        raise _refusal(architecture, size, "they are smaller than a patch")
    return True


def _refusal(architecture: str, size: tuple[int, int], reason: str) -> ContractError:
    height, width = size
    return ContractError(
        f"{architecture} cannot take {height} x {width} images: {reason.rstrip('.')}; choose "
        "another img_size (--img-size), such as a multiple of 32, or omit it for the "
        "architecture's own"
    )
