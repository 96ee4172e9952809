"""Split images into folds for cross-validation; copies of an image stay in one fold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from headkit.adapters.data.holdout import holdout
from headkit.adapters.heads.tasks import Task

from .linear.solve import MAX_CROSS_VALIDATED

FOLDS = 5
"""Maximum number of folds.

With more folds, each head trains on more images, so its metrics are closer to those of the final
head. But stratified folds flatter the heads, because each fold has the same shares of the classes
as the others: on 100 random images, eight folds no longer understated the accuracy."""


@dataclass(frozen=True)
class Folds:
    """Images in folds, and which folds are left out together.

    Attributes:
        of_row: The fold of each row, int64 ``[N]``; -1 for rows that are never left out.
        left_out: Folds that are left out together to make choices. Heads that see neither fold
            ``a`` nor fold ``b`` predict ``b`` to choose for ``a``, and ``a`` to choose for ``b``.
        measured: Folds that are predicted, each by a head that did not see it.
    """

    of_row: Tensor
    left_out: tuple[tuple[int, ...], ...]
    measured: tuple[int, ...]

    def rows_of(self, folds: tuple[int, ...]) -> Tensor:
        """Return ``[N]``, True for the rows of some folds."""
        return torch.isin(self.of_row, torch.tensor(folds))


def make_folds(y: Tensor, blocks: Tensor, task: Task, seed: int) -> Folds:
    """Put images into folds, stratified by class: a fold has about as many images of each class.

    If a fold had only one image, its class would be rarer in all other folds together, and the
    prediction for it would be biased against its class.

    Each fold is left out together with the next one. If there are only two folds, each is left out
    alone; otherwise no image would remain to train on. Of more than ``MAX_CROSS_VALIDATED`` blocks,
    one fold is measured, and another one makes the choices for it.

    Args:
        y: Targets of the images, see ``Task``.
        blocks: Number of each image's block, int64 ``[N]``. Images of a block show the same thing
            and stay together. A class with a single block is never left out.
        task: The kind of targets.
        seed: Seed of the folds.
    """
    first, members = _first_of_each(blocks)
    targets = y[first].numpy()
    strata = task.strata(targets)
    classes = len(np.unique(strata)) if strata.ndim == 1 else 2
    many = len(first) > MAX_CROSS_VALIDATED
    count = FOLDS if many else int(np.clip(len(first) // classes, 2, FOLDS))
    fold = torch.from_numpy(_stratify(strata, targets, task, count, seed))[members]
    present = sorted(set(fold.tolist()) - {-1})
    if len(present) < 2:
        return Folds(torch.full_like(fold, -1), (), ())
    if many:
        return Folds(fold, (tuple(present[:2]),), tuple(present[:1]))
    if len(present) == 2:
        return Folds(fold, tuple((one,) for one in present), tuple(present))
    following = zip(present, [*present[1:], present[0]], strict=True)
    return Folds(fold, tuple(following), tuple(present))


def _stratify(
    strata: np.ndarray, targets: np.ndarray, task: Task, count: int, seed: int
) -> np.ndarray:
    """Return the fold of each block; -1 for one that is never left out."""
    fold = np.full(len(strata), -1)
    if strata.ndim == 1:
        generator = np.random.default_rng(seed)
        start = 0
        for label in np.unique(strata):
            same = generator.permutation(np.flatnonzero(strata == label))
            if len(same) > 1:
                # Classes start at different folds, so that the folds have equal sizes.
                fold[same] = (np.arange(len(same)) + start) % count
                start += len(same)
        return fold
    left = np.arange(len(strata))
    for number in range(count - 1):
        chosen = holdout(targets[left], task.name, 1 / (count - number), seed + number)
        fold[left[chosen]] = number
        left = left[~chosen]
    alone = strata.sum(0) == 1
    fold[left[~(strata[left] & alone).any(1)]] = count - 1
    return fold


def _first_of_each(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first row of each block, and each row's place among the blocks."""
    _, first, members = np.unique(blocks.numpy(), return_index=True, return_inverse=True)
    order = np.argsort(first)  # by first appearance: the numbers of the blocks must not decide
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return torch.from_numpy(first[order]), torch.from_numpy(rank[members.reshape(-1)])
