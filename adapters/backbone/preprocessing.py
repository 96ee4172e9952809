"""Read timm's configuration of a model, and preprocess pixels as it says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from headkit.adapters.compat import resolve_preprocessing
from headkit.adapters.errors import ContractError

_PREPROCESSING = ("input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std")


def timm_cfg(model: nn.Module) -> dict[str, Any]:
    """Return timm's ``pretrained_cfg`` of a model.

    Raises:
        ContractError: The model is not from timm.
    """
    cfg = getattr(model, "pretrained_cfg", None)
    if not isinstance(cfg, dict) or "architecture" not in cfg:
        raise ContractError(
            f"{type(model).__name__} has no pretrained_cfg: create the model with timm.create_model"
        )
    return cfg


def preprocessing(model: nn.Module) -> dict[str, Any]:
    """Return the eval preprocessing of a model under timm's names, as JSON values."""
    cfg = resolve_preprocessing(model)
    values = {key: cfg[key] for key in _PREPROCESSING}
    return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}


class Normalize:
    """Turn uint8 pixels into what a model expects, on its device."""

    def __init__(self, cfg: Mapping[str, Any], device: torch.device) -> None:
        self.device = device
        self._mean, self._std = (
            torch.tensor(cfg[key], device=device).view(-1, 1, 1) for key in ("mean", "std")
        )

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return float32 images of the shape of ``pixels``, with the arithmetic of torchvision."""
        images = pixels.to(self.device, memory_format=torch.channels_last)
        return images.float().div(255).sub(self._mean).div(self._std)
