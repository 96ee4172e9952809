"""Linear heads on fixed features: logistic regression, one-vs-rest or multinomial, and ridge."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from headkit.adapters.heads.tasks import DEFAULT, Task, TaskName, get_task

from .blocks import CACHED, Rows, Selected
from .path import Fit, Images, Linear, Settings, Step
from .search import Search

__all__ = [
    "STRENGTHS",
    "VAR_SMOOTHINGS",
    "Linear",
    "Rows",
    "Solution",
    "Step",
    "solve",
]

STRENGTHS = tuple(10.0 ** (exponent / 2) for exponent in range(2, -11, -1))
"""Strengths to choose from, strong to weak: 10, 3.2, … 1e-5."""
VAR_SMOOTHINGS = (1.0, 0.01)
"""Shares of the mean variance to choose from: nearly one scale for all features, or its own each.

Of 0.001 to 1000, 1 gave the least validation log loss on MNIST under ImageNet weights, from 2 to
1000 images a class; 0.01 on the smaller digits of scikit-learn."""
CROSS_VALIDATED = 2000
"""Images up to which strengths are chosen by cross validation; beyond, a fifth is held out."""


@dataclass(frozen=True)
class Solution:
    """What ``solve`` found.

    Attributes:
        linear: the map.
        l2: the strength it was solved with.
        var_smoothing: the share of the mean variance that was added to each feature's.
        path: the strengths that were looked at, strong to weak for one share after the other.
    """

    linear: Linear
    l2: float
    var_smoothing: float
    path: tuple[Step, ...]


@torch.no_grad()
def solve(
    x: Tensor | Rows,
    y: Tensor,
    num_outputs: int,
    *,
    task: TaskName = DEFAULT,
    l2: float | Sequence[float] = STRENGTHS,
    var_smoothing: float | Sequence[float] | None = None,
    x_val: Tensor | Rows | None = None,
    y_val: Tensor | None = None,
    class_weights: Tensor | None = None,
    tolerance: float = 1e-5,
    max_iterations: int = 500,
) -> Solution:
    """Fit a linear map from features to logits.

    Minimizes ``mean(loss) + l2 / 2 * ||W||²``, where ``W`` acts on standardized features and the
    bias is free. The loss of an image is its cross entropy (multiclass), the sum over the outputs
    of their binary cross entropies (multilabel: one-vs-rest), or half the sum of squared errors
    (regression). scikit-learn's ``LogisticRegression(C)`` on the standardized features has the
    same minimum for ``l2 = 1 / (C * N)``, ``Ridge(alpha)`` for ``l2 = alpha / N``.

    Standardized is ``(x - mean) / sqrt(variance + var_smoothing * mean variance)``: from a few
    images, the variance of a feature that hardly varies is too small by chance, and dividing by it
    alone would make noise loud. The standardization is folded back: the result takes the features
    as they are. A feature that never varies gets no weight.

    Of several strengths, the one with the least validation loss is taken. They are visited from
    strong to weak, each from where the last one ended, and left as soon as their validation loss
    is known to about a percent, or for good once it has turned up. So are those around the best one
    with the next ``var_smoothing``, which is taken if it gains a twentieth. The best one alone is
    solved to ``tolerance``. Without validation images the choice is made by stratified cross
    validation (up to ``CROSS_VALIDATED`` images; 5 folds, or as many as the rarest class with two
    images has), else with a fifth held out; then all images are fitted.

    The method is preconditioned L-BFGS, see ``Descent``, in single precision, checked and where
    needed finished in double; ridge regression has a closed form, see ``Ridge``. Equal input gives
    equal bits on one machine with one number of threads.

    Args:
        x: ``[N, num_features]``, or blocks of it that do not fit in memory together.
        y: targets. multiclass: ``[N]`` int64 below ``num_outputs``; multilabel: ``[N,
            num_outputs]`` of 0 and 1; regression: ``[N, num_outputs]``.
        num_outputs: length of the logits. A class without an image gets the logit of an unlikely
            one; so does a label that no image has.
        task: what the targets are.
        l2: one strength, or several to choose from; above 0 so that the minimum is unique.
        var_smoothing: one share, or several to choose from; without it the first of
            ``VAR_SMOOTHINGS`` for one strength, and all of them for several.
        x_val: features of validation images, like ``x``.
        y_val: their targets.
        class_weights: ``[num_outputs]``, above 0. multiclass: of the images of each class;
            multilabel: of the positives of each label; see ``Task.balanced_weights``. The mean is
            then the weighted one. Validation is not weighted.
        tolerance: stop when the next step promises to lower the objective by this share of it.
        max_iterations: of the solver, for each strength.

    Raises:
        ValueError: shapes do not fit, targets are none of ``task``, a feature or target is NaN or
            infinite, or a strength or share is not positive.
    """
    strengths = sorted(set(_numbers("l2", l2)), reverse=True)
    if var_smoothing is None:
        var_smoothing = VAR_SMOOTHINGS if len(strengths) > 1 else VAR_SMOOTHINGS[0]
    smoothings = _numbers("var_smoothing", var_smoothing)
    several = len(strengths) * len(smoothings) > 1
    spec = get_task(task)
    y = _checked(x, y, num_outputs, spec, "")
    if (x_val is None) != (y_val is None):
        raise ValueError("x_val and y_val belong together: one of them is missing")
    if x_val is not None and y_val is not None:
        y_val = _checked(x_val, y_val, num_outputs, spec, "_val")
        if x_val.shape[1] != x.shape[1]:
            raise ValueError(f"x_val has {x_val.shape[1]} features, x has {x.shape[1]}")
    if class_weights is not None:
        if not spec.has_classes:
            raise ValueError("class_weights say nothing about regression")
        if class_weights.shape != (num_outputs,) or not bool((class_weights > 0).all()):
            raise ValueError(f"class_weights must be {num_outputs} positive numbers")
        class_weights = class_weights.to(y.device)
    settings = Settings(num_outputs, spec, class_weights, tolerance, max_iterations)
    if several and x_val is None:
        return _across_folds(x, y, settings, strengths, smoothings)
    images = Images(x, y, settings, x_val, y_val)
    if several:
        search = Search([images])
        chosen = search.polish(search.visit(strengths, smoothings))
        return Solution(search.linear(chosen), chosen.l2, chosen.var_smoothing, search.steps)
    fit = Fit(images, smoothings[0])
    step = fit.polish(strengths[0])
    return Solution(fit.linear(step.l2), step.l2, step.var_smoothing, (step,))


def _across_folds(
    x: Tensor | Rows,
    y: Tensor,
    settings: Settings,
    strengths: Sequence[float],
    smoothings: Sequence[float],
) -> Solution:
    """Choose by the mean validation loss of all folds, then fit all images."""
    folds = _folds(y, settings.task)
    if not folds:
        # One image a class: scikit-learn's C = 0.1. The more classes, the less each one's share of
        # the loss weighs against the penalty, and the weaker that has to be.
        strength = min(strengths, key=lambda l2: abs(math.log(l2 * len(y) / 10)))
        fit = Fit(Images(x, y, settings), smoothings[0])
        step = fit.polish(strength)
        return Solution(fit.linear(strength), strength, step.var_smoothing, (step,))
    search = Search(
        [Images(*_part(x, y, ~fold), settings, *_part(x, y, fold)) for fold in folds],
        [int(fold.sum()) for fold in folds],
    )
    chosen = search.visit(strengths, smoothings)
    start, path = search.linear(chosen), list(search.steps)
    del search  # and with it the features that it keeps
    fit = Fit(Images(x, y, settings), chosen.var_smoothing)
    step = fit.polish(chosen.l2, start)
    path[path.index(chosen)] = replace(
        step, val_loss=chosen.val_loss, iterations=chosen.iterations + step.iterations
    )
    return Solution(fit.linear(step.l2), step.l2, step.var_smoothing, tuple(path))


def _part(x: Tensor | Rows, y: Tensor, mask: Tensor) -> tuple[Tensor | Rows, Tensor]:
    chosen = Selected(x, mask)
    small = isinstance(x, Tensor) and x.numel() <= CACHED
    return (torch.cat(list(chosen.blocks())) if small else chosen), y[mask]


def _folds(y: Tensor, task: Task) -> list[Tensor]:
    """Return masks ``[N]`` of held-out images, stratified by class; none if none can be spared.

    A class with one image is held out nowhere, so that each class is trained in each fold.
    """
    count = len(y)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).to(y.device)
    groups = task.fold_groups(y)
    sizes = torch.bincount(groups)
    if not bool((sizes > 1).any()):
        return []
    order = order[groups[order].argsort(stable=True)]
    starts = sizes.cumsum(0) - sizes
    place = torch.empty_like(order)
    place[order] = torch.arange(count, device=y.device) - starts[groups[order]]
    several = sizes[groups] > 1
    if count > CROSS_VALIDATED:
        return [several & (place < (sizes[groups] / 5).round().clamp(min=1))]
    folds = min(5, int(sizes[sizes > 1].min()))
    # Classes start at different folds, so that these are of equal size.
    return [several & ((place + starts[groups]) % folds == fold) for fold in range(folds)]


def _numbers(name: str, given: float | Sequence[float]) -> list[float]:
    numbers = [float(given)] if isinstance(given, int | float) else [float(v) for v in given]
    if not numbers:
        raise ValueError(f"{name} is empty, expected at least one number")
    for value in numbers:
        if not 0 < value < math.inf:
            raise ValueError(f"{name} is {value:g}, expected a positive number")
    return numbers


def _checked(x: Tensor | Rows, y: Tensor, num_outputs: int, task: Task, which: str) -> Tensor:
    """Return targets where the features are; class indices as int64.

    Raises:
        ValueError: see ``solve``.
    """
    if len(x.shape) != 2 or not x.shape[0]:
        raise ValueError(f"x{which} has shape {tuple(x.shape)}, expected [N, num_features]")
    y = task.check_targets(y, x.shape[0], num_outputs, f"y{which}")
    return y.to(x.device) if isinstance(x, Tensor) else y
