"""Features that the user has already computed, in the form that extraction returns."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from headkit.adapters.backbone.classifier import name_of
from headkit.adapters.backbone.forward import features
from headkit.adapters.backbone.preprocessing import preprocessing
from headkit.adapters.data.dataset import ImageDataset
from headkit.adapters.errors import DataError

from .cache import PIXEL_DIGEST, Locations
from .extract import ExtractedFeatures

BLOCK = 8192
"""Number of rows that are read at once from features that are too large for the memory."""


class GivenRows:
    """Rows of an array of features; a ``FeatureRows``.

    Args:
        x: Features of all branches side by side, ``[N, num_features]``.
        shapes: Shape of one image's features in each branch.
    """

    def __init__(self, x: NDArray[np.float32], shapes: Sequence[tuple[int, ...]]) -> None:
        self.x, self._shapes = x, list(shapes)

    def locations(self) -> Locations:
        """Return the location of each row, ``[N]``."""
        row = np.arange(len(self.x))
        return Locations(row // BLOCK, row)

    def shapes(self, _locations: Locations) -> list[tuple[int, ...]]:
        """Return the shape of one image's features in each branch."""
        return self._shapes

    def load(self, locations: Locations) -> tuple[Tensor, ...]:
        """Copy features: float32 ``[n, …]`` per branch."""
        rows = torch.from_numpy(np.asarray(self.x[locations.row], np.float32))
        parts = torch.split(rows, [prod(shape) for shape in self._shapes], 1)
        return tuple(
            part.reshape(len(rows), *shape) for part, shape in zip(parts, self._shapes, strict=True)
        )


def take_features(model: nn.Module, dataset: ImageDataset) -> ExtractedFeatures:
    """Return features of the user's own as if they had been extracted from images.

    Args:
        model: The backbone that the features are of.
        dataset: A data set that has features. Equal rows count as copies of one image.

    Raises:
        DataError: The data set has images, or the backbone has another number of features.
    """
    x, targets = dataset.features, dataset.targets
    if x is None or targets is None:
        raise DataError(f"{dataset.name} has images, expected features")
    shapes = feature_shapes(model)
    width = sum(prod(shape) for shape in shapes)
    if x.shape[1] != width:
        raise DataError(
            f"{dataset.name} has {x.shape[1]} features per image, but {name_of(model)} has "
            f"{width}: pass features that this backbone computes (headkit.extract), or images as "
            "uint8 [N, height, width, 3]"
        )
    rows = GivenRows(x, shapes)
    digests = [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in x]
    return ExtractedFeatures(
        cache=rows,
        locations=rows.locations(),
        targets=targets,
        names=[f"image {number}" for number in range(len(x))],
        pixel_digests=np.array(digests, PIXEL_DIGEST),
        unreadable=(),
    )


@torch.no_grad()
def feature_shapes(model: nn.Module) -> list[tuple[int, ...]]:
    """Return the shape of one image's features in each branch of a backbone."""
    size: Any = preprocessing(model)["input_size"]
    parameter = next(model.parameters())
    device, dtype = parameter.device, parameter.dtype
    found = features(model, torch.zeros(1, *size, device=device, dtype=dtype))
    return [tuple(branch.shape[1:]) for branch in ((found,) if torch.is_tensor(found) else found)]
