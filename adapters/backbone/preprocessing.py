"""Read timm's configuration of a model: its architecture and its eval preprocessing."""

from __future__ import annotations

from typing import Any

from torch import nn

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
