"""Split images into groups for cross-validation; copies of an image stay in one group."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from headkit.adapters.data.holdout import holdout
from headkit.adapters.heads.tasks import Task

MAX_GROUPS = 20
"""Maximum number of groups; each is left out once to make the choices."""
FOLDS = 8
"""Maximum number of folds.

With more folds, each head trains on more images, and its metrics are less below those of the final
head. But all folds have the same shares of the classes, as random images have not, and that helps
the heads: of 100 random images, ten folds stated no less than the truth in the mean."""


@dataclass(frozen=True)
class Partition:
    """Images in groups, and groups in folds.

    Attributes:
        order: Row numbers ``[N]``, sorted by group; rows that are never left out come last.
        groups: Where each group starts and ends in ``order``.
        folds: Where each fold starts and ends in ``order``; a fold is one or more whole groups.
    """

    order: Tensor
    groups: tuple[tuple[int, int], ...]
    folds: tuple[tuple[int, int], ...]


def make_partition(y: Tensor, blocks: Tensor, task: Task, seed: int) -> Partition:
    """Put images into groups, stratified by class: a group has about as many images of each class.

    If a group had only one image, its class would be rarer in all other groups together, and the
    prediction for it would be biased against its class.

    Args:
        y: Targets of the images, see ``Task``.
        blocks: Number of each image's block, int64 ``[N]``. Images of a block show the same thing
            and stay together. A class with a single block is never left out.
        task: The kind of targets.
        seed: Seed of the groups.
    """
    first, members = _first_of_each(blocks)
    targets = y[first].numpy()
    strata = task.strata(targets)
    classes = len(np.unique(strata)) if strata.ndim == 1 else 2
    count = int(np.clip(len(first) // classes, 2, MAX_GROUPS))
    group = _stratify(strata, targets, task, count, seed)
    of_image = torch.from_numpy(group)[members]
    of_image = torch.where(of_image < 0, count, of_image)
    order = of_image.argsort(stable=True)
    sizes = torch.bincount(of_image, minlength=count + 1)[:count]
    ends = [0, *sizes.cumsum(0).tolist()]
    groups = tuple(pair for pair in pairwise(ends) if pair[0] < pair[1])
    if len(groups) < 2:
        return Partition(order, (), ())
    most = min(len(groups), FOLDS)
    cuts = np.linspace(0, len(groups), most + 1).round().astype(int).tolist()
    folds = tuple((groups[a][0], groups[b - 1][1]) for a, b in pairwise(cuts))
    return Partition(order, groups, folds)


def _stratify(
    strata: np.ndarray, targets: np.ndarray, task: Task, count: int, seed: int
) -> np.ndarray:
    """Return the group of each block; -1 for one that is never left out."""
    group = np.full(len(strata), -1)
    if strata.ndim == 1:
        generator = np.random.default_rng(seed)
        start = 0
        for label in np.unique(strata):
            same = generator.permutation(np.flatnonzero(strata == label))
            if len(same) > 1:
                # Classes start at different groups, so that the groups have equal sizes.
                group[same] = (np.arange(len(same)) + start) % count
                start += len(same)
        return group
    left = np.arange(len(strata))
    for number in range(count - 1):
        chosen = holdout(targets[left], task.name, 1 / (count - number), seed + number)
        group[left[chosen]] = number
        left = left[~chosen]
    alone = strata.sum(0) == 1
    group[left[~(strata[left] & alone).any(1)]] = count - 1
    return group


def _first_of_each(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first row of each block, and each row's place among the blocks."""
    _, first, members = np.unique(blocks.numpy(), return_index=True, return_inverse=True)
    order = np.argsort(first)  # by first appearance: the numbers of the blocks must not decide
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return torch.from_numpy(first[order]), torch.from_numpy(rank[members.reshape(-1)])
