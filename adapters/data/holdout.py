"""Choose the images that are held out for validation; each label stays in training."""

from __future__ import annotations

from typing import Any

import numpy as np

from headkit.adapters.heads.tasks import TaskName, get_task

from .dataset import Targets

Mask = np.ndarray[Any, np.dtype[np.bool_]]


def holdout(targets: Targets, task: TaskName, share: float, seed: int) -> Mask:
    """Choose about ``share`` of the images for validation.

    A label with one image stays in training. Every other label keeps at least one image in
    training and, for multiclass, has at least one image in validation. ``seed`` determines the
    images.

    Args:
        targets: int ``[N]`` for multiclass, else ``[N, outputs]``; see ``ImageDataset``.
        task: The kind of targets. multiclass is stratified by class, multilabel by iterative
            stratification (Sechidis, Tsoumakas and Vlahavas 2011); regression is split at random.
        share: Share of the images, between 0 and 1.
        seed: Seed of NumPy's default generator.

    Returns:
        ``[N]``, True for each validation image.
    """
    generator = np.random.default_rng(seed)
    strata = get_task(task).strata(targets)
    if strata.ndim == 2:
        return _stratify_iteratively(strata, share, generator)
    held_out = np.zeros(len(targets), dtype=np.bool_)
    for label in np.unique(strata):
        members = np.flatnonzero(strata == label)
        if len(members) > 1:
            held_out[generator.permutation(members)[: _held_out_count(len(members), share)]] = True
    return held_out


def _held_out_count(images: int, share: float) -> int:
    return min(max(round(images * share), 1), images - 1)


def _stratify_iteratively(has: Mask, share: float, generator: np.random.Generator) -> Mask:
    """Hold out images of ``has`` ``[N, labels]``, starting with those of the rarest label."""
    images = len(has)
    held_out = np.zeros(images, dtype=np.bool_)
    # The labels of image i are by_image[starts[i] : starts[i + 1]].
    of_image, by_image = np.nonzero(has)
    starts = np.searchsorted(of_image, np.arange(images + 1))
    shuffled = generator.permutation(images)
    left = has.sum(0)
    keepable = left - 1  # how many more images of each label may leave training
    # How many images of each label, and how many images in all, each split still needs.
    wanted = np.array(
        [_held_out_count(n, share) if n > 1 else 0 for n in left.tolist()], dtype=np.float64
    )
    wanted_train = left - wanted
    want = float(share * images)
    want_train = images - want
    waiting = np.ones(images, dtype=np.bool_)
    pending = set(np.flatnonzero(left).tolist())
    while pending:
        rarest = min(pending, key=lambda label: (left[label], label))
        pending.remove(rarest)
        for image in shuffled[has[shuffled, rarest] & waiting[shuffled]].tolist():
            own = by_image[starts[image] : starts[image + 1]]
            difference = wanted[rarest] - wanted_train[rarest] or want - want_train
            if difference > 0 and keepable[own].min() > 0:
                held_out[image] = True
                keepable[own] -= 1
                wanted[own] -= 1
                want -= 1
            else:
                wanted_train[own] -= 1
                want_train -= 1
            left[own] -= 1
            waiting[image] = False
        pending -= {label for label in pending if not left[label]}
    rest = shuffled[waiting[shuffled]]
    held_out[rest[: max(round(want), 0)]] = True
    return held_out
