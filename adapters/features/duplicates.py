"""Images that the backbone cannot tell apart: kept on one side of a split, and reported."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from headkit.adapters.data.holdout import holdout
from headkit.adapters.heads.tasks import TaskName

from .extract import Extracted

logger = logging.getLogger("headkit")

_NAMED = 3


def held_out(
    extracted: Extracted, task: TaskName, share: float, seed: int
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Choose images for validation; copies of an image are chosen together.

    Args:
        extracted: ``N`` images.
        task: see ``data.holdout_mask``.
        share: of each class.
        seed: of the choice.

    Returns:
        A mask ``[N]``.
    """
    _, first, group = np.unique(extracted.pixels, return_index=True, return_inverse=True)
    order = np.argsort(first)  # of first appearance: the names of files must not decide
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    mask = holdout(extracted.targets[first[order]], task, share, seed)
    return np.asarray(mask[rank[group.reshape(-1)]])


def report_duplicates(train: Extracted, val: Extracted | None) -> dict[str, int]:
    """Warn of images that occur more than once, and count them.

    Equal are images that look the same to the backbone after resizing and cropping, in whatever
    file they lie.

    Args:
        train: the images that are trained on, or split.
        val: validation images, if they were given apart.

    Returns:
        ``num_duplicates``, training images that repeat an earlier one; and where ``val`` was
        given, ``num_val_in_train``, validation images that are training images too.
    """
    unique, first, group = np.unique(train.pixels, return_index=True, return_inverse=True)
    group = group.reshape(-1)
    copies = np.flatnonzero(first[group] != np.arange(len(group)))
    counted = {"num_duplicates": len(copies)}
    if len(copies):
        logger.warning(
            "%d of %d images repeat another one: %s",
            len(copies),
            len(group),
            _pairs([(train.names[i], train.names[first[group[i]]]) for i in copies[:_NAMED]]),
        )
        other = np.flatnonzero(
            (train.targets != train.targets[first[group]]).reshape(len(group), -1).any(1)
        )
        if len(other):
            logger.warning(
                "%d of them have other labels than the image they repeat: %s",
                len(other),
                _pairs([(train.names[i], train.names[first[group[i]]]) for i in other[:_NAMED]]),
            )
    if val is None:
        return counted
    at = np.minimum(np.searchsorted(unique, val.pixels), len(unique) - 1)
    shared = np.flatnonzero(unique[at] == val.pixels)
    if len(shared):
        logger.warning(
            "%d of %d validation images are training images too, which flatters the metrics: %s",
            len(shared),
            len(at),
            _pairs([(val.names[i], train.names[first[at[i]]]) for i in shared[:_NAMED]]),
        )
    return {**counted, "num_val_in_train": len(shared)}


def _pairs(pairs: list[tuple[Any, Any]]) -> str:
    return "; ".join(f"{copy} = {original}" for copy, original in pairs)
