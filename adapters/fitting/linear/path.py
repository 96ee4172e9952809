"""From one set of training images to linear maps: one strength, or a path of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from headkit.adapters.heads.tasks import Task

from .blocks import Rows, Standardized, measure
from .lbfgs import RANK, Descent, Memory, Problem, Spectrum
from .ridge import Ridge

DOUBLE = 2**20
"""Numbers up to which single precision saves nothing worth mentioning."""
DIRECT = 4096
"""The smaller side of the features up to which ridge regression decomposes their covariance."""
SPAN = 512
"""Images up to which, if there are twice as many features, the span of the rows is a basis.

The weights lie in it (representer theorem; Schölkopf, Herbrich and Smola, 2001)."""
VISITED = 1e-3
"""Tolerance until a strength is chosen: its validation loss is known to about a percent then."""
TURNED = 0.05
"""Share above its minimum at which the validation loss has turned up for good."""
VISIT = 20
"""Iterations that a strength gets at most until it is chosen."""
APPROACH = 10.0
"""Strength to start from where a single weaker one is asked for."""


@dataclass(frozen=True)
class Linear:
    """A linear map of features to logits: ``features @ weight.T + bias``.

    Attributes:
        weight: ``[num_outputs, num_features]``, float64.
        bias: ``[num_outputs]``, float64.
    """

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class Step:
    """One strength of a path.

    Attributes:
        l2: the strength.
        var_smoothing: share of the mean variance that was added to each feature's.
        objective: mean loss on the training images with the penalty.
        val_loss: mean log loss of the validation images, not weighted (multilabel: mean over the
            outputs as well; regression: mean squared error). With cross validation, of all images.
            None without validation. Before convergence a weak strength looks better than it is:
            what it overfits is learned last.
        iterations: of the solver, all visits together; 0 in closed form.
        converged: whether the tolerance was reached, rather than only what a choice needs.
    """

    l2: float
    var_smoothing: float
    objective: float
    val_loss: float | None
    iterations: int
    converged: bool


@dataclass(frozen=True)
class Settings:
    """What ``solve`` was asked for, see there."""

    num_outputs: int
    task: Task
    class_weights: Tensor | None
    tolerance: float
    max_iterations: int


@dataclass(frozen=True)
class _Labeled:
    """Features of images, with targets and weights for the outputs that can be learned."""

    x: Tensor | Rows
    y: Tensor
    weight: Tensor | None


class Images:
    """What fits of the same images share.

    Args:
        x: features, ``[N, num_features]``.
        y: targets.
        settings: the rest.
        x_val: features of validation images.
        y_val: their targets.

    Raises:
        ValueError: a feature is NaN or infinite, or no validation image is of a class that has
            training images.
    """

    def __init__(
        self,
        x: Tensor | Rows,
        y: Tensor,
        settings: Settings,
        x_val: Tensor | Rows | None = None,
        y_val: Tensor | None = None,
    ) -> None:
        self.settings = settings
        self.moments, self.sample = measure(x, 10 * RANK)
        y = y.to(self.sample.device)
        self.outputs, self.prior = settings.task.learnable_outputs(y, settings.num_outputs)
        self.train, self.held = self._labeled(x, y, settings.class_weights), None
        if x_val is not None and y_val is not None:
            self.held = self._labeled(x_val, y_val.to(y.device), None)
        count, width = x.shape
        self.direct = settings.task.closed_form and min(count, width) <= DIRECT
        self.spanned = count < width if self.direct else count <= min(SPAN, width // 2)
        double = self.direct or self.spanned or count * width <= DOUBLE
        self.dtype = torch.float64 if double else torch.float32

    def _labeled(self, x: Tensor | Rows, y: Tensor, class_weights: Tensor | None) -> _Labeled:
        settings = self.settings
        targets = settings.task.restrict(y, self.outputs, settings.num_outputs, class_weights)
        return _Labeled(x, *targets)


class Fit:
    """The minimizers for one standardization.

    Args:
        images: what is fitted.
        var_smoothing: share of the mean variance that is added to each feature's.
    """

    def __init__(self, images: Images, var_smoothing: float) -> None:
        self.images, self.var_smoothing = images, var_smoothing
        self.settings, self.outputs = images.settings, images.outputs
        self.scale = images.moments.scale(var_smoothing)
        self.basis: Tensor | None = None
        if images.spanned:
            self.basis = torch.linalg.qr(self._rows(images.train.x).whole().T).Q
        self.thetas = dict[float, Tensor]()
        self.memory = Memory()

    @cached_property
    def problem(self) -> Problem:
        """The loss of the training images."""
        return self._problem(self.images.train)

    @cached_property
    def validation(self) -> Problem | None:
        """The loss of the validation images."""
        return None if self.images.held is None else self._problem(self.images.held)

    @cached_property
    def ridge(self) -> Ridge:
        """The closed form, if there is one."""
        return Ridge(self.problem.rows, self.problem.y)

    @cached_property
    def spectrum(self) -> Spectrum:
        """What preconditions the descent."""
        return Spectrum.from_features(self._rows(self.images.sample).whole())

    def release(self) -> None:
        """Forget what is large; where it is needed again, it is computed again."""
        for name in ("problem", "validation", "ridge"):
            self.__dict__.pop(name, None)

    def path(
        self, strengths: Sequence[float], *, early: bool = True, start: Linear | None = None
    ) -> list[Step]:
        """Visit strengths from strong to weak, each until ``VISITED`` is reached.

        Args:
            strengths: from strong to weak.
            early: leave the others out once the validation loss has turned up.
            start: where to start from.
        """
        if self.images.direct:
            return [self._direct(l2) for l2 in strengths]
        steps = list[Step]()
        descent = self._descent(self._zeros() if start is None else self._standardized(start))
        best = math.inf
        tolerance = max(VISITED, self.settings.tolerance)
        most = min(VISIT, self.settings.max_iterations)
        for l2 in strengths:
            iterations, done = descent.run(l2, tolerance, most)
            point = descent.point
            self.thetas[l2] = point.theta
            objective, val_loss = descent.objective(point, l2), self._val_loss(point.theta)
            converged = done and tolerance <= self.settings.tolerance
            steps.append(Step(l2, self.var_smoothing, objective, val_loss, iterations, converged))
            if early and val_loss > (1 + TURNED) * best + 1e-6:
                break
            best = min(best, val_loss)
        self.memory = descent.memory
        return steps

    def polish(self, l2: float, start: Linear | None = None) -> Step:
        """Solve one strength to the tolerance.

        Args:
            l2: the strength; it goes on from its visit.
            start: where to start from if it was not visited.
        """
        if self.images.direct:
            return self._direct(l2)
        most, tolerance = self.settings.max_iterations, self.settings.tolerance
        if l2 in self.thetas:
            descent = self._descent(self.thetas[l2])
        elif start is not None:
            descent = self._descent(self._standardized(start))
        else:
            descent = self._descent(self._zeros())
            # A few iterations for each strength on the way halve those that are needed in the end.
            way = APPROACH
            while way > l2:
                descent.run(way, tolerance, 2)
                way /= math.sqrt(10)
        made, done = descent.run(l2, tolerance, most)
        if self.problem.dtype != torch.float64:
            descent = descent.to(torch.float64)
            more, done = descent.run(l2, tolerance, most - made)
            made += more
        theta = self.thetas[l2] = descent.point.theta
        val_loss = None if self.validation is None else self._val_loss(theta)
        objective = descent.objective(descent.point, l2)
        return Step(l2, self.var_smoothing, objective, val_loss, made, done)

    def linear(self, l2: float) -> Linear:
        """Return the map of a strength that was visited: for features as they are."""
        theta, outputs = self.thetas[l2].double(), self.outputs
        learned = theta[:, :-1] if self.basis is None else theta[:, :-1] @ self.basis.T
        weight = theta.new_zeros(self.settings.num_outputs, learned.shape[1])
        weight[outputs] = learned * self.scale.inverse.double()
        bias = self.settings.task.biases(self.images.prior, theta[:, -1], outputs)
        return Linear(weight, bias - weight @ self.scale.mean.double())

    def _descent(self, theta: Tensor) -> Descent:
        return Descent(self.problem, self.spectrum, theta, self.memory)

    def _direct(self, l2: float) -> Step:
        theta = self.thetas[l2] = self.ridge.at(l2)
        objective = self.problem.loss(theta) + l2 / 2 * float(theta[:, :-1].square().sum())
        val_loss = None if self.validation is None else self._val_loss(theta)
        return Step(l2, self.var_smoothing, objective, val_loss, 0, True)

    def _val_loss(self, theta: Tensor) -> float:
        if self.validation is None:
            return 0.0
        return self.settings.task.validation_loss(self.validation.loss(theta), len(theta))

    def _zeros(self) -> Tensor:
        return torch.zeros(
            len(self.outputs), self.problem.rows.shape[1] + 1, device=self.outputs.device
        )

    def _standardized(self, linear: Linear) -> Tensor:
        """Return the parameters of a map; what constant features contribute goes into the bias."""
        mean, inverse = self.scale.mean.double(), self.scale.inverse.double()
        weight, bias = linear.weight[self.outputs], linear.bias[self.outputs]
        bias = bias + weight @ mean
        scaled = torch.where(inverse > 0, weight / inverse, 0.0)
        if self.basis is not None:
            scaled = scaled @ self.basis
        return torch.cat([scaled, bias[:, None]], 1)

    def _rows(self, x: Tensor | Rows) -> Standardized:
        return Standardized(x, self.scale, self.images.dtype, len(self.outputs), self.basis)

    def _problem(self, images: _Labeled) -> Problem:
        return Problem(self._rows(images.x), images.y, self.settings.task, images.weight)
