"""Check the images after they have been read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from headkit.adapters.data.dataset import ImageDataset, shorten_list
from headkit.adapters.errors import DataError
from headkit.adapters.features.extract import ExtractedFeatures
from headkit.adapters.heads.tasks import get_task


def check_crops(whole: ExtractedFeatures, crops: Sequence[ExtractedFeatures]) -> None:
    """Raise ``DataError`` if an image could be read for one crop and not for another."""
    for crop in crops:
        changed = sorted(set(whole.names) ^ set(crop.names))
        if changed:
            raise DataError(
                f"{len(changed)} images could be read for some crops and not for others, such as "
                f"{changed[0]}: the files changed while they were read; run fit again"
            )


def check_classes(dataset: ImageDataset, targets: np.ndarray[Any, Any]) -> None:
    """Raise ``DataError`` if no image of a class could be read.

    Args:
        dataset: The data set, which names the classes.
        targets: Targets of the training images, ``[N]`` or ``[N, num_outputs]``.
    """
    images = get_task(dataset.task).images_per_class(targets, len(dataset.label_names))
    if images is None:
        return
    missing = [name for name, count in zip(dataset.label_names, images, strict=False) if not count]
    if missing:
        raise DataError(f"no image of class {shorten_list(missing)} could be read")
