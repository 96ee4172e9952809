"""Fit a linear head: choose its levels and its strength, and predict images that it did not see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from headkit.adapters.backbone.level import LAST
from headkit.adapters.features.labeled_features import LabeledFeatures
from headkit.adapters.features.rows import Rows
from headkit.adapters.heads.tasks import Task

from .folds import make_folds
from .linear.preconditioner import Spectrum
from .linear.regularization_path import LinearMap, PathData, RegularizationPath, Settings
from .linear.solve import (
    MAX_CROSS_VALIDATED,
    STRENGTHS,
    check_class_weights,
    check_positive,
)
from .linear.standardization import measure_moments
from .out_of_fold import OutOfFold, apply_linear
from .selection import (
    Candidate,
    Choice,
    LeftOut,
    choose,
    losses_of_rows,
    weights_of_parts,
)

LAST_SMOOTHING, LEVELS_SMOOTHING = 1.0, 0.01
"""Variance smoothing of the last features alone, and of levels.

Levels of a backbone have features of different sizes, so each feature gets its own scale."""
STRENGTHS_OF_FEW = STRENGTHS[:9]
"""Strengths to choose from for up to ``MAX_CROSS_VALIDATED`` blocks: 10, 3.2, … 0.001."""
TOLERANCE, MAX_ITERATIONS = 1e-5, 500
"""See ``solve``."""


@dataclass(frozen=True)
class LinearFit:
    """How to fit a linear head.

    Attributes:
        sets: Sets of levels to choose from, the simplest first; the last one contains all others.
            Empty for a head that reads all branches of the last features, and no levels.
        task: The kind of targets.
        num_outputs: Length of the logits.
        class_weights: Weight of each class ``[num_outputs]``, or ``balanced``; see ``solve``.
        l2: Strengths to choose from, see ``solve``. Default: a range of them.
        seed: Seed of the folds.
    """

    sets: tuple[tuple[str, ...], ...]
    task: Task
    num_outputs: int
    class_weights: Tensor | Literal["balanced"] | None = None
    l2: float | Sequence[float] | None = None
    seed: int = 0


@dataclass(frozen=True)
class FittedLinear:
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


def fit_linear(
    examples: LabeledFeatures, blocks: Tensor, held: Tensor | None, how: LinearFit
) -> FittedLinear:
    """Choose levels and strength, fit a head to all examples, and predict images it did not see.

    The head is a logistic regression (classes: multinomial, labels: one-vs-rest) or a ridge
    regression (numbers), see ``solve``. Choices are made by the loss of images that were left out,
    see ``choose``.

    Without ``held``, the predictions are those of nested cross-validation: nothing that is chosen
    or fitted for the head that predicts a fold depends on a target of that fold. If there are only
    two folds, no image remains to choose for them. Their heads then read the largest set of levels
    and have the strength of ``default_strength``.

    Args:
        examples: Features with levels.
        blocks: Number of each image's block, int64; images of a block are copies of each other.
        held: ``[N]``, True for the rows to hold out. If no row is held out, the head is not
            measured. Default: cross-validation, see ``make_folds``.
        how: How to fit.

    Raises:
        ValueError: A feature is NaN or infinite, a strength or a class weight is not positive, or
            there are class weights for numbers.
    """
    everything = _Problem(examples, blocks, how)
    linear, choice = everything.fit()
    out = OutOfFold.nothing(how.num_outputs)
    if held is None:
        out = everything.predict_folds()
    elif bool(held.any()):
        rest = _Problem(examples.select(~held), blocks, how)
        fitted, chosen = rest.fit()
        some = examples.select(held & examples.first_view)
        logits = apply_linear(fitted, _candidates(some, how)[chosen.candidate].x)
        numbers, order = some.images.sort()
        out = OutOfFold(numbers, logits[order], 1)
    levels = everything.candidates[choice.candidate].levels
    return FittedLinear(levels, linear, everything.describe(choice), out)


class _Problem:
    """Examples, the candidates for a head that fits them, and their losses."""

    def __init__(self, examples: LabeledFeatures, blocks: Tensor, how: LinearFit) -> None:
        self.examples, self.how = examples, how
        self.candidates = _candidates(examples, how)
        measure_moments(self.candidates[-1].x, 0)  # refuses values that are not finite
        if isinstance(how.class_weights, Tensor):
            check_class_weights(how.class_weights, how.task, how.num_outputs)
        own = blocks[examples.images]
        few = len(torch.unique(own)) <= MAX_CROSS_VALIDATED
        l2 = (STRENGTHS_OF_FEW if few else STRENGTHS) if how.l2 is None else how.l2
        self.strengths = sorted(set(check_positive("l2", l2)), reverse=True)
        self.folds = make_folds(examples.y, own, how.task, how.seed)
        self.spectra: dict[int, Spectrum] = {}
        several = len(self.candidates) * len(self.strengths) > 1
        self.left_out = [self._leave_out(one) for one in self.folds.left_out] if several else []

    def fit(self) -> tuple[LinearMap, Choice]:
        """Return the map that is fitted to all examples, and what was chosen for it."""
        everything = torch.ones(len(self.examples), dtype=torch.bool)
        choice = self._choose()
        return self._solve(everything, choice), choice

    def predict_folds(self) -> OutOfFold:
        """Predict the measured folds, each by a map that did not see it."""
        images, logits = [], []
        for fold in self.folds.measured:
            held = self.folds.rows_of((fold,))
            choice = self._choose(fold)
            linear = self._solve(~held, choice)
            shown = held & self.examples.first_view
            images.append(self.examples.images[shown])
            logits.append(apply_linear(linear, self.candidates[choice.candidate].select(shown)))
        if not images:
            return OutOfFold.nothing(self.how.num_outputs)
        numbers, order = torch.cat(images).sort()
        return OutOfFold(numbers, torch.cat(logits)[order], len(images))

    def describe(self, choice: Choice) -> dict[str, Any]:
        """Return what was chosen, for the metrics of a head."""
        chosen = self.candidates[choice.candidate]
        choices: dict[str, Any] = {
            "l2": self.strengths[choice.strength],
            "var_smoothing": chosen.var_smoothing,
        }
        if self.how.sets:
            losses = zip(self.candidates, choice.losses, strict=False)
            choices["selection"] = {
                "levels": list(chosen.levels),
                "losses": {_describe(one.levels): round(loss, 4) for one, loss in losses},
            }
        return choices

    def _choose(self, without: int | None = None) -> Choice:
        of_row, task = self.folds.of_row, self.how.task
        counted = self.examples.y if without is None else self.examples.y[of_row != without]
        weights = weights_of_parts(counted, task)
        return choose(self.left_out, of_row, self.strengths, len(self.candidates), weights, without)

    def _leave_out(self, folds: tuple[int, ...]) -> LeftOut:
        """Fit all candidates at all strengths without some folds, and predict these."""
        held = self.folds.rows_of(folds)
        y, task = self.examples.y, self.how.task
        shown = held & self.examples.first_view
        if task.exclusive:
            # No head can predict a class whose images were all left out.
            shown &= torch.isin(y, y[~held])
        losses = []
        for number, candidate in enumerate(self.candidates):
            path = self._path(~held, number)
            path.visit(self.strengths, stop_early=False)
            maps = [path.linear_map(l2) for l2 in self.strengths]
            logits = _apply_all(maps, candidate.select(shown))
            each = [losses_of_rows(z, y[shown], task) for z in logits]
            losses.append(torch.stack(each))
        return LeftOut(folds, shown.nonzero()[:, 0], tuple(losses))

    def _solve(self, rows: Tensor, choice: Choice) -> LinearMap:
        path = self._path(rows, choice.candidate)
        l2 = self.strengths[choice.strength]
        path.solve(l2)
        return path.linear_map(l2)

    def _path(self, rows: Tensor, number: int) -> RegularizationPath:
        candidate, y = self.candidates[number], self.examples.y
        settings = self._settings(y[rows])
        data = PathData(candidate.select(rows), y[rows], settings)
        needed = not (data.uses_span or data.closed_form)
        spectrum = self._spectrum(number) if needed else None
        return RegularizationPath(data, candidate.var_smoothing, spectrum)

    def _spectrum(self, number: int) -> Spectrum:
        """Return the spectrum of all rows of a candidate, which serves all folds."""
        if number not in self.spectra:
            candidate, y = self.candidates[number], self.examples.y
            data = PathData(candidate.x, y, self._settings(y))
            self.spectra[number] = RegularizationPath(data, candidate.var_smoothing).spectrum
        return self.spectra[number]

    def _settings(self, y: Tensor) -> Settings:
        how = self.how
        weights = how.class_weights
        if isinstance(weights, str):
            weights = how.task.balanced_weights(y, how.num_outputs)
        return Settings(how.num_outputs, how.task, weights, TOLERANCE, MAX_ITERATIONS)


def _candidates(examples: LabeledFeatures, how: LinearFit) -> list[Candidate]:
    if not how.sets:
        return [Candidate((LAST,), examples.branches_only.x, LAST_SMOOTHING)]
    return [
        Candidate(
            levels,
            examples.row(levels),
            LAST_SMOOTHING if levels == (LAST,) else LEVELS_SMOOTHING,
        )
        for levels in how.sets
    ]


def _apply_all(maps: Sequence[LinearMap], x: Tensor | Rows) -> list[Tensor]:
    """Return the logits of several maps, ``[N, num_outputs]`` each."""
    together = LinearMap(
        torch.cat([one.weight for one in maps]), torch.cat([one.bias for one in maps])
    )
    return list(torch.chunk(apply_linear(together, x), len(maps), 1))


def _describe(levels: Sequence[str]) -> str:
    """Return a short name of a set of levels, such as ``last + blocks.0 … blocks.4``."""
    others = list(levels[1:])
    if not others:
        return levels[0]
    return f"{levels[0]} + {others[0]}" + (f" … {others[-1]}" if len(others) > 1 else "")
