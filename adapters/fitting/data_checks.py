"""What can be wrong with the images once they were read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from headkit.adapters.data.dataset import ImageDataset
from headkit.adapters.errors import DataError
from headkit.adapters.features.extract import ExtractedFeatures
from headkit.adapters.heads.tasks import get_task


def check_crops(whole: ExtractedFeatures, crops: Sequence[ExtractedFeatures]) -> None:
    """Raise ``DataError`` if an image that was there for one crop was gone at the next."""
    for crop in crops:
        changed = sorted(set(whole.names) ^ set(crop.names))
        if changed:
            raise DataError(
                f"{len(changed)} images could be read for some crops and not for others, such as "
                f"{changed[0]}: the data changed meanwhile; fit again"
            )


def check_classes(source: ImageDataset, targets: np.ndarray[Any, Any]) -> None:
    """Raise ``DataError`` if no image of a class could be read.

    Args:
        source: names the classes.
        targets: ``[N]`` or ``[N, num_outputs]``, of the images to train on.
    """
    images = get_task(source.task).images_per_class(targets, len(source.label_names))
    if images is None:
        return
    missing = [name for name, count in zip(source.label_names, images, strict=False) if not count]
    if missing:
        raise DataError(f"no image of class {', '.join(missing[:5])} could be read")
