"""The regularization path: linear maps from the same images at one or more strengths."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from headkit.adapters.heads.tasks import Task

from .lbfgs import Lbfgs, Memory
from .mean_loss import MeanLoss
from .preconditioner import RANK, Spectrum
from .ridge import Ridge
from .rows import Rows
from .standardization import StandardizedRows, measure_moments

MAX_DOUBLE_SIZE = 2**17
"""Maximum numbers in the features for double precision: single would save almost no time."""
MAX_RIDGE_SIDE = 4096
"""Maximum smaller side of the features for which ridge regression decomposes a matrix."""
MAX_SPAN_IMAGES = 200
"""Maximum images for which the span of the rows is the basis, if features are twice as many.

The span contains the weights (representer theorem; Schölkopf, Herbrich and Smola, 2001)."""
VISIT_TOLERANCE = 1e-3
"""Tolerance of a visit: it gives the validation loss to about a percent."""
VISIT_ITERATIONS = 20
"""Maximum iterations of a visit."""
EARLY_STOP_RISE = 0.05
"""Share above its minimum at which the validation loss counts as rising for good."""
FIRST_STRENGTH = 10.0
"""Strength to start from if only one, weaker strength is requested."""


@dataclass(frozen=True)
class LinearMap:
    """A linear map from features to logits: ``features @ weight.T + bias``.

    Attributes:
        weight: Weights ``[num_outputs, num_features]``, float64.
        bias: Biases ``[num_outputs]``, float64.
    """

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class Step:
    """One strength of a path.

    Attributes:
        l2: The strength of the penalty.
        var_smoothing: Share of the mean variance that was added to the variance of each feature.
        objective: Mean loss of the training images plus the penalty.
        val_loss: Mean log loss of the validation images, unweighted (multilabel: the mean over
            outputs, too; regression: mean squared error). Cross validation averages over all
            images. None if there are no validation images. Before convergence, a weak strength
            looks better than it is, because overfitting is learned last.
        iterations: Iterations of the solver, summed over all visits; 0 for the closed form.
        converged: True if the solver reached the tolerance; False if it only visited the strength.
    """

    l2: float
    var_smoothing: float
    objective: float
    val_loss: float | None
    iterations: int
    converged: bool


@dataclass(frozen=True)
class Settings:
    """Arguments of ``solve``."""

    num_outputs: int
    task: Task
    class_weights: Tensor | None
    tolerance: float
    max_iterations: int


@dataclass(frozen=True)
class _LabeledRows:
    """Features of images, with targets and weights for the outputs that can be learned."""

    x: Tensor | Rows
    y: Tensor
    weight: Tensor | None


class PathData:
    """Training and validation images, prepared for regularization paths.

    Args:
        x: Features of training images ``[N, num_features]``.
        y: Targets of training images.
        settings: Arguments of ``solve``.
        x_val: Features of validation images.
        y_val: Targets of validation images.

    Raises:
        ValueError: A feature is NaN or infinite, or no validation image has a class that has
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
        self.moments, self.sample = measure_moments(x, 10 * RANK)
        y = y.to(self.sample.device)
        self.outputs, self.prior = settings.task.learnable_outputs(y, settings.num_outputs)
        self.train, self.validation = self._labeled(x, y, settings.class_weights), None
        if x_val is not None and y_val is not None:
            self.validation = self._labeled(x_val, y_val.to(y.device), None)
        count, width = x.shape
        self.closed_form = settings.task.closed_form and min(count, width) <= MAX_RIDGE_SIDE
        few = count <= min(MAX_SPAN_IMAGES, width // 2)
        self.uses_span = few and not self.closed_form
        double = self.closed_form or self.uses_span or count * width <= MAX_DOUBLE_SIZE
        self.dtype = torch.float64 if double else torch.float32

    def _labeled(self, x: Tensor | Rows, y: Tensor, class_weights: Tensor | None) -> _LabeledRows:
        settings = self.settings
        targets = settings.task.restrict(y, self.outputs, settings.num_outputs, class_weights)
        return _LabeledRows(x, *targets)


class RegularizationPath:
    """Solutions at several strengths, for one standardization of the features.

    Args:
        data: The images.
        var_smoothing: Share of the mean variance that is added to the variance of each feature.
        spectrum: Spectrum of similar images' features, for the preconditioner. Default: these
            images' spectrum, if it is needed. It changes how fast the solver converges, not where.
    """

    def __init__(
        self, data: PathData, var_smoothing: float, spectrum: Spectrum | None = None
    ) -> None:
        self.data, self.var_smoothing = data, var_smoothing
        self.settings, self.outputs = data.settings, data.outputs
        self.scale = data.moments.scale(var_smoothing)
        self.basis: Tensor | None = None
        self._similar = spectrum
        if data.uses_span:
            self.basis = torch.linalg.qr(self._rows(data.train.x).to_tensor().T).Q
        self.thetas = dict[float, Tensor]()
        self.memory = Memory()

    @cached_property
    def train_loss(self) -> MeanLoss:
        """The loss of the training images."""
        return self._mean_loss(self.data.train)

    @cached_property
    def validation_loss(self) -> MeanLoss | None:
        """The loss of the validation images."""
        images = self.data.validation
        return None if images is None else self._mean_loss(images)

    @cached_property
    def ridge(self) -> Ridge:
        """The closed form, for tasks that have one."""
        return Ridge(self.train_loss.rows, self.train_loss.y)

    @cached_property
    def spectrum(self) -> Spectrum:
        """The spectrum of the features' covariance, for the preconditioner."""
        if self._similar is not None and self.basis is None:
            return self._similar
        return Spectrum.from_features(self._rows(self.data.sample).to_tensor())

    def release(self) -> None:
        """Free the large tensors; they are computed again when they are needed again."""
        for name in ("train_loss", "validation_loss", "ridge"):
            self.__dict__.pop(name, None)

    def visit(
        self, strengths: Sequence[float], *, stop_early: bool, start: LinearMap | None = None
    ) -> list[Step]:
        """Solve strengths from strong to weak, each only to ``VISIT_TOLERANCE``.

        Args:
            strengths: Strengths, from strong to weak.
            stop_early: Skip the other strengths once the validation loss rises.
            start: The map to start from. Default: zeros.
        """
        if self.data.closed_form:
            return [self._solve_ridge(l2) for l2 in strengths]
        steps = list[Step]()
        lbfgs = self._lbfgs(self._zeros() if start is None else self._standardized(start))
        best = math.inf
        tolerance = max(VISIT_TOLERANCE, self.settings.tolerance)
        max_iterations = min(VISIT_ITERATIONS, self.settings.max_iterations)
        for l2 in strengths:
            iterations, done = lbfgs.minimize(l2, tolerance, max_iterations)
            point = lbfgs.point
            self.thetas[l2] = point.theta
            objective, val_loss = lbfgs.objective(point, l2), self._val_loss(point.theta)
            converged = done and tolerance <= self.settings.tolerance
            steps.append(Step(l2, self.var_smoothing, objective, val_loss, iterations, converged))
            if stop_early and val_loss > (1 + EARLY_STOP_RISE) * best + 1e-6:
                break
            best = min(best, val_loss)
        self.memory = lbfgs.memory
        return steps

    def solve(self, l2: float, start: LinearMap | None = None) -> Step:
        """Solve one strength to the tolerance of the settings.

        Args:
            l2: The strength. If it was visited, the solver continues from there.
            start: The map to start from if the strength was not visited. Default: zeros.
        """
        if self.data.closed_form:
            return self._solve_ridge(l2)
        max_iterations, tolerance = self.settings.max_iterations, self.settings.tolerance
        if l2 in self.thetas:
            lbfgs = self._lbfgs(self.thetas[l2])
        elif start is not None:
            lbfgs = self._lbfgs(self._standardized(start))
        else:
            lbfgs = self._lbfgs(self._zeros())
            # Two iterations at each stronger strength halve the iterations at the requested one.
            stronger = FIRST_STRENGTH
            while stronger > l2:
                lbfgs.minimize(stronger, tolerance, 2)
                stronger /= math.sqrt(10)
        iterations, done = lbfgs.minimize(l2, tolerance, max_iterations)
        if self.train_loss.dtype != torch.float64:
            lbfgs = lbfgs.to(torch.float64)
            more, done = lbfgs.minimize(l2, tolerance, max_iterations - iterations)
            iterations += more
        theta = self.thetas[l2] = lbfgs.point.theta
        val_loss = None if self.validation_loss is None else self._val_loss(theta)
        objective = lbfgs.objective(lbfgs.point, l2)
        return Step(l2, self.var_smoothing, objective, val_loss, iterations, done)

    def linear_map(self, l2: float) -> LinearMap:
        """Return the map of a strength that was visited, for features without standardization."""
        theta, outputs = self.thetas[l2].double(), self.outputs
        learned = theta[:, :-1] if self.basis is None else theta[:, :-1] @ self.basis.T
        weight = theta.new_zeros(self.settings.num_outputs, learned.shape[1])
        weight[outputs] = learned * self.scale.inverse.double()
        bias = self.settings.task.biases(self.data.prior, theta[:, -1], outputs)
        return LinearMap(weight, bias - weight @ self.scale.mean.double())

    def _lbfgs(self, theta: Tensor) -> Lbfgs:
        return Lbfgs(self.train_loss, self.spectrum, theta, self.memory)

    def _solve_ridge(self, l2: float) -> Step:
        theta = self.thetas[l2] = self.ridge.solve(l2)
        objective = self.train_loss.value(theta) + l2 / 2 * float(theta[:, :-1].square().sum())
        val_loss = None if self.validation_loss is None else self._val_loss(theta)
        return Step(l2, self.var_smoothing, objective, val_loss, 0, True)

    def _val_loss(self, theta: Tensor) -> float:
        if self.validation_loss is None:
            return 0.0
        return self.settings.task.validation_loss(self.validation_loss.value(theta), len(theta))

    def _zeros(self) -> Tensor:
        return torch.zeros(
            len(self.outputs), self.train_loss.rows.shape[1] + 1, device=self.outputs.device
        )

    def _standardized(self, linear: LinearMap) -> Tensor:
        """Return the parameters of a map; the bias takes the contribution of constant features."""
        mean, inverse = self.scale.mean.double(), self.scale.inverse.double()
        weight, bias = linear.weight[self.outputs], linear.bias[self.outputs]
        bias = bias + weight @ mean
        scaled = torch.where(inverse > 0, weight / inverse, 0.0)
        if self.basis is not None:
            scaled = scaled @ self.basis
        return torch.cat([scaled, bias[:, None]], 1)

    def _rows(self, x: Tensor | Rows) -> StandardizedRows:
        return StandardizedRows(x, self.scale, self.data.dtype, len(self.outputs), self.basis)

    def _mean_loss(self, images: _LabeledRows) -> MeanLoss:
        return MeanLoss(self._rows(images.x), images.y, self.settings.task, images.weight)
