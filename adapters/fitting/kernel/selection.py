"""Choose the levels that a head reads, and the strength of its penalty, by cross-validation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from headkit.adapters.fitting.folds import Partition
from headkit.adapters.fitting.linear.regularization_path import LinearMap
from headkit.adapters.heads.tasks import Task

from .gram import LevelKernel, average
from .leave_out import RidgeInverse
from .scores import (
    Calibration,
    calibrate,
    encode,
    losses,
    mean_squared_error,
    standard_error,
)

RIDGES = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.001)
"""Strengths to choose from, relative to the mean squared length of the features of an image."""
DEFAULT_RIDGE = 0.1
"""Strength if nothing can be held out to choose one."""
WITHIN = 1.0
"""Standard errors by which a set of levels may be worse than the best and win if it is larger.

With few images, the comparison is mostly chance, and more levels are the better bet."""


@dataclass(frozen=True)
class Choice:
    """What cross-validation chose.

    Attributes:
        levels: Names of the levels.
        ridge: Strength of the penalty.
        calibration: Map from predictions to logits.
    """

    levels: tuple[str, ...]
    ridge: float
    calibration: Calibration


@dataclass(frozen=True)
class Compared:
    """The best strength of one set of levels.

    Attributes:
        levels: Names of the levels.
        ridge: The strength with the least squared error on images that were left out.
        loss: Mean loss of these images, see ``scores.losses``.
    """

    levels: tuple[str, ...]
    ridge: float
    loss: float


@dataclass(frozen=True)
class LevelSolution:
    """A linear map of levels to logits.

    Attributes:
        levels: Names of the levels that the map reads, in the order of its columns.
        linear: The map.
        ridge: Strength of the penalty.
        compared: The best strength of each set of levels; empty if no image could be left out.
        measured: Row numbers ``[M]`` of the images that were held out, ascending.
        logits: Out-of-fold logits ``[M, num_outputs]``, float64: neither the map, nor the levels,
            nor the strength, nor the calibration of the fold saw the image.
    """

    levels: tuple[str, ...]
    linear: LinearMap
    ridge: float
    compared: tuple[Compared, ...]
    measured: Tensor
    logits: Tensor


@dataclass(frozen=True)
class _Tried:
    """What one set of levels and one strength predicts for images that are left out.

    Attributes:
        whole: Predictions for all rows, each without its group.
        nested: For each fold, predictions as if it did not exist; for its own rows, those of all
            other rows.
    """

    whole: Tensor
    nested: tuple[Tensor, ...]


_Key = tuple[tuple[str, ...], float]


def solve_levels(
    features: Mapping[str, Tensor],
    y: Tensor,
    task: Task,
    num_outputs: int,
    sets: Sequence[tuple[str, ...]],
    partition: Partition,
    *,
    ridges: Sequence[float] = RIDGES,
    weight: Tensor | None = None,
) -> LevelSolution:
    """Choose levels and strength, fit a linear map to all images, and predict each fold.

    The map is a ridge regression on classes as 0 and 1 (regularized least squares, Rifkin, Yeo and
    Poggio, 2003), which a calibration turns into logits. Each level counts equally, however many
    features it has, see ``LevelKernel``. The strength is the one with the least squared error when
    each group of images is left out. Sets of levels are compared by the log loss of these
    predictions; the largest set wins that is no more than ``WITHIN`` standard errors worse than the
    best.

    The out-of-fold logits are those of nested cross-validation: for each fold, all choices are made
    again without its images. All of it follows from one inverse for each set and strength.

    Args:
        features: Features by level, float32 ``[N, width]`` each.
        y: Targets, see ``Task``.
        task: The kind of targets.
        num_outputs: Length of the logits.
        sets: Sets of levels to choose from, the simplest first.
        partition: Groups and folds of the images.
        ridges: Strengths to choose from.
        weight: Weights of the images ``[N]``. Losses are not weighted.

    Raises:
        ValueError: A feature is NaN or infinite.
    """
    order = partition.order
    features = {name: x[order] for name, x in features.items() if any(name in one for one in sets)}
    y = y[order]
    if weight is not None:
        weight = (weight / weight.mean()).double()[order]
    kernels = {name: LevelKernel.from_features(x) for name, x in features.items()}
    targets = encode(y, task, num_outputs)
    others = [_inner_groups(partition, fold, len(y)) for fold in partition.folds]
    tried: dict[_Key, _Tried] = {}
    for levels in sets:
        kernel = average([kernels[name] for name in levels])
        for ridge in ridges:
            inverse = RidgeInverse(kernel, targets, ridge, weight)
            nested = [
                inverse.leave_out_twice(fold, groups)
                for fold, groups in zip(partition.folds, others, strict=True)
            ]
            tried[levels, ridge] = _Tried(inverse.leave_out(partition.groups), tuple(nested))
    whole = {key: one.whole for key, one in tried.items()}
    left_out = partition.groups[-1][1] if partition.groups else 0
    usable = _usable(y, torch.arange(left_out), task)
    choice, compared = _choose(whole, y, targets, usable, task, sets, ridges)
    logits = targets.new_empty(left_out, num_outputs)
    for number, (start, end) in enumerate(partition.folds):
        rest = torch.tensor([row for a, b in others[number] for row in range(a, b)]).long()
        inner = {key: one.nested[number] for key, one in tried.items()}
        own, _ = _choose(inner, y, targets, _usable(y, rest, task), task, sets, ridges)
        outer = inner[own.levels, own.ridge][start:end]
        logits[start:end] = own.calibration.logits(outer)
    measured, back = order[:left_out].sort()
    linear = _fit(choice, kernels, features, targets, weight)
    return LevelSolution(choice.levels, linear, choice.ridge, compared, measured, logits[back])


def _inner_groups(
    partition: Partition, fold: tuple[int, int], rows: int
) -> tuple[tuple[int, int], ...]:
    """Return the groups outside of a fold, or none if they are a single one that is all the rest.

    Without that group and the fold, no image would be left to predict it.
    """
    start, end = fold
    groups = tuple(one for one in partition.groups if not start <= one[0] < end)
    held = sum(b - a for a, b in (fold, *groups))
    return () if len(groups) == 1 and held == rows else groups


def _fit(
    choice: Choice,
    kernels: Mapping[str, LevelKernel],
    features: Mapping[str, Tensor],
    targets: Tensor,
    weight: Tensor | None,
) -> LinearMap:
    """Fit all images with what was chosen; fold centring, scale and calibration into the map."""
    chosen = [kernels[name] for name in choice.levels]
    kernel = average(chosen)
    inverse = RidgeInverse(kernel, targets, choice.ridge, weight)
    matrix = torch.cat(
        [
            one.weight(features[name], inverse.alpha) / len(chosen)
            for one, name in zip(chosen, choice.levels, strict=True)
        ],
        1,
    )
    bias = inverse.bias(kernel) - matrix @ torch.cat([one.mean for one in chosen])
    calibration = choice.calibration
    return LinearMap(
        matrix * calibration.factor[:, None], bias * calibration.factor + calibration.shift
    )


def _usable(y: Tensor, rows: Tensor, task: Task) -> Tensor:
    """Return those of some rows whose class has several of them, int64.

    The prediction for the only image of a class says nothing about the strength.
    """
    if not task.exclusive or not len(rows):
        return rows
    own = y[rows].long()
    return rows[torch.bincount(own)[own] > 1]


def _choose(
    predictions: Mapping[_Key, Tensor],
    y: Tensor,
    targets: Tensor,
    usable: Tensor,
    task: Task,
    sets: Sequence[tuple[str, ...]],
    ridges: Sequence[float],
) -> tuple[Choice, tuple[Compared, ...]]:
    """Choose a set and a strength from predictions for images that were left out."""
    if not len(usable):
        ridge = min(ridges, key=lambda one: abs(math.log(one / DEFAULT_RIDGE)))
        return Choice(sets[-1], ridge, calibrate(targets[:0], y[:0], task)), ()
    y, targets = y[usable], targets[usable]
    found: list[tuple[Compared, Calibration, Tensor]] = []
    for levels in sets:
        errors = {
            ridge: mean_squared_error(predictions[levels, ridge][usable], targets)
            for ridge in ridges
        }
        ridge = min(ridges, key=errors.__getitem__)
        prediction = predictions[levels, ridge][usable]
        calibration = calibrate(prediction, y, task)
        each = losses(prediction, y, task, calibration)
        found.append((Compared(levels, ridge, float(each.mean())), calibration, each))
    best = min(found, key=lambda one: one[0].loss)[2]
    compared, calibration = next(
        (compared, calibration)
        for compared, calibration, each in reversed(found)
        if _is_close(each, best)
    )
    choice = Choice(compared.levels, compared.ridge, calibration)
    return choice, tuple(one[0] for one in found)


def _is_close(each: Tensor, best: Tensor) -> bool:
    worse = each - best
    return each is best or float(worse.mean()) <= WITHIN * standard_error(worse)
