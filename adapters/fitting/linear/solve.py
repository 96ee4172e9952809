"""Fit linear heads to fixed features by logistic regression (one-vs-rest, multinomial) or ridge."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from headkit.adapters.heads.tasks import DEFAULT, Task, TaskName, get_task

from .regularization_path import LinearMap, PathData, RegularizationPath, Settings, Step
from .rows import Rows, SelectedRows
from .search import Search
from .standardization import CACHED

__all__ = [
    "STRENGTHS",
    "VAR_SMOOTHINGS",
    "LinearMap",
    "Rows",
    "Solution",
    "Step",
    "solve",
]

STRENGTHS = tuple(10.0 ** (exponent / 2) for exponent in range(2, -11, -1))
"""Strengths to choose from, strong to weak: 10, 3.2, … 1e-5."""
VAR_SMOOTHINGS = (1.0, 0.01)
"""Shares of the mean variance to choose from: nearly one scale for all features, or one for each.

Of 0.001 to 1000, 1 had the lowest validation log loss on MNIST with ImageNet weights, for 2 to 1000
images per class; 0.01 had the lowest on the smaller digits of scikit-learn."""
MAX_CROSS_VALIDATED = 2000
"""Maximum images for which cross validation chooses a strength; of more, a fifth is held out."""


@dataclass(frozen=True)
class Solution:
    """The result of ``solve``.

    Attributes:
        linear: The linear map.
        l2: The strength of its penalty.
        var_smoothing: Share of the mean variance that was added to the variance of each feature.
        path: All strengths that were visited, from strong to weak for each share.
    """

    linear: LinearMap
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

    The map minimizes ``mean(loss) + l2 / 2 * ||W||²``, where ``W`` acts on standardized features
    and the bias has no penalty. The loss of an image is its cross entropy (multiclass), the sum of
    the binary cross entropies of its outputs (multilabel: one-vs-rest), or half the sum of squared
    errors (regression). On standardized features, scikit-learn's ``LogisticRegression(C)`` has the
    same minimum for ``l2 = 1 / (C * N)``, and ``Ridge(alpha)`` for ``l2 = alpha / N``.

    Features are standardized to ``(x - mean) / sqrt(variance + var_smoothing * mean variance)``. If
    there are few images, the variance of a feature that hardly varies is too small by chance;
    division by that variance alone would amplify noise. The standardization becomes part of the
    map, which takes the original features. A feature that never varies has the weight 0.

    Of several strengths, the one with the lowest validation loss wins. The solver visits them from
    strong to weak and starts each one from the solution of the one before. It stops at a strength
    when the validation loss is known to about a percent, and ends the path when that loss rises.
    It does the same near the best strength with the next ``var_smoothing``, which wins if it lowers
    the loss by a twentieth. Only the best strength is solved to ``tolerance``. If there are no
    validation images, stratified cross validation makes the choice (up to ``MAX_CROSS_VALIDATED``
    images; 5 folds, or as many as the rarest class with two images has); of more images, a fifth is
    held out. Then the map is fitted to all images.

    The method is preconditioned L-BFGS, see ``Lbfgs``, in single precision; double precision checks
    the solution and finishes it if needed. Ridge regression has a closed form, see ``Ridge``. Equal
    input leads to equal bits on the same machine with the same number of threads.

    Args:
        x: Features ``[N, num_features]``, or blocks of them that do not fit in memory together.
        y: Targets. multiclass: ``[N]`` int64 below ``num_outputs``; multilabel: ``[N,
            num_outputs]`` of 0 and 1; regression: ``[N, num_outputs]``.
        num_outputs: Length of the logits. A class or label without images gets the logit of an
            unlikely one.
        task: The kind of targets.
        l2: One strength, or several to choose from; above 0 so that the minimum is unique.
        var_smoothing: One share, or several to choose from. If None, the first of
            ``VAR_SMOOTHINGS`` for one strength, and all of them for several strengths.
        x_val: Features of validation images, like ``x``.
        y_val: Targets of validation images.
        class_weights: Weights ``[num_outputs]`` above 0, of the images of each class (multiclass)
            or of the positives of each label (multilabel), see ``Task.balanced_weights``. The mean
            loss is then the weighted mean. Validation is not weighted.
        tolerance: Smallest decrease of the objective, as a share of it, that is worth another step;
            see ``lbfgs.has_converged``.
        max_iterations: Maximum iterations of the solver for each strength.

    Raises:
        ValueError: Shapes do not fit, targets do not suit ``task``, a feature or target is NaN or
            infinite, or a strength or share is not positive.
    """
    strengths = sorted(set(check_positive("l2", l2)), reverse=True)
    if var_smoothing is None:
        var_smoothing = VAR_SMOOTHINGS if len(strengths) > 1 else VAR_SMOOTHINGS[0]
    smoothings = check_positive("var_smoothing", var_smoothing)
    several = len(strengths) * len(smoothings) > 1
    spec = get_task(task)
    y = _check_targets(x, y, num_outputs, spec, "")
    if (x_val is None) != (y_val is None):
        raise ValueError("only one of x_val and y_val is given: pass both or neither")
    if x_val is not None and y_val is not None:
        y_val = _check_targets(x_val, y_val, num_outputs, spec, "_val")
        if x_val.shape[1] != x.shape[1]:
            raise ValueError(f"x_val has {x_val.shape[1]} features, expected {x.shape[1]} as in x")
    if class_weights is not None:
        check_class_weights(class_weights, spec, num_outputs)
        class_weights = class_weights.to(y.device)
    settings = Settings(num_outputs, spec, class_weights, tolerance, max_iterations)
    if several and x_val is None:
        return _cross_validate(x, y, settings, strengths, smoothings)
    data = PathData(x, y, settings, x_val, y_val)
    if several:
        search = Search([data])
        best = search.solve(search.visit(strengths, smoothings))
        return Solution(search.linear_map(best), best.l2, best.var_smoothing, search.steps)
    path = RegularizationPath(data, smoothings[0])
    step = path.solve(strengths[0])
    return Solution(path.linear_map(step.l2), step.l2, step.var_smoothing, (step,))


def _cross_validate(
    x: Tensor | Rows,
    y: Tensor,
    settings: Settings,
    strengths: Sequence[float],
    smoothings: Sequence[float],
) -> Solution:
    """Choose a strength by the mean validation loss of all folds; then fit all images."""
    folds = _folds(y, settings.task)
    if not folds:
        strength = default_strength(strengths, len(y))
        path = RegularizationPath(PathData(x, y, settings), smoothings[0])
        step = path.solve(strength)
        return Solution(path.linear_map(strength), strength, step.var_smoothing, (step,))
    search = Search(
        [PathData(*_select(x, y, ~fold), settings, *_select(x, y, fold)) for fold in folds],
        [int(fold.sum()) for fold in folds],
    )
    best = search.visit(strengths, smoothings)
    start, steps = search.linear_map(best), list(search.steps)
    del search  # to free the features that it keeps
    path = RegularizationPath(PathData(x, y, settings), best.var_smoothing)
    step = path.solve(best.l2, start)
    steps[steps.index(best)] = replace(
        step, val_loss=best.val_loss, iterations=best.iterations + step.iterations
    )
    return Solution(path.linear_map(step.l2), step.l2, step.var_smoothing, tuple(steps))


def _select(x: Tensor | Rows, y: Tensor, mask: Tensor) -> tuple[Tensor | Rows, Tensor]:
    selected = SelectedRows(x, mask)
    small = isinstance(x, Tensor) and x.numel() <= CACHED
    return (torch.cat(list(selected.blocks())) if small else selected), y[mask]


def _folds(y: Tensor, task: Task) -> list[Tensor]:
    """Return a mask ``[N]`` of held-out images for each fold, stratified by class.

    A class with one image is never held out, so every fold trains every class. If each class has
    only one image, there are no folds.
    """
    count = len(y)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).to(y.device)
    groups = task.fold_groups(y)
    sizes = torch.bincount(groups)
    if not bool((sizes > 1).any()):
        return []
    order = order[groups[order].argsort(stable=True)]
    starts = sizes.cumsum(0) - sizes
    rank = torch.empty_like(order)
    rank[order] = torch.arange(count, device=y.device) - starts[groups[order]]
    several = sizes[groups] > 1
    if count > MAX_CROSS_VALIDATED:
        return [several & (rank < (sizes[groups] / 5).round().clamp(min=1))]
    folds = min(5, int(sizes[sizes > 1].min()))
    # Classes start at different folds, so that the folds have equal sizes.
    return [several & ((rank + starts[groups]) % folds == fold) for fold in range(folds)]


def default_strength(strengths: Sequence[float], rows: int) -> float:
    """Return the strength if each class has one image, so that none can be left out to choose one.

    It is the one nearest to scikit-learn's ``C = 0.1``: with more classes, the loss of each class
    weighs less against the penalty, so the penalty must be weaker.
    """
    return min(strengths, key=lambda l2: abs(math.log(l2 * rows / 10)))


def check_class_weights(weights: Tensor, task: Task, num_outputs: int) -> None:
    """Raise ``ValueError`` unless there is one positive, finite weight for each class or label."""
    if not task.has_classes:
        raise ValueError("class_weights has no effect on regression: remove it")
    usable = weights.shape == (num_outputs,) and bool(((weights > 0) & weights.isfinite()).all())
    if not usable:
        raise ValueError(f"class_weights must be {num_outputs} positive numbers")


def check_positive(name: str, values: Any) -> list[float]:
    """Return one or several values in a list.

    Raises:
        ValueError: There is no value, or one is not a positive number.
    """
    if isinstance(values, str):
        raise ValueError(f"{name} is {values!r}, expected a positive number, or several")
    several = [values] if isinstance(values, Real) else values
    numbers = [float(value) for value in several]
    if not numbers:
        raise ValueError(f"{name} is empty, expected at least one number")
    for value in numbers:
        if not 0 < value < math.inf:
            raise ValueError(f"{name} is {value:g}, expected a positive number")
    return numbers


def _check_targets(x: Tensor | Rows, y: Tensor, num_outputs: int, task: Task, which: str) -> Tensor:
    """Return checked targets on the device of the features; class indices become int64.

    Raises:
        ValueError: See ``solve``.
    """
    if len(x.shape) != 2 or not x.shape[0]:
        raise ValueError(f"x{which} has shape {tuple(x.shape)}, expected [N, num_features]")
    y = task.check_targets(y, x.shape[0], num_outputs, f"y{which}")
    return y.to(x.device) if isinstance(x, Tensor) else y
