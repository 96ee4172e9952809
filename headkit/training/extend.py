"""Add images and classes to a head whose training images are still in the cache."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from headkit.adapters.backbone.fingerprint import backbone_info
from headkit.adapters.backbone.preprocessing import preprocessing
from headkit.adapters.data.dataset import ImageDataset, shorten_list
from headkit.adapters.errors import BackboneMismatch, DataError
from headkit.adapters.features.cache import FeatureCache
from headkit.adapters.features.extract import ExtractedFeatures
from headkit.adapters.features.predictions import Predictions, find_predictions, read_key
from headkit.adapters.heads.head import Head
from headkit.adapters.heads.tasks import get_task

logger = logging.getLogger("headkit")

CAUSES = {
    "preprocessing": "another image size or crop (--img-size, --crop-pct, --crop-mode)",
    "model_args": "other arguments of the backbone (--img-size)",
    "engine": "another runtime, precision or version of the runtime (--runtime, --precision)",
    "levels": "other levels (--levels, --l2, --kind)",
    "decoding": "other versions of Pillow, timm or torchvision",
    "pixels": "another rule for reading images",
}
"""What an entry of a cache's key stands for, see ``FeatureCache``."""
_REST = "fit all images, the old and the new ones"


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
            DataError: The cache does not know all images, the new data have another task, or their
                images are resized or cropped in another way.
        """
        _check_preprocessing(head, backbone)
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
                "the cache does not know which images the head was trained on. The head may have "
                "been edited since (headkit heads), fitted with another cache, without one or from "
                "features, or the cache was cleared: pass the head file that fit wrote, and the "
                f"folder of its cache as cache (--cache); or {_REST}"
            )
        number, known = head.metrics.get("num_train"), len(found.targets)
        if not found.complete and known != number:
            raise DataError(
                f"the cache knows {known} of the {number} images that the "
                "head was trained on, because an earlier version of headkit kept only the images "
                f"that were held out: {_REST}"
            )
        if found.views > 1:
            logger.warning(
                "the head to extend was trained on %d crops of each image; of its images, only the "
                "eval crop trains the new head",
                found.views,
            )
        return cls(head, found)

    @property
    def runtime(self) -> str | None:
        """Name of the runtime that computed the features in fp32; None if it is unknown."""
        engine = self.predictions.key.get("engine")
        if not isinstance(engine, dict) or engine.get("precision") != "fp32":
            return None
        return str(engine["name"]) if engine.get("name") else None

    @property
    def lacks_levels(self) -> bool:
        """True if the features are known to have no levels."""
        key = self.predictions.key
        return bool(key) and not key.get("levels")

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
                f"head was trained on: {_find_cause(old.key, read_key(cache.folder))}"
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
            numbers=np.concatenate([np.full(len(locations), -1), extracted.numbers]),
            names=[*(f"old image {number}" for number in range(len(locations))), *extracted.names],
            pixel_digests=np.concatenate([old.pixel_digests, extracted.pixel_digests]),
        )


def _check_preprocessing(head: Head, backbone: Any) -> None:
    """Raise ``DataError`` unless the backbone sees images as the head's training images."""
    new = preprocessing(backbone)
    differences = [
        f"{name} {_show(value)}, not {_show(new[name])}"
        for name, value in head.pretrained_cfg.items()
        if name in new and value != new[name]
    ]
    if differences:
        raise DataError(
            "the head to extend was trained on images of another size or crop: it has "
            f"{'; '.join(differences)}. The cache has the features of the old images for these "
            "values alone: pass them again (--img-size, --crop-pct, --crop-mode), or "
            f"{_REST}"
        )


def _show(value: Any) -> str:
    return " x ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _find_cause(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Say why a cache lacks features, given the keys of their cache and of the one in use."""
    if not old or not new:
        possible = "; ".join(CAUSES.values())
        return (
            f"they may have been computed with {possible}. Pass the options of the first fit "
            f"again, or {_REST}"
        )
    if old.get("fingerprint") != new.get("fingerprint"):
        return "tuning changed the backbone after they were computed, so tune it on all images"
    causes = [text for name, text in CAUSES.items() if old.get(name) != new.get(name)]
    if not causes:
        return f"they were removed from the cache, so {_REST}"
    return (
        f"they were computed with {'; and with '.join(causes)}. Pass the options of the first fit "
        f"again, or {_REST}"
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
