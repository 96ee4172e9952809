"""Keep what a head was trained on, and predictions for it, next to the features in the cache.

A file ``predictions-HEAD.safetensors`` in the folder of a feature cache belongs to the head whose
digest starts with ``HEAD``. It has one row for each of the ``n`` training images: ``pixels`` uint8
``[n, 16]`` (digests of what the backbone saw, as in the shards) and ``targets``. ``images`` int64
``[m]`` are the numbers of the images that were held out, ascending, and ``logits`` float64
``[m, num_outputs]`` their predictions. A file without ``images`` has rows for the held-out images
alone.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from safetensors import SafetensorError

from headkit.adapters.errors import OutputError
from headkit.adapters.files import cache_folder, write_atomically
from headkit.adapters.tensor_bytes import to_safetensors

from .cache import PIXEL_DIGEST, FeatureCache
from .lock import KEY_FILE

logger = logging.getLogger("headkit")

_DIGITS = 24
_VIEWS = "views"


@dataclass(frozen=True)
class Predictions:
    """The ``n`` images that a head was trained on, and predictions for the ``m`` held-out ones.

    Attributes:
        logits: Predictions of fits that did not see the images, ``[m, num_outputs]``, float64.
        images: Numbers of the images that were held out, ``[m]``, int64, ascending.
        pixel_digests: Digests of what the backbone saw, ``[n]``, see ``ExtractedFeatures``.
        targets: Targets of the images, ``[n]`` or ``[n, num_outputs]``, see ``ImageDataset``.
        views: Number of crops of each image that the head was trained on.
        complete: True if these are all training images, False if images that were never held out
            may be missing.
        key: Everything but the image that the features depend on, see ``FeatureCache``; empty if it
            cannot be read.
    """

    logits: np.ndarray[Any, np.dtype[np.float64]]
    images: np.ndarray[Any, np.dtype[np.int64]]
    pixel_digests: np.ndarray[Any, np.dtype[np.bytes_]]
    targets: np.ndarray[Any, Any]
    views: int = 1
    complete: bool = True
    key: Mapping[str, Any] = field(default_factory=dict)


def keep_predictions(
    cache: FeatureCache, head_digest: str, predictions: Predictions
) -> Path | None:
    """Write predictions next to the features of ``cache``. Return the path of the file.

    A head is worth more than its predictions: where they cannot be written, such as in a cache that
    may only be read, this logs a warning and returns None.

    Args:
        cache: The cache that the head was fitted from.
        head_digest: ``Head.digest``.
        predictions: All training images, and what cross-validation predicted.
    """
    pixels = np.ascontiguousarray(predictions.pixel_digests.astype(PIXEL_DIGEST))
    tensors = {
        "logits": np.ascontiguousarray(predictions.logits),
        "images": np.ascontiguousarray(predictions.images.astype(np.int64)),
        "pixels": pixels.view(np.uint8).reshape(len(pixels), PIXEL_DIGEST.itemsize),
        "targets": np.ascontiguousarray(predictions.targets),
    }
    metadata = {"head": head_digest, _VIEWS: str(predictions.views)}
    path = cache.folder / f"predictions-{head_digest[:_DIGITS]}.safetensors"
    try:
        return write_atomically(path, to_safetensors(tensors, metadata))
    except OutputError as error:
        logger.warning("the predictions of cross-validation are not kept: %s", error)
        return None


def find_predictions(head_digest: str, cache: bool | str | Path = True) -> Predictions | None:
    """Return the training images and predictions of a head, or None if the cache lacks them.

    Args:
        head_digest: ``Head.digest``.
        cache: Folder of the cache, see ``fit``.
    """
    name = f"predictions-{head_digest[:_DIGITS]}.safetensors"
    for path in sorted((cache_folder(cache) / "features").glob(f"*/{name}")):
        try:
            found = _read(path, head_digest)
        except (OSError, SafetensorError, ValueError):
            continue  # damaged, or removed in this moment
        if found is not None:
            return found
    return None


def read_key(folder: Path) -> dict[str, Any]:
    """Return the key of the feature cache in a folder; empty if it cannot be read."""
    try:
        key = json.loads((folder / KEY_FILE).read_bytes())
    except (OSError, ValueError):
        return {}
    return key if isinstance(key, dict) else {}


def _read(path: Path, head_digest: str) -> Predictions | None:
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata = file.metadata() or {}
        if metadata.get("head") != head_digest:
            return None
        logits, pixels, targets = map(file.get_tensor, ("logits", "pixels", "targets"))
        complete = "images" in file.keys()  # noqa: SIM118
        images = file.get_tensor("images") if complete else np.arange(len(logits))
    digests = np.ascontiguousarray(pixels).view(PIXEL_DIGEST).reshape(-1)
    if len(digests) != len(targets) or len(images) != len(logits):
        return None
    if len(images) and not 0 <= images.min() <= images.max() < len(digests):
        return None
    return Predictions(
        logits,
        images,
        digests,
        targets,
        views=int(metadata.get(_VIEWS, 1)),
        complete=complete,
        key=read_key(path.parent),
    )
