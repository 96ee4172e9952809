"""Features that the user has already computed, in the form that extraction returns."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from headkit.adapters.backbone.classifier import name_of
from headkit.adapters.backbone.forward import features
from headkit.adapters.backbone.level import Level
from headkit.adapters.backbone.level_head import without_level_head
from headkit.adapters.backbone.levels import find_levels
from headkit.adapters.backbone.preprocessing import preprocessing
from headkit.adapters.data.dataset import ImageDataset
from headkit.adapters.errors import DataError

from .cache import PIXEL_DIGEST, Locations
from .extract import ExtractedFeatures

BLOCK = 8192
"""Number of rows that are read at once from features that are too large for the memory."""


class GivenRows:
    """Rows of arrays of features; a ``FeatureRows``.

    Args:
        x: Features of all branches side by side, ``[N, num_features]``.
        shapes: Shape of one image's features in each branch.
        vectors: Vectors of levels, ``[N, width]`` each, which follow the branches.
    """

    def __init__(
        self,
        x: NDArray[np.float32],
        shapes: Sequence[tuple[int, ...]],
        vectors: Sequence[NDArray[np.float32]] = (),
    ) -> None:
        self.parts = (x, *vectors)
        self._branches = list(shapes)

    def locations(self) -> Locations:
        """Return the location of each row, ``[N]``."""
        row = np.arange(len(self.parts[0]))
        return Locations(row // BLOCK, row)

    def shapes(self, _locations: Locations) -> list[tuple[int, ...]]:
        """Return the shape of one image's features in each branch, and of each level's vector."""
        return [*self._branches, *(vectors.shape[1:] for vectors in self.parts[1:])]

    def load(self, locations: Locations) -> tuple[Tensor, ...]:
        """Copy features: float32 ``[n, …]`` per branch and level."""
        x, *vectors = (
            torch.from_numpy(np.asarray(part[locations.row], np.float32)) for part in self.parts
        )
        branches = torch.split(x, [prod(shape) for shape in self._branches], 1)
        shaped = zip(branches, self._branches, strict=True)
        return (*(branch.reshape(len(x), *shape) for branch, shape in shaped), *vectors)


def given_levels(datasets: Iterable[ImageDataset]) -> tuple[str, ...] | None:
    """Return the names of all levels that come with features of the user's own.

    Without such features, return None: a backbone computes any of its levels of images.
    """
    given = [dataset.levels for dataset in datasets if dataset.features is not None]
    return tuple(dict.fromkeys(name for levels in given for name in levels)) if given else None


def take_features(
    model: nn.Module, dataset: ImageDataset, levels: Sequence[Level] = ()
) -> ExtractedFeatures:
    """Return features of the user's own as if they had been extracted from images.

    Args:
        model: The backbone that the features are of.
        dataset: A data set that has features. Images whose features, with the vectors of
            ``levels``, are equal count as copies of one image.
        levels: Levels whose vectors are needed, without ``last``.

    Raises:
        DataError: The data set has images, the backbone has another number of features or no such
            levels, or the vectors of a level are missing.
    """
    x, targets = dataset.features, dataset.targets
    if x is None or targets is None:
        raise DataError(f"{dataset.name} has images, expected features")
    shapes = feature_shapes(without_level_head(model))
    width = sum(prod(shape) for shape in shapes)
    if x.shape[1] != width:
        raise DataError(
            f"{dataset.name} has {x.shape[1]} features per image, but {name_of(model)} has "
            f"{width}: pass features that this backbone computes (headkit.extract), or images as "
            "uint8 [N, height, width, 3]"
        )
    _check_levels(model, dataset, levels)
    rows = GivenRows(x, shapes, [dataset.levels[level.name] for level in levels])
    return ExtractedFeatures(
        cache=rows,
        locations=rows.locations(),
        targets=targets,
        numbers=np.arange(len(x)),
        names=[f"image {number}" for number in range(len(x))],
        pixel_digests=digest_rows(rows.parts),
        unreadable=(),
        levels=tuple(levels),
    )


def digest_rows(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Return a digest of each row ``[N]``; rows that are equal in all parts have equal digests."""
    digests = [
        hashlib.blake2b(b"".join(part.tobytes() for part in row), digest_size=16).digest()
        for row in zip(*parts, strict=True)
    ]
    return np.array(digests, PIXEL_DIGEST)


def _check_levels(model: nn.Module, dataset: ImageDataset, needed: Sequence[Level]) -> None:
    """Raise ``DataError`` unless the levels are those of the backbone, with all that are needed."""
    widths = {level.name: level.width for level in find_levels(model)} if dataset.levels else {}
    for name, vectors in dataset.levels.items():
        found, width = f"{dataset.name} has vectors of the level {name}", widths.get(name)
        if width != vectors.shape[1]:
            raise DataError(
                f"{found} with {vectors.shape[1]} numbers, but {name_of(model)} has "
                + (f"the levels {', '.join(widths) or 'none'}" if width is None else f"{width}")
                + ": pass features that this backbone computes (headkit.extract)"
            )
    missing = [level.name for level in needed if level.name not in dataset.levels]
    if missing:
        found = f"the levels {', '.join(dataset.levels)} alone" if dataset.levels else "no levels"
        raise DataError(
            f"{dataset.name} has features with {found}, but {', '.join(missing)} must be read, "
            "too: pass images; or, to fit or evaluate, the result of headkit.extract(…, "
            "levels='all'); or levels='last'"
        )


@torch.no_grad()
def feature_shapes(model: nn.Module) -> list[tuple[int, ...]]:
    """Return the shape of one image's features in each branch of a backbone."""
    size: Any = preprocessing(model)["input_size"]
    parameter = next(model.parameters())
    device, dtype = parameter.device, parameter.dtype
    found = features(model, torch.zeros(1, *size, device=device, dtype=dtype))
    return [tuple(branch.shape[1:]) for branch in ((found,) if torch.is_tensor(found) else found)]
