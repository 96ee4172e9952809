"""Find images that look the same to the backbone: keep copies on one side of a split, and warn."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headkit.adapters.data.holdout import holdout
from headkit.adapters.heads.tasks import TaskName

from .extract import ExtractedFeatures

logger = logging.getLogger("headkit")

_LISTED = 3


def choose_validation(
    extracted: ExtractedFeatures, task: TaskName, share: float, seed: int
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Choose images for validation; copies of an image are chosen together.

    Args:
        extracted: Features of ``N`` images.
        task: The kind of targets, see ``holdout``.
        share: Share of the images, between 0 and 1.
        seed: Seed of the choice.

    Returns:
        ``[N]``, True for each validation image.
    """
    _, first, group = np.unique(extracted.pixel_digests, return_index=True, return_inverse=True)
    order = np.argsort(first)  # by first appearance: the names of files must not decide
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    mask = holdout(extracted.targets[first[order]], task, share, seed)
    return np.asarray(mask[rank[group.reshape(-1)]])


def number_copies(extracted: ExtractedFeatures) -> Tensor:
    """Return a number for each image, int64 ``[N]``; copies of an image have the same number."""
    _, group = np.unique(extracted.pixel_digests, return_inverse=True)
    return torch.from_numpy(group.reshape(-1).astype(np.int64))


def count_duplicates(train: ExtractedFeatures) -> dict[str, int]:
    """Count training images that occur more than once, and warn of them.

    Two images are equal if they look the same to the backbone after resizing and cropping,
    whatever files they come from.

    Args:
        train: Images to train on.

    Returns:
        ``num_duplicates``: the number of training images that repeat an earlier one.
    """
    _, first, group = np.unique(train.pixel_digests, return_index=True, return_inverse=True)
    group = group.reshape(-1)
    copies = np.flatnonzero(first[group] != np.arange(len(group)))
    counts = {"num_duplicates": len(copies)}
    if len(copies):
        logger.warning(
            "%d of %d images are duplicates of another image: %s",
            len(copies),
            len(group),
            _format_pairs(
                [(train.names[i], train.names[first[group[i]]]) for i in copies[:_LISTED]]
            ),
        )
        other = np.flatnonzero(
            (train.targets != train.targets[first[group]]).reshape(len(group), -1).any(1)
        )
        if len(other):
            logger.warning(
                "%d of the duplicates have a different label from the original image: %s",
                len(other),
                _format_pairs(
                    [(train.names[i], train.names[first[group[i]]]) for i in other[:_LISTED]]
                ),
            )
    return counts


def count_shared(train: ExtractedFeatures, other: ExtractedFeatures, split: str) -> int:
    """Return the number of images that measure a head and train it too, and warn of them.

    Args:
        train: Images to train on.
        other: Images to measure on.
        split: What ``other`` is called in the warning, such as ``validation``.
    """
    unique, first = np.unique(train.pixel_digests, return_index=True)
    at = np.minimum(np.searchsorted(unique, other.pixel_digests), len(unique) - 1)
    shared = np.flatnonzero(unique[at] == other.pixel_digests)
    if len(shared):
        logger.warning(
            "%d of %d %s images are also training images, which inflates the metrics: %s",
            len(shared),
            len(at),
            split,
            _format_pairs([(other.names[i], train.names[first[at[i]]]) for i in shared[:_LISTED]]),
        )
    return len(shared)


def _format_pairs(pairs: list[tuple[Any, Any]]) -> str:
    return "; ".join(f"{copy} = {original}" for copy, original in pairs)
