"""Add images and classes to a head whose training images are still in the cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from headkit.adapters.backbone.fingerprint import backbone_info
from headkit.adapters.data.dataset import ImageDataset, shorten_list
from headkit.adapters.errors import BackboneMismatch, DataError
from headkit.adapters.features.cache import FeatureCache
from headkit.adapters.features.extract import ExtractedFeatures
from headkit.adapters.features.predictions import Predictions, find_predictions
from headkit.adapters.heads.head import Head
from headkit.adapters.heads.tasks import get_task


@dataclass(frozen=True)
class OldImages:
    """The images that a head was trained on, as far as the cache knows them.

    Attributes:
        head: The head.
        predictions: Which images they are, with their targets.
    """

    head: Head
    predictions: Predictions

    @classmethod
    def find(cls, head: Head, cache: Any, backbone: Any, source: ImageDataset) -> OldImages:
        """Find the training images of ``head`` in a cache.

        Args:
            head: The head to extend.
            cache: Folder of the cache, see ``fit``.
            backbone: The backbone that the new head is trained on.
            source: The new images.

        Raises:
            BackboneMismatch: The head was trained on another backbone.
            DataError: The cache does not know the images, or the new data have another task.
        """
        if backbone_info(backbone).fingerprint != head.backbone.fingerprint:
            raise BackboneMismatch(
                f"the head to extend was trained on {head.architecture} with the fingerprint "
                f"{head.backbone.fingerprint[:12]}, but the backbone has "
                f"{backbone_info(backbone).fingerprint[:12]}: load the weights of that head"
            )
        if source.task != head.task:
            raise DataError(
                f"the task of {source.name} is {source.task}, but the task of the head to extend "
                f"is {head.task}"
            )
        found = None if cache is False else find_predictions(head.digest, cache)
        if found is None:
            raise DataError(
                "the cache does not know which images the head was trained on: fit all images, the "
                "old and the new ones, or pass the folder of the cache that fitted the head as "
                "cache (--cache)"
            )
        return cls(head, found)

    def label_names(self, source: ImageDataset) -> tuple[str, ...]:
        """Return the labels of the head, followed by those that only the new images have."""
        old = self.head.label_names or ()
        if not get_task(source.task).has_classes and source.label_names != old:
            raise DataError(
                f"the outputs of {source.name} are {shorten_list(source.label_names)}, but the "
                f"head to extend has {shorten_list(old)}"
            )
        return (*old, *(name for name in source.label_names if name not in old))

    def join(
        self, extracted: ExtractedFeatures, source: ImageDataset, names: Sequence[str]
    ) -> ExtractedFeatures:
        """Return the features of the old images, followed by those of the new ones.

        Args:
            extracted: Features of the new images.
            source: The new images.
            names: What ``label_names`` returned.

        Raises:
            DataError: The cache has lost features of old images, or it has them from another
                runtime.
        """
        cache, old = extracted.cache, self.predictions
        if not isinstance(cache, FeatureCache):
            raise DataError(f"{source.name} has features, but a head is extended by images")
        locations = cache.find_pixels(old.pixel_digests)
        lost = int(locations.missing.sum())
        if lost:
            raise DataError(
                f"the cache lacks the features of {lost} of the {len(locations)} images that the "
                "head was trained on, for this runtime and these levels: fit all images, the old "
                "and the new ones"
            )
        outputs = [list(names).index(name) for name in source.label_names]
        own = [*range(self.head.num_classes)]
        targets = np.concatenate(
            [
                _renumber(old.targets, own, len(names), source),
                _renumber(extracted.targets, outputs, len(names), source),
            ]
        )
        return replace(
            extracted,
            locations=type(locations)(
                np.concatenate([locations.shard, extracted.locations.shard]),
                np.concatenate([locations.row, extracted.locations.row]),
            ),
            targets=targets,
            names=[*(f"old image {number}" for number in range(len(locations))), *extracted.names],
            pixel_digests=np.concatenate([old.pixel_digests, extracted.pixel_digests]),
        )


def _renumber(
    targets: np.ndarray[Any, Any], outputs: Sequence[int], count: int, source: ImageDataset
) -> np.ndarray[Any, Any]:
    """Return targets whose output ``i`` becomes output ``outputs[i]`` of ``count``."""
    if get_task(source.task).exclusive:
        places = np.asarray(outputs, np.int64)
        return np.asarray(places[targets])
    wide = np.zeros((len(targets), count), targets.dtype)
    wide[:, list(outputs)] = targets
    return wide
