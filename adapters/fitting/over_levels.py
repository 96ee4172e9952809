"""Fit a linear head over levels, and choose the levels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from headkit.adapters.features.labeled_features import LabeledFeatures
from headkit.adapters.features.rows import select_columns
from headkit.adapters.heads.tasks import Task

from .folds import make_partition
from .kernel.gram import LevelKernel
from .kernel.selection import RIDGES, LevelSolution, solve_levels
from .linear.regularization_path import LinearMap
from .linear.solve import STRENGTHS, solve
from .out_of_fold import OutOfFold, apply_linear, predict_out_of_fold

MAX_KERNEL = 2048
"""Maximum number of rows for which all choices are made in closed form, see ``solve_levels``. Of
more rows, a sample of this size chooses the levels, and logistic regression fits the head."""


@dataclass(frozen=True)
class LevelFit:
    """How to fit a head over levels.

    Attributes:
        sets: Sets of levels to choose from, the simplest first.
        task: The kind of targets.
        num_outputs: Length of the logits.
        class_weights: Weights of the classes ``[num_outputs]``, see ``solve``.
        l2: Strengths to choose from, see ``solve``. Default: a range of them.
        seed: Seed of the groups and of the sample.
    """

    sets: tuple[tuple[str, ...], ...]
    task: Task
    num_outputs: int
    class_weights: Tensor | None = None
    l2: float | Sequence[float] | None = None
    seed: int = 0


@dataclass(frozen=True)
class FittedLevels:
    """A linear map of levels, and how it came about.

    Attributes:
        levels: Names of the levels, in the order of the map's columns.
        linear: The map.
        choices: What was chosen, for the metrics of a head.
        held: Predictions for images that were held out.
    """

    levels: tuple[str, ...]
    linear: LinearMap
    choices: dict[str, Any]
    held: OutOfFold

    def predict(self, examples: LabeledFeatures) -> Tensor:
        """Return logits, float64 ``[N, num_outputs]``."""
        return apply_linear(self.linear, examples.row(self.levels))


def fit_over_levels(
    examples: LabeledFeatures, blocks: Tensor, held: Tensor | None, how: LevelFit
) -> FittedLevels:
    """Choose levels, fit a head to all examples, and predict images that are held out.

    Args:
        examples: Features with levels.
        blocks: Number of each image's block, int64; images of a block are copies of each other.
        held: ``[N]``, True for the rows to hold out. If no row is held out, the head is not
            measured. Default: nested cross-validation holds out each image once.
        how: How to fit.
    """
    if held is None and len(examples) <= MAX_KERNEL:
        return _fit(examples, blocks, how, nested=True)
    fitted = _fit(examples, blocks, how, nested=False)
    if held is None or not bool(held.any()):
        return fitted
    out = predict_out_of_fold(
        examples,
        [held],
        lambda rest: _fit(rest, blocks, how, nested=False).predict,
        how.num_outputs,
    )
    return replace(fitted, held=out)


def _fit(examples: LabeledFeatures, blocks: Tensor, how: LevelFit, *, nested: bool) -> FittedLevels:
    few = len(examples) <= MAX_KERNEL
    sample = examples if few else examples.select(_sample(examples, how))
    weights = how.class_weights
    by_image = None
    if weights is not None and how.task.exclusive:
        by_image = weights.double().cpu()[sample.y.long()]
    partition = make_partition(sample.y, blocks[sample.images], how.task, how.seed)
    if not nested:
        partition = replace(partition, folds=())
    names = dict.fromkeys(name for levels in how.sets for name in levels)
    features = {name: _in_memory(sample, name) for name in names}
    ridges = RIDGES if how.l2 is None else _ridges(how.l2, len(sample))
    solution = solve_levels(
        features,
        sample.y,
        how.task,
        how.num_outputs,
        how.sets,
        partition,
        ridges=ridges,
        weight=by_image,
    )
    choices = _choices(solution, len(sample))
    held = OutOfFold.nothing(how.num_outputs)
    if nested:
        first = sample.first_view[solution.measured]
        images = sample.images[solution.measured][first]
        numbers, order = images.sort()
        held = OutOfFold(numbers, solution.logits[first][order], len(partition.folds))
    if few and (weights is None or how.task.exclusive):
        return FittedLevels(solution.levels, solution.linear, choices, held)
    linear, chosen = _solve_all(examples, features, solution.levels, how)
    return FittedLevels(solution.levels, linear, {**choices, **chosen}, held)


def _solve_all(
    examples: LabeledFeatures,
    features: dict[str, Tensor],
    levels: Sequence[str],
    how: LevelFit,
) -> tuple[LinearMap, dict[str, Any]]:
    """Fit logistic regression to all examples, in which each level counts equally."""
    ranges, scales = [], []
    for name in levels:
        scale = LevelKernel.from_features(features[name]).scale
        for place in examples.columns_of(name):
            ranges.append(place)
            scales.append(scale)
    solution = solve(
        select_columns(examples.x, ranges, scales),
        examples.y,
        how.num_outputs,
        task=how.task.name,
        class_weights=how.class_weights,
        l2=STRENGTHS if how.l2 is None else how.l2,
    )
    widths = torch.tensor([end - start for start, end in ranges])
    factors = torch.tensor(scales, dtype=torch.float64).repeat_interleave(widths)
    linear = LinearMap(solution.linear.weight.cpu() * factors, solution.linear.bias.cpu())
    return linear, {"l2": solution.l2, "var_smoothing": solution.var_smoothing}


def _sample(examples: LabeledFeatures, how: LevelFit) -> Tensor:
    """Choose at most ``MAX_KERNEL`` rows of the first view, at random."""
    generator = torch.Generator().manual_seed(how.seed)
    rows = examples.first_view.nonzero()[:, 0]
    kept = rows[torch.randperm(len(rows), generator=generator)[:MAX_KERNEL]]
    mask = torch.zeros(len(examples), dtype=torch.bool)
    mask[kept] = True
    return mask


def _in_memory(examples: LabeledFeatures, name: str) -> Tensor:
    x = examples.row([name])
    return x if isinstance(x, Tensor) else torch.cat(list(x.blocks()))


def _ridges(l2: float | Sequence[float], rows: int) -> tuple[float, ...]:
    """Return strengths of ``solve``, which relate to the mean loss, for the summed loss."""
    values = [l2] if isinstance(l2, int | float) else l2
    return tuple(sorted({float(value) * rows for value in values}, reverse=True))


def _choices(solution: LevelSolution, rows: int) -> dict[str, Any]:
    compared = {describe_levels(one.levels): round(one.loss, 4) for one in solution.compared}
    return {
        "l2": solution.ridge / rows,
        "selection": {"levels": list(solution.levels), "losses": compared},
    }


def describe_levels(levels: Sequence[str]) -> str:
    """Return a short name of a set of levels, such as ``last + blocks.0 … blocks.4``."""
    others = list(levels[1:])
    if not others:
        return levels[0]
    return f"{levels[0]} + {others[0]}" + (f" … {others[-1]}" if len(others) > 1 else "")
