"""Keep the predictions of cross-validation next to the features that they were made from.

A file ``predictions-HEAD.safetensors`` in the folder of a feature cache belongs to the head whose
digest starts with ``HEAD``. It has one row per image that was held out: ``logits`` float64
``[n, num_outputs]``, ``pixels`` uint8 ``[n, 16]`` (digests of what the backbone saw, as in the
shards) and ``targets``.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from headkit.adapters.errors import OutputError
from headkit.adapters.files import cache_folder, write_atomically

from .cache import PIXEL_DIGEST, FeatureCache

logger = logging.getLogger("headkit")

PATTERN = "predictions-*"
_DIGITS = 24


@dataclass(frozen=True)
class Predictions:
    """Out-of-fold predictions of a head for ``n`` of its training images.

    Attributes:
        logits: ``[n, num_outputs]``, float64.
        pixel_digests: Digests of what the backbone saw, ``[n]``, see ``ExtractedFeatures``.
        targets: Targets of the images, see ``ImageDataset``.
    """

    logits: np.ndarray[Any, np.dtype[np.float64]]
    pixel_digests: np.ndarray[Any, np.dtype[np.bytes_]]
    targets: np.ndarray[Any, Any]


def keep_predictions(
    cache: FeatureCache, head_digest: str, predictions: Predictions
) -> Path | None:
    """Write predictions next to the features of ``cache``. Return the path of the file.

    A head is worth more than its predictions: where they cannot be written, such as in a cache that
    may only be read, this logs a warning and returns None.

    Args:
        cache: The cache that the head was fitted from.
        head_digest: ``Head.digest``.
        predictions: What cross-validation predicted.
    """
    pixels = np.ascontiguousarray(predictions.pixel_digests.astype(PIXEL_DIGEST))
    tensors = {
        "logits": np.ascontiguousarray(predictions.logits),
        "pixels": pixels.view(np.uint8).reshape(len(pixels), PIXEL_DIGEST.itemsize),
        "targets": np.ascontiguousarray(predictions.targets),
    }
    path = cache.folder / f"predictions-{head_digest[:_DIGITS]}.safetensors"
    try:
        return write_atomically(path, safetensors.numpy.save(tensors, {"head": head_digest}))
    except OutputError as error:
        logger.warning("the predictions of cross-validation are not kept: %s", error)
        return None


def find_predictions(head_digest: str, cache: bool | str | Path = True) -> Predictions | None:
    """Return the out-of-fold predictions of a head, or None if the cache does not have them.

    Args:
        head_digest: ``Head.digest``.
        cache: Folder of the cache, see ``fit``.
    """
    name = f"predictions-{head_digest[:_DIGITS]}.safetensors"
    for path in sorted((cache_folder(cache) / "features").glob(f"*/{name}")):
        try:
            with safetensors.safe_open(path, framework="numpy") as file:
                if (file.metadata() or {}).get("head") != head_digest:
                    continue
                logits, pixels, targets = map(file.get_tensor, ("logits", "pixels", "targets"))
            digests = np.ascontiguousarray(pixels).view(PIXEL_DIGEST).reshape(-1)
        except (OSError, SafetensorError, ValueError):
            continue  # damaged, or removed in this moment
        if len(logits) == len(digests) == len(targets):
            return Predictions(logits, digests, targets)
    return None
